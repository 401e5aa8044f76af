"""Settings: defaults, config files, flags in both forms, and the sentence for a wrong one."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from configurator import convert, parse

SCRIPT = '''"""A script."""
from configurator import configure
lr = 1e-3        # peak learning rate
epochs = 2       # passes over the data
name = 'kr3'     # 이름
compile = True   # torch.compile
prompt = None    # how it begins
settings = configure(globals())
later = 1        # no setting: it stands below the line
print(repr((lr, epochs, name, compile, prompt)))
assert (settings.lr, settings.epochs, settings.prompt) == (lr, epochs, prompt)
assert not hasattr(settings, 'later')
'''
CONFIGS = {
    'unknown': 'epoch = 1',
    'type': "epochs = 'two'",
    'bool': 'epochs = True',
    'broken': 'lr = 1\nepochs = = 2',
    'raises': 'lr = 1\nepochs = 1 / 0',
    'good': 'import math\n_half = epochs / 2\nlr = 1\nepochs = int(_half * 10)\n',
}


@pytest.fixture
def call(tmp_path):
    """Call SCRIPT with flags, beside the files of CONFIGS; returns a CompletedProcess."""
    (tmp_path / 's.py').write_text(SCRIPT, 'utf-8')
    for name, text in CONFIGS.items():
        (tmp_path / f'{name}.py').write_text(text)
    environment = {'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': 'cp949'}

    def call(*args):
        words = [sys.executable, 's.py', *args]
        return subprocess.run(words, cwd=tmp_path, encoding='utf-8', capture_output=True,
                              env=environment)

    return call


@pytest.fixture
def values(call):
    """Call SCRIPT with flags; returns the values (lr, epochs, name, compile, prompt) it has."""
    def values(*args):
        done = call(*args)
        assert done.returncode == 0, done.stderr
        return ast.literal_eval(done.stdout)

    return values


def test_defaults_are_the_literals_of_the_script(values):
    assert values() == (1e-3, 2, 'kr3', True, None)


def test_flags_in_both_forms_later_wins(values):
    flags = ['--lr=1', '--epochs', '1e3', '--name=a=b', '--compile', 'false']
    assert values(*flags) == (1.0, 1000, 'a=b', False, None)
    flags = ['--epochs=3', '--epochs=4', '--compile=0', '--prompt=없음', '--name', '']
    assert values(*flags) == (1e-3, 4, '', False, '없음')
    flags = ['--prompt=x', '--prompt=none']
    assert values(*flags) == (1e-3, 2, 'kr3', True, None)


def test_config_file_sees_the_settings_so_far(values):
    assert values('--epochs=4', 'good.py', '--name=z') == (1.0, 20, 'z', True, None)
    assert values('good.py', '--epochs=3') == (1.0, 3, 'kr3', True, None)


@pytest.mark.parametrize('args, words', [
    (['--learning_rate=1'], "no setting 'learning_rate'"),
    (['--later=2'], "no setting 'later'"),
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
def test_mistakes_are_one_sentence(call, args, words):
    done = call(*args)
    assert done.returncode == 2
    assert done.stdout == ''
    assert words in done.stderr
    assert done.stderr.count('\n') == 1, done.stderr


def test_help_prints_every_setting_with_its_comment(call):
    done = call('--epochs=7', '--help')
    assert done.returncode == 0
    assert 'A script.' in done.stdout
    assert re.search(r'--epochs=7 +passes over the data', done.stdout)
    assert re.search(r'--name=kr3 +이름', done.stdout)
    assert re.search(r'--prompt=none +how it begins', done.stdout)


@pytest.mark.parametrize('name', ['prepare', 'train', 'eval', 'sample'])
def test_every_setting_of_every_script_has_a_comment(name):
    words = [sys.executable, f'{name}.py', '--help']
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith('  --')]
    assert len(lines) > 10
    for line in lines:
        assert re.fullmatch(r'  --\w+=.*? +\S.*', line), line


def test_import_reads_no_command_line():
    words = [sys.executable, '-c', 'import prepare; print(prepare.val_ratio)', '--val_ratio=9']
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == '0.1\n', done.stderr


@given(st.integers(-10 ** 12, 10 ** 12))
def test_whole_numbers_come_back(n):
    assert parse(str(n), 0) == n
    assert parse(str(n), 0.0) == n
    assert convert(float(n), 0) == n


@given(st.text(), st.sampled_from([0, 0.0, True]))
def test_strings_come_back_verbatim_and_nothing_but_a_value_error_is_raised(text, default):
    assert parse(text, '') == text
    try:
        assert type(parse(text, default)) is type(default)
    except (ValueError, KeyError, OverflowError):
        pass
