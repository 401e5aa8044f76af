"""The plan of the house: imports run one way, functions fit on a screen, lines on a page."""
import ast

import pytest
from conftest import ROOT

SCRIPTS = {'prepare', 'train', 'eval', 'sample'}
OURS = {'prepare', 'train', 'eval', 'sample', 'parts', 'model', 'configurator'}
CODE = sorted([*ROOT.glob('*.py'), *ROOT.glob('parts/*.py')])
FILES = [*CODE, *sorted(ROOT.glob('tests/*.py'))]
CONFIGS = sorted(ROOT.glob('config/*.py'))
LONGEST_FUNCTION = 60  # lines
LONGEST_LINE = 100     # characters; a Hangul syllable is one, though it is drawn twice as wide


def parse(path):
    return ast.parse(path.read_text('utf-8'))


def imported(path):
    """The set of the first words of everything that a file imports, wherever in it."""
    names = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.split('.')[0] for name in names}


@pytest.mark.parametrize('path', CODE, ids=lambda path: path.stem)
def test_arrows_run_from_scripts_to_parts_to_model_and_configurator(path):
    ours = imported(path) & OURS
    assert not ours & SCRIPTS, f'{path.name} imports a script'
    if path.parent.name == 'parts':
        assert ours <= {'parts', 'model'}
    elif path.stem in ('model', 'configurator'):
        assert not ours


def test_the_model_needs_torch_alone():
    assert imported(ROOT / 'model.py') == {'math', 'dataclasses', 'torch'}


def test_data_holds_no_code():
    assert not list((ROOT / 'data').rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_function_fits_on_a_screen(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            n_lines = node.end_lineno - node.lineno + 1
            assert n_lines <= LONGEST_FUNCTION, f'{path.name}: {node.name} has {n_lines} lines'


def test_every_line_fits_on_a_page():
    too_long = []
    for path in [*FILES, *CONFIGS]:
        for number, line in enumerate(path.read_text('utf-8').splitlines(), start=1):
            if len(line) > LONGEST_LINE:
                too_long.append(f'{path.relative_to(ROOT)}:{number} has {len(line)} characters')
    assert not too_long, '\n'.join(too_long)
