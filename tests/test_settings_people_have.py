"""train.py with the settings a person has: compiled, the format measured, every config file.

Other tests force float32 and no compiling, so that two runs can be compared to the last bit. A
person forces nothing.
"""
import shutil

import pytest
from conftest import ROOT, last_weights, log, run, run_ranks, same
from safetensors.torch import load_file

needs_compiler = pytest.mark.skipif(not shutil.which('g++'),
                                    reason='torch.compile needs a C++ compiler')
SIZES = ['--d_model=64', '--n_layers=1', '--chunk_size=64', '--batch_size=8', '--eval_tokens=0.01',
         '--n_tokens=0.01']
# As on the machine of a person: two threads may add up in any order, unless train.py orders them.
TWO_THREADS = 'import torch; torch.set_num_threads(2)'


def assert_compiled(said):
    assert ', compiled,' in said
    assert 'not compiled' not in said


# --- compiled ---

@pytest.fixture(scope='module')
def plain(demo, tmp_path_factory):
    """The folder of a run in float32 that is not compiled."""
    folder = tmp_path_factory.mktemp('plain')
    run('train.py', f'--data_dir={demo}', *SIZES, '--device=cpu', '--compile=false',
        '--dtype=float32', f'--out_dir={folder}')
    return folder


@pytest.mark.long
@needs_compiler
def test_two_compiled_processes_draw_the_curve_of_one(plain, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SIZES, '--compile=true', '--dtype=float32', '--device=cpu',
             f'--out_dir={tmp_path}']                         # one GPU would not do for two
    done = run_ranks('train.py', flags, flags)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-3000:]
    assert_compiled(done[0].stdout)
    for a, b in zip(log(tmp_path), log(plain), strict=True):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)
    names = set(load_file(tmp_path / 'model.safetensors'))
    assert names == set(load_file(plain / 'model.safetensors'))  # no prefix of a compiler's


@pytest.mark.long
@needs_compiler
def test_a_compiled_run_that_is_resumed_is_the_one_that_never_stopped(demo, tmp_path):
    """To the last bit, with two threads, dropout, and the format that is fastest here."""
    flags = [f'--data_dir={demo}', *SIZES, '--compile=true', '--eval_interval=8',
             '--eval_tokens=0.001', '--dropout=0.1']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    (tmp_path / 'sitecustomize.py').write_text(TWO_THREADS)
    env = {'PYTHONPATH': str(tmp_path)}
    assert_compiled(run('train.py', *flags, f'--out_dir={whole}', env=env).stdout)
    broken.mkdir()
    shutil.copy(whole / 'state.before.pt', broken / 'state.pt')
    said = run('train.py', '--init_from=resume', f'--out_dir={broken}', env=env).stdout
    assert_compiled(said)
    assert same(last_weights(broken), last_weights(whole))


# What does not fit what was compiled would run uncompiled, and slowly, without a word. Here it
# raises an error, as validation must.
NO_FALLBACK = '''
import torch

set_stance = torch.compiler.set_stance
torch.compiler.set_stance = lambda stance: set_stance(
    stance.replace('eager_on_recompile', 'fail_on_recompile'))
'''


@pytest.mark.long
@needs_compiler
def test_each_step_of_two_processes_is_compiled(demo, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(NO_FALLBACK)
    flags = [f'--data_dir={demo}', *SIZES, '--compile=true', '--device=cpu', '--log_interval=1',
             '--eval_interval=100', f'--out_dir={tmp_path / "out"}']
    done = run_ranks('train.py', flags, flags, env={'PYTHONPATH': str(tmp_path)})
    assert 'step 18/19 ' in done[0].stdout
    assert 'in validate' in done[0].stderr and 'fail_on_recompile' in done[0].stderr


# --- a compiler that is wrong ---

# A compiler whose loss is right, and whose gradients are all negated.
BROKEN_COMPILER = '''
import torch

def compile_wrongly(function, **_):
    def call(*args):
        loss = function(*args)
        return 2 * loss.detach() - loss
    return call if function.__name__ == 'summed_loss' else function

torch.compile = compile_wrongly
'''


def test_a_compiler_that_negates_every_gradient_is_not_trusted(plain, demo, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(BROKEN_COMPILER)  # Python imports it by itself
    out = tmp_path / 'out'
    said = run('train.py', f'--data_dir={demo}', *SIZES, '--compile=true', '--dtype=float32',
               '--device=cpu', f'--out_dir={out}', env={'PYTHONPATH': str(tmp_path)}).stdout
    lines = [line for line in said.splitlines() if line.startswith('not compiled: ')]
    assert len(lines) == 1
    assert 'the gradient of' in lines[0]
    assert same(last_weights(out), last_weights(plain))


# --- config files ---

@pytest.mark.parametrize('name, T', [
    ('demo', 128), ('kr3', 256), ('kr3_ffn', 256), ('kr3_manual', 512), ('kr3_classic', 256),
    ('shakespeare', 256), ('shakespeare_manual', 256), ('shakespeare_small', 64),
])
def test_every_config_file_trains(name, T, demo, tmp_path):
    """Two steps of two rows, which are as long as the file says; of one layer."""
    said = run('train.py', f'config/{name}.py', f'--data_dir={demo}', f'--out_dir={tmp_path}',
               f'--n_tokens={4 * T / 1e6}', '--batch_size=2', '--epochs=1', '--n_layers=1').stdout
    assert f'2 steps of {2 * T:,} tokens' in said
    assert log(tmp_path)[-1]['val_loss']


def test_no_config_file_is_forgotten():
    tested = test_every_config_file_trains.pytestmark[0].args[1]
    assert {path.stem for path in ROOT.glob('config/*.py')} == {name for name, _ in tested}
