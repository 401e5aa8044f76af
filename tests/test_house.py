"""The plan of the house: few rooms, imports one way, small functions, and a step one can hold."""
import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT, run

SCRIPTS = {'prepare', 'train', 'eval', 'sample'}
OURS = {'prepare', 'train', 'eval', 'sample', 'parts', 'model', 'configurator', 'bench'}
ROOMS = sorted([*ROOT.glob('*.py'), *ROOT.glob('parts/[!_]*.py')])
CODE = [*ROOMS, *sorted(ROOT.glob('bench/*.py')), *sorted(ROOT.glob('tests/*.py'))]
MOST_ROOMS = 22
LONGEST_FUNCTION = 60  # lines; the story of train.py may be longer
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


def test_the_rooms_are_few():
    assert len(ROOMS) <= MOST_ROOMS


def allowed(path):
    """Which of ours a room may import: scripts → parts → model; the libraries are free."""
    if path.parent.name == 'parts':
        return {'parts', 'model'}
    return {'parts', 'model', 'configurator'} if path.stem in SCRIPTS else set()


@pytest.mark.parametrize('path', ROOMS, ids=lambda path: path.stem)
def test_arrows_run_from_scripts_to_parts_to_model_and_configurator(path):
    assert imported(path) & OURS <= allowed(path)


@pytest.mark.parametrize('name, needs', [
    ('model', {'math', 'dataclasses', 'torch'}),
    ('configurator', sys.stdlib_module_names),
])
def test_the_model_needs_torch_alone_and_the_configurator_nothing(name, needs):
    assert imported(ROOT / f'{name}.py') <= needs


def test_preparing_starts_without_torch():
    code = 'import prepare, sys; print({"torch", "parts.grammar"} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == 'set()\n', done.stderr


@pytest.mark.parametrize('path', CODE, ids=lambda path: path.stem)
def test_every_function_fits_on_a_screen(path):
    lines = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            lines[path.stem, node.name] = node.end_lineno - node.lineno + 1
    lines.pop(('train', 'main'), None)
    assert max(lines.values(), default=0) <= LONGEST_FUNCTION, lines


@pytest.mark.parametrize('name', ['README.md', 'README.ko.md'])
def test_the_readme_counts_the_lines_of_its_lessons(name):
    wrong = []
    for line in (ROOT / name).read_text('utf-8').splitlines():
        row = re.fullmatch(r'\| \d \| (.*) \| ([\d, ]+) \|.*', line)
        if row:
            files = re.findall(r'`([\w/]+\.py)`', row[1])
            counts = [len((ROOT / file).read_text('utf-8').splitlines()) for file in files]
            if row[2] != ', '.join(map(str, counts)):
                wrong.append(f'{files}: {counts}')
    assert not wrong, wrong


def test_every_line_fits_on_a_page():
    too_long = []
    for path in [*CODE, *ROOT.glob('config/*.py')]:
        for number, line in enumerate(path.read_text('utf-8').splitlines(), start=1):
            if len(line) > LONGEST_LINE:
                too_long.append(f'{path.relative_to(ROOT)}:{number} has {len(line)} characters')
    assert not too_long, '\n'.join(too_long)


def test_one_step_fits_in_the_head(demo, tmp_path):
    """At most 20 functions of ours in 4 files, 300 lines, run in every step of the loop."""
    flags = [f'--data_dir={demo}', f'--out_dir={tmp_path}', '--d_model=32', '--n_layers=1',
             '--chunk_size=64', '--batch_size=4', '--n_tokens=0.00768', '--eval_tokens=0.001',
             '--compile=false', '--device=cpu', '--dtype=float32', '--log_interval=1000',
             '--eval_interval=1000']
    said = run('tests/step_weight.py', '30', 'train.py', *flags).stdout
    figures = re.search(r'(\d+) functions in (\d+) files run in every step: (\d+) lines$',
                        said.strip())
    n_functions, n_files, n_lines = map(int, figures.groups())
    assert n_functions <= 20, said
    assert n_files <= 4, said
    assert n_lines <= 300, said
    assert 'parts/data.py: batch, line' in said               # what is surely in there was seen
