"""Settings: the literals at the top of a script, changed by config files, changed by the command line.

    lr = 4e-3  # peak learning rate                      in the script: name, default, meaning
    configure(globals())                                 the one line that hands them over

    python train.py config/kr3.py --lr=1e-3 --compile false          later wins

A config file is a Python program, run with the settings so far in scope: `warmup = epochs * 10` works, and so would
`import os; os.remove(...)`. Run only config files you have read.
"""
import ast
import difflib
import os
import sys
import traceback
import types
from contextlib import contextmanager
from pathlib import Path


def say(*words, file=None):
    """Print; under torchrun only the first process speaks."""
    if os.environ.get('RANK', '0') == '0':
        print(*words, file=file, flush=True)


def refuse(sentence):
    """A person's mistake: one sentence on stderr, exit status 2."""
    say(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def whole(path, mode='w'):
    """Open a file that appears under its name complete or not at all: written beside it, then renamed over it."""
    part = Path(f'{path}.part')
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, encoding=None if 'b' in mode else 'utf-8', newline=None if 'b' in mode else '') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # a rename must not overtake the bytes it names when the power fails
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def declared(source):
    """The settings of a script, read from its source: {name: comment}, in order, up to the call of configure."""
    names = {}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if getattr(getattr(getattr(node, 'value', None), 'func', None), 'id', '') == 'configure':
            break
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            rest = lines[node.end_lineno - 1].encode()[node.end_col_offset:].decode()  # ast counts bytes, not characters
            names[node.targets[0].id] = rest.partition('#')[2].strip()
    return names


def convert(text, default):
    """The words of a command line as a value of the default's type. Raises ValueError."""
    if isinstance(default, bool):
        return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    if isinstance(default, int):
        return int(text) if text.strip().lstrip('+-').isdigit() else fit(float(text), default)
    if isinstance(default, float):
        return fit(float(text), default)
    return None if default is None and text.lower() == 'none' else text


def fit(value, default):
    """A value given in Python (a config file's, or a number just read) as one of the default's type. Raises ValueError."""
    if isinstance(default, bool) or isinstance(value, bool) or default is None or isinstance(default, str):
        if type(value) is type(default) or (default is None and isinstance(value, str)) or value is None is default:
            return value
    elif isinstance(value, (int, float)) and value == value and abs(value) != float('inf'):
        if type(default)(value) == value:  # 1e3 will do for an int, 1.5 will not
            return type(default)(value)
    raise ValueError


def configure(settings, argv=None):
    """Change the settings of a script (its globals()) as the command line says; do nothing when it is only imported.

    Returns the set of names that a person gave. Any mistake is one sentence on stderr and exit status 2."""
    if settings['__name__'] != '__main__':
        return set()
    source = Path(settings['__file__']).read_text(encoding='utf-8')
    comments, given = declared(source), set()
    defaults = {name: settings[name] for name in comments}

    def put(where, name, value, read):
        if name not in comments:
            near = difflib.get_close_matches(name, comments, 1, 0.5)
            refuse(f"{where}: there is no setting '{name}'" + (f"; did you mean '{near[0]}'?" if near else '; --help lists them'))
        kind = 'a string' if defaults[name] is None else {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a string'}[type(defaults[name])]
        try:
            settings[name] = read(value, defaults[name])
        except (ValueError, KeyError, OverflowError):
            refuse(f"{where}: '{name}' takes {kind}, not {value!r}")
        given.add(name)

    words = list(sys.argv[1:] if argv is None else argv)
    while words:
        word = words.pop(0)
        if word in ('--help', '-h'):
            print(f'{settings["__doc__"].strip()}\n\nSettings, as --name=value or in a config file:\n')
            for name, comment in comments.items():
                print(f'  --{name + "=" + (str(settings[name]).lower() if type(settings[name]) in (bool, type(None)) else str(settings[name])):30} {comment}')
            raise SystemExit(0)
        if word.startswith('--'):
            name, equals, value = word[2:].partition('=')
            if name in comments and not equals:
                if not words or words[0].startswith('--'):
                    refuse(f'{word} needs a value: {word}={str(defaults[name]).lower()}')
                value = words.pop(0)
            put(word.partition('=')[0], name, value, convert)
        elif word.startswith('-'):
            refuse(f'{word}: settings are written --name=value; --help lists them')
        else:
            scope = {name: settings[name] for name in comments}
            try:
                exec(compile(Path(word).read_bytes(), word, 'exec'), scope)
            except Exception as e:  # whatever a config file may raise, the reader wants the file, the line and the reason
                at = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == word] or [getattr(e, 'lineno', None)]
                refuse(f'{word}' + (f', line {at[-1]}' if at[-1] else '') + f': {getattr(e, "strerror", None) or e}')
            for name, value in scope.items():
                new = name not in comments or value is not settings[name]
                if new and not name.startswith('_') and not isinstance(value, types.ModuleType):
                    put(word, name, value, fit)
    return given

