"""How a script begins and ends: it looks whether it is alone; a person's mistake is one sentence
and exit status 2; a traceback is a bug of ours.
"""
import errno
import os
import sys
import time
from pathlib import Path


class UserError(Exception):
    """A person's mistake, told in one sentence that says what is wrong and what to do.

    Parts raise it; only scripts exit.
    """


def how_to_wait():
    """{variable of the environment: value} for torch's threads, to be set before torch is imported.

    OpenMP's threads wait for each other at the end of every loop, and meanwhile spin: 300,000 times
    before they give their core away. Alone on a machine that is the fastest way. Beside a busy
    program a thread that spins holds the core that the late one needs, so 100 times are enough
    there (LOG.md, Neighbours). What a person has set stands. The sums do not depend on it.
    """
    if {'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'} & set(os.environ):
        return {}
    try:
        n_threads = int(os.environ.get('OMP_NUM_THREADS') or len(os.sched_getaffinity(0)))
        for _ in range(5):                                    # one that works is there every time
            running = int(Path('/proc/loadavg').read_text().split()[3].split('/')[0])
            if n_threads == 1 or n_threads + running - 1 <= os.cpu_count():
                return {}
            time.sleep(0.01)
    except (AttributeError, OSError, ValueError, IndexError):  # no Linux
        return {}
    return {'GOMP_SPINCOUNT': '100'}


def user_path(text):
    """The path that a person wrote, with ~ as the home folder. Raises UserError."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who is not known here
        raise UserError(f'{text}: {error}') from None


def refuse_bytes(name, text):
    """Raise UserError where what a person typed was not UTF-8: Python keeps such bytes as halves of
    surrogate pairs.
    """
    if any('\ud800' <= character <= '\udfff' for character in text):
        raise UserError(f'{name} is not UTF-8')


def split_at_commas(text):
    """The files in 'a.csv,b.csv'; a comma in the name of one that is there stays."""
    parts = text.split(',')
    names = []
    while parts:
        n = len(parts)
        while n > 1 and not os.path.exists(user_path(','.join(parts[:n]))):
            n -= 1
        names.append(','.join(parts[:n]))
        del parts[:n]
    return names


def print0(*words):
    """Print from the first process only, so that four processes do not say everything four times.
    """
    if os.environ.get('RANK', '0') == '0':
        print(*words, flush=True)


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
        if sys.stdout:
            sys.stdout.flush()
    except UserError as error:
        print_error(error)
        status = 2
    except BrokenPipeError:  # `| head` has read enough
        status = 0
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENAMETOOLONG):  # where one may not even look
            print_error(error)
        elif error.errno in (errno.ENOSPC, errno.EIO):
            # a full disk, or a terminal that is closed, behind print(); files have sentences
            print_error(f'the output cannot be written: {error.strerror}')
        else:
            raise
        status = 2
    except KeyboardInterrupt:
        print_error('interrupted')
        status = 130
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:  # Python would try once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
