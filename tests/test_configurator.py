"""Settings: defaults, config files, flags in both forms, and the sentence for a wrong one."""
import ast
import contextlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from configurator import convert, declared_settings, parse

SCRIPT = '''"""A script."""
from configurator import configure
lr = 1e-3        # peak learning rate
epochs = 2       # passes over the data
name = 'kr3'     # 이름
compile = True   # torch.compile
prompt = None    # how it begins
settings = configure(globals(), also={'arch': ('', 'only a check')})
later = 1        # no setting: it stands below the line
print(repr((lr, epochs, name, compile, prompt)))
print(repr((settings.arch, settings.given)))
assert (settings.lr, settings.epochs, settings.prompt) == (lr, epochs, prompt)
assert not hasattr(settings, 'later')
assert 'arch' not in globals()
'''
CONFIGS = {
    'unknown': 'epoch = 1',
    'type': "epochs = 'two'",
    'bool': 'epochs = True',
    'broken': 'lr = 1\nepochs = = 2',
    'raises': 'lr = 1\nepochs = 1 / 0',
    'good': 'import math\n_half = epochs / 2\nlr = 1\nepochs = int(_half * 10)\n',
    'default': 'lr = 1e-3\nname = False',
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
        return ast.literal_eval(done.stdout.splitlines()[0])

    return values


@pytest.fixture
def also_and_given(call):
    """Call SCRIPT with flags; returns (settings.arch, settings.given)."""
    def also_and_given(*args):
        return ast.literal_eval(call(*args).stdout.splitlines()[1])

    return also_and_given


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


def test_what_a_config_file_sets_counts_as_given_also_where_it_is_the_default(also_and_given):
    assert also_and_given('default.py', '--epochs=2') == ('', {'lr', 'name', 'epochs'})
    assert also_and_given() == ('', set())


def test_flags_that_scripts_share_are_accepted_and_stay_out_of_its_names(also_and_given):
    assert also_and_given('--arch=ffn') == ('ffn', {'arch'})


def test_a_choice_of_words_takes_a_bool_from_a_config_file(values):
    """compile = False, where the default is 'auto'."""
    assert values('default.py') == (1e-3, 2, 'false', True, None)


@pytest.mark.parametrize('args, words', [
    (['--learning_rate=1'], "no setting 'learning_rate'"),
    (['--later=2'], "no setting 'later'"),
    (['--epoch=1'], "did you mean 'epochs'?"),
    (['--epochs=1.5'], "--epochs: 'epochs' takes a whole number, not '1.5'"),
    (['--epochs=nan'], 'a whole number'),
    (['--lr=fast'], 'a number'),
    (['--lr=inf'], 'a number'),
    (['--compile=yes'], 'true or false'),
    (['--epochs'], 'needs a value: --epochs=2'),
    (['--compile', '--lr=1'], 'needs a value: --compile=false'),
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


def test_a_name_that_is_not_utf8_is_said_with_escapes(call):
    done = call(b'conf\xb0.py')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and 'conf\\udcb0.py' in done.stderr


def test_help_prints_every_setting_with_its_comment(call):
    done = call('--epochs=7', '--help')
    assert done.returncode == 0
    assert 'A script.' in done.stdout
    assert re.search(r'--epochs=7 +passes over the data', done.stdout)
    assert re.search(r'--name=kr3 +이름', done.stdout)
    assert re.search(r'--prompt=none +how it begins', done.stdout)
    assert re.search(r'--arch= +only a check', done.stdout)


@pytest.mark.parametrize('name, most', [
    ('prepare', 18),
    ('train', 30),
    ('eval', 14),
    ('sample', 14),
])
def test_the_settings_of_a_script_are_few_and_each_has_a_comment(name, most):
    comments = declared_settings((ROOT / f'{name}.py').read_text('utf-8'))
    assert 5 < len(comments) <= most
    assert all(comments.values()), comments


def test_import_reads_no_command_line():
    words = [sys.executable, '-c', 'import prepare; print(prepare.val_ratio)', '--val_ratio=9']
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == '0.1\n', done.stderr


@given(st.integers(-10 ** 12, 10 ** 12))
def test_whole_numbers_come_back(n):
    assert parse(str(n), 0) == n
    assert parse(str(n), 0.0) == n
    assert convert(float(n), 0) == n


@given(st.text())
def test_strings_come_back_verbatim(text):
    assert parse(text, '') == text


@given(st.text(), st.sampled_from([0, 0.0, True]))
def test_nothing_is_raised_but_what_becomes_a_sentence(text, default):
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        assert type(parse(text, default)) is type(default)
