"""Settings: defaults, config files, flags in both forms, and what is said when one of them is wrong."""
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from configurator import convert, fit

SCRIPT = '''"""A script."""
from configurator import configure
lr = 1e-3        # peak learning rate
epochs = 2       # passes over the data
name = 'kr3'     # 이름
compile = True   # torch.compile
prompt = None    # how it begins
configure(globals())
print(repr((lr, epochs, name, compile, prompt)))
'''


@pytest.fixture
def script(tmp_path):
    (tmp_path / 's.py').write_text(SCRIPT, 'utf-8')

    def call(*args):
        done = subprocess.run([sys.executable, 's.py', *args], cwd=tmp_path, text=True, capture_output=True, env={'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '1'})
        return eval(done.stdout) if done.returncode == 0 and '--help' not in args else done
    call.folder = tmp_path
    return call


def test_flags_in_both_forms_later_wins(script):
    assert script() == (1e-3, 2, 'kr3', True, None)
    assert script('--lr=1', '--epochs', '1e3', '--name=a=b', '--compile', 'false') == (1.0, 1000, 'a=b', False, None)
    assert script('--epochs=3', '--epochs=4', '--compile=0', '--prompt=없음', '--name', '') == (1e-3, 4, '', False, '없음')
    assert script('--prompt=x', '--prompt=none') == (1e-3, 2, 'kr3', True, None)


def test_config_file_sees_the_settings_so_far(script):
    (script.folder / 'c.py').write_text('import math\n_half = epochs / 2\nlr = 1\nepochs = int(_half * 10)\n')
    assert script('--epochs=4', 'c.py', '--name=z') == (1.0, 20, 'z', True, None)
    assert script('c.py', '--epochs=3')[1] == 3


@pytest.mark.parametrize('args, words', [
    (['--learning_rate=1'], "no setting 'learning_rate'"),
    (['--epoch=1'], "did you mean 'epochs'?"),
    (['--epochs=1.5'], "--epochs: 'epochs' takes a whole number, not '1.5'"),
    (['--epochs=nan'], 'a whole number'),
    (['--lr=fast'], 'a number'),
    (['--lr=inf'], 'a number'),
    (['--compile=yes'], 'true or false'),
    (['--epochs'], 'needs a value'),
    (['--epochs', '--lr=1'], 'needs a value'),
    (['-e'], '--name=value'),
    (['missing.py'], 'missing.py: No such file'),
    (['unknown.py'], "unknown.py: there is no setting 'epoch'; did you mean 'epochs'?"),
    (['type.py'], "type.py: 'epochs' takes a whole number, not 'two'"),
    (['bool.py'], "'epochs' takes a whole number, not True"),
    (['broken.py'], 'broken.py, line 2'),
    (['raises.py'], 'raises.py, line 2: division by zero'),
])
def test_mistakes_are_one_sentence(script, args, words):
    for name, text in {'unknown': 'epoch = 1', 'type': "epochs = 'two'", 'bool': 'epochs = True', 'broken': 'lr = 1\nepochs = = 2', 'raises': 'lr = 1\nepochs = 1 / 0'}.items():
        (script.folder / f'{name}.py').write_text(text)
    done = script(*args)
    assert done.returncode == 2 and done.stdout == ''
    assert words in done.stderr and done.stderr.count('\n') == 1, done.stderr


def test_help_prints_every_setting_with_its_comment(script):
    done = script('--epochs=7', '--help')
    assert done.returncode == 0 and 'A script.' in done.stdout
    assert re.search(r'--epochs=7 +passes over the data', done.stdout)
    assert re.search(r'--name=kr3 +이름', done.stdout) and re.search(r'--prompt=none +how it begins', done.stdout)


@pytest.mark.parametrize('name', ['prepare', 'train', 'eval', 'sample'])
def test_every_setting_of_every_script_has_a_comment(name):
    done = subprocess.run([sys.executable, f'{name}.py', '--help'], cwd=ROOT, text=True, capture_output=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('  --')]
    assert done.returncode == 0 and len(lines) > 10
    assert all(re.fullmatch(r'  --\w+=.*? +\S.*', line) for line in lines)


def test_import_reads_no_command_line():
    done = subprocess.run([sys.executable, '-c', 'import prepare; print(prepare.val_ratio)', '--val_ratio=9'], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == '0.1\n', done.stderr


@given(st.integers(-10**12, 10**12))
def test_whole_numbers_come_back(n):
    assert convert(str(n), 0) == n and fit(float(n), 0) == n and convert(str(n), 0.0) == n


@given(st.text())
def test_strings_come_back_verbatim_and_nothing_but_a_value_error_is_raised(text):
    assert convert(text, '') == text
    for default in (0, 0.0, True):
        try:
            assert type(convert(text, default)) is type(default)
        except (ValueError, KeyError, OverflowError):
            pass
