"""Settings: the literals at the top of a script, changed by config files, changed by the command
line.

    lr = 6e-3  # peak learning rate         in the script: name, default, meaning
    settings = configure(globals())         the one line that hands them over

    python train.py config/kr3.py --lr=1e-3 --compile false          later wins

A config file is a Python program, run with the settings so far in scope: `d_ffn = 4 * d_model`
works, and so would `import os; os.remove(...)`. Run only config files you have read. Every name
that it leaves must be a setting, but for modules and names that begin with _: `import math` works,
and `from math import ceil` does not.
"""
import ast
import builtins
import difflib
import math
import sys
import traceback
import types
from pathlib import Path

TYPE_NAMES = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a string'}


def configure(script_globals, also=None):
    """Change the settings of a script (its globals()) as the command line says; change nothing when
    it is only imported.

    also: {name: (default, comment)} of flags that several scripts accept and one place declares.
    Returns all as a namespace with one attribute each, and `given`, the set of names that a person
    set. Any mistake is one sentence on stderr and exit status 2.
    """
    source = Path(script_globals['__file__']).read_text(encoding='utf-8')
    comments = declared_settings(source)
    own = list(comments)
    defaults = {name: script_globals[name] for name in own}
    for name, (default, comment) in (also or {}).items():
        defaults[name], comments[name] = default, comment
    changed = {}
    if script_globals['__name__'] == '__main__':
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):           # a notebook's streams are of another kind
                # a pipe on a Korean Windows takes cp949; a name in cp949 is printed with escapes
                errors = 'strict' if stream is sys.stdin else 'backslashreplace'
                stream.reconfigure(encoding='utf-8', errors=errors)
        try:
            changed = read_command_line(
                sys.argv[1:], defaults, script_globals['__doc__'], comments)
        except SettingError as error:
            print(f'{Path(sys.argv[0]).name}: {error}', file=sys.stderr)
            raise SystemExit(2) from None
        script_globals.update({name: changed[name] for name in own if name in changed})
    return types.SimpleNamespace(**{**defaults, **changed}, given=set(changed))


class SettingError(Exception):
    """A mistake on the command line or in a config file, in one sentence."""


def declared_settings(source):
    """The settings of a script, read from its source: {name: comment}, in order, up to the call of
    configure.
    """
    comments = {}
    lines = source.splitlines()
    for node in ast.parse(source).body:
        value = getattr(node, 'value', None)
        if isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'configure':
            break
        if not isinstance(node, ast.Assign):
            continue
        name = node.targets[0].id
        line = lines[node.end_lineno - 1].encode()
        after = line[node.end_col_offset:].decode()  # ast counts bytes, not characters
        comments[name] = after.partition('#')[2].strip()
    return comments


def read_command_line(words, defaults, description, comments):
    """{name: value} of every setting that the words change: config files and flags, from left to
    right.
    """
    changed = {}
    while words:
        word = words.pop(0)
        if word in ('--help', '-h'):
            print_help(description, {**defaults, **changed}, comments)
            raise SystemExit(0)
        if word.startswith('--'):
            name, equals, value = word[2:].partition('=')
            if name in defaults and not equals:
                if not words or words[0].startswith('--'):
                    default = defaults[name]
                    example = str(not default if isinstance(default, bool) else default).lower()
                    raise SettingError(f'{word} needs a value: {word}={example}')
                value = words.pop(0)
            changed[name] = checked_value(f'--{name}', name, value, defaults, parse)
        elif word.startswith('-'):
            raise SettingError(f'{word}: settings are written --name=value; --help lists them')
        elif not word.endswith('.py'):
            raise SettingError(f'{word}: a word without -- names a config file, and they end in '
                               '.py; settings are written --name=value')
        else:
            for name, value in run_config_file(word, {**defaults, **changed}).items():
                changed[name] = checked_value(word, name, value, defaults, convert)
    return changed


def run_config_file(path, settings):
    """Run a config file with the settings in scope; returns {name: value} of every public name it
    assigned, also where the value is the default.
    """
    # what the file does not assign is found among the builtins, so its scope holds what it did
    scope = {'__builtins__': {**vars(builtins), **settings}}
    try:
        exec(compile(Path(path).read_bytes(), path, 'exec'), scope)
    except Exception as error:  # whatever it is, the reader wants file, line and reason
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        line = lines[-1] if lines else getattr(error, 'lineno', None)
        where = f'{path}, line {line}' if line else path
        reason = getattr(error, 'strerror', None) or error
        raise SettingError(f'{where}: {reason}') from None
    return {name: value for name, value in scope.items()
            if not name.startswith('_') and not isinstance(value, types.ModuleType)}


def checked_value(where, name, value, defaults, read):
    """The value as one of the default's type, by read(value, default). Raises SettingError."""
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, n=1, cutoff=0.5)
        advice = f"did you mean '{near[0]}'?" if near else '--help lists them'
        raise SettingError(f"{where}: there is no setting '{name}'; {advice}")
    default = defaults[name]
    try:
        return read(value, default)
    except (ValueError, KeyError, OverflowError):
        wanted = TYPE_NAMES.get(type(default), 'a string')
        raise SettingError(f"{where}: '{name}' takes {wanted}, not {value!r}") from None


def parse(text, default):
    """Words of a command line as a value of the default's type. Raises ValueError or KeyError."""
    if isinstance(default, bool):
        return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    if isinstance(default, int):
        digits = text.strip().lstrip('+-')
        return int(text) if digits.isdigit() else convert(float(text), default)
    if isinstance(default, float):
        return convert(float(text), default)
    if default is None and text.lower() == 'none':
        return None
    return text


def convert(value, default):
    """A value given in Python as one of the default's type: 1e3 will do for an int, 1.5 will not.

    Raises ValueError.
    """
    if default is None and (value is None or isinstance(value, str)):
        return value
    if isinstance(default, str) and isinstance(value, bool):  # compile = False, where it is 'auto'
        return str(value).lower()
    if type(value) is type(default):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        return value
    numbers = type(value) in (int, float) and type(default) in (int, float)
    if numbers and type(default)(value) == value:
        return type(default)(value)
    raise ValueError


def print_help(description, values, comments):
    print(description.strip())
    print('\nSettings, as --name=value or in a config file:\n')
    for name, comment in comments.items():
        value = values[name]
        if value is None or isinstance(value, bool):
            value = str(value).lower()
        print(f'  --{f"{name}={value}":30} {comment}')
