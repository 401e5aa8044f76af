"""How a script ends: a person's mistake is one sentence and exit status 2; a traceback is a bug of
ours.
"""
import os
import sys
from pathlib import Path


class UserError(Exception):
    """A person's mistake, told in one sentence that says what is wrong and what to do.

    Parts raise it; only scripts exit.
    """


def print0(*words, file=None):
    """Print from the first process only, so that four processes do not say everything four times.
    """
    if os.environ.get('RANK', '0') == '0':
        print(*words, file=file, flush=True)


def print_error(sentence):
    """One line on stderr, from whichever process saw the mistake; of several it says which."""
    script = Path(sys.argv[0]).name
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        script += f' (rank {os.environ.get("RANK")})'
    words = ' '.join(str(sentence).split())
    # a name in somebody's file may hold what moves the cursor of a terminal
    shown = ''.join(c if c.isprintable() else '�' for c in words)
    print(f'{script}: {shown}', file=sys.stderr, flush=True)


def run_script(main):
    """Run main() and leave: status 0 or what it returns, 2 after a UserError, 130 after Ctrl-C."""
    try:
        status = main() or 0
    except UserError as error:
        print_error(error)
        status = 2
    except BrokenPipeError:  # `| head` has read enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for what Python still has to flush
        status = 0
    except KeyboardInterrupt:
        print_error('interrupted')
        status = 130
    sys.exit(status)
