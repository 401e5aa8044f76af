"""train.py with the settings a person has: compiled, the format measured, every config file.

Other tests force float32 and no compiling, so that two runs can be compared to the last bit. A
person forces nothing.
"""
import json
import os
import shutil
import subprocess
import time

import pytest
from conftest import ROOT, last_weights, log, python, run, same
from safetensors.torch import load_file

from parts.checkpoint import load_checkpoint, save_checkpoint

needs_compiler = pytest.mark.skipif(not shutil.which('g++'),
                                    reason='torch.compile needs a C++ compiler')
SIZES = ['--d_model=64', '--n_layers=1', '--chunk_size=64', '--batch_size=8', '--eval_tokens=0.01',
         '--n_tokens=0.01']
# As on the machine of a person: two threads may add up in any order, unless train.py orders them.
THREADS = {'OMP_NUM_THREADS': '2'}


def final_loss(folder):
    return float(log(folder)[-1]['val_loss'])


def weight_names(folder):
    return set(load_file(folder / 'model.safetensors'))


def assert_compiled(said):
    assert ', compiled,' in said
    assert 'not compiled' not in said


# --- compiled ---

@needs_compiler
def test_compiled_and_measured_it_computes_what_the_plain_model_does(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SIZES, '--dropout=0.1']
    plain = tmp_path / 'plain'
    run('train.py', *flags, f'--out_dir={plain}', '--compile=false', '--dtype=float32')

    auto = tmp_path / 'auto'
    said = run('train.py', *flags, f'--out_dir={auto}', '--compile=true', env=THREADS).stdout
    assert_compiled(said)
    assert final_loss(auto) == pytest.approx(final_loss(plain), rel=0.02)
    assert weight_names(auto) == weight_names(plain)

    for name in ('float32', 'again'):
        said = run('train.py', *flags, f'--out_dir={tmp_path / name}', '--compile=true',
                   '--dtype=float32', env=THREADS).stdout
        assert_compiled(said)
        assert final_loss(tmp_path / name) == pytest.approx(final_loss(plain), rel=1e-3)
    assert same(last_weights(tmp_path / 'float32'), last_weights(tmp_path / 'again'))


@needs_compiler
def test_two_compiled_processes(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SIZES, '--device=cpu']    # one GPU would not do for two
    run('train.py', *flags, f'--out_dir={tmp_path / "two"}', '--compile=true', nproc=2)
    run('train.py', *flags, f'--out_dir={tmp_path / "one"}', '--compile=false')
    one = final_loss(tmp_path / 'one')
    two = final_loss(tmp_path / 'two')
    assert two == pytest.approx(one, rel=0.02)


def kill_after_first_save(folder, *flags):
    """Start train.py into folder, and kill it as soon as there is a state.pt."""
    words = [*python(), str(ROOT / 'train.py'), *flags, f'--out_dir={folder}']
    environment = {**os.environ, **THREADS}
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    while not (folder / 'state.pt').exists():
        assert running.poll() is None, 'it ended before it was killed'
        time.sleep(0.02)
    running.kill()
    running.wait()


@needs_compiler
def test_compiled_killed_and_resumed(demo, tmp_path):
    """The resumed run takes the format and the compiling of the first one."""
    flags = [f'--data_dir={demo}', *SIZES, '--compile=true', '--dtype=bfloat16',
             '--eval_interval=2', '--dropout=0.1']
    whole = tmp_path / 'whole'
    broken = tmp_path / 'broken'
    run('train.py', *flags, f'--out_dir={whole}', env=THREADS)
    kill_after_first_save(broken, *flags)
    said = run('train.py', '--init_from=resume', f'--out_dir={broken}', env=THREADS).stdout
    assert 'in bfloat16' in said
    assert ', compiled,' in said
    assert same(last_weights(broken), last_weights(whole))


# --- the number format ---

def test_a_resumed_run_keeps_the_format_it_began_with(demo, tmp_path):
    """What was measured once is not measured again: a clock must not change the run."""
    run('train.py', f'--data_dir={demo}', *SIZES, f'--out_dir={tmp_path}', '--eval_interval=5')
    state, _ = load_checkpoint(tmp_path)
    measured = state['computation']['dtype']
    other = {'float32': 'bfloat16', 'bfloat16': 'float32'}[measured]
    state['computation']['dtype'] = other
    state['step'] = 10
    save_checkpoint(tmp_path, state)
    said = run('train.py', '--init_from=resume', f'--out_dir={tmp_path}').stdout
    assert f'in {other}' in said


# --- compilers that are missing or wrong ---

def test_without_a_compiler_it_says_so_and_goes_on(demo, tmp_path):
    no_compiler = {
        'PATH': str(tmp_path), 'CXX': '', 'TORCHINDUCTOR_CACHE_DIR': str(tmp_path / 'cache')}
    out = tmp_path / 'out'
    said = run('train.py', f'--data_dir={demo}', *SIZES, '--compile=true', f'--out_dir={out}',
               env=no_compiler).stdout
    lines = [line for line in said.splitlines() if line.startswith('not compiled: ')]
    assert len(lines) == 1
    assert len(log(out)) > 10


# The failure of one kind of processor: the loss of the compiled model is right, its gradients nan.
BROKEN_COMPILER = '''
import torch

def compile_wrongly(model, **_):
    def call(*args):
        nats, rating_nats = model.forward(*args)
        if nats.requires_grad:
            nats.register_hook(lambda grad: grad * float('nan'))
        return nats, rating_nats
    model._compiled_call_impl = call

torch.nn.Module.compile = compile_wrongly
'''


def test_a_compiler_whose_gradients_are_not_finite_is_not_trusted(demo, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(BROKEN_COMPILER)  # Python imports it by itself
    out = tmp_path / 'out'
    said = run('train.py', f'--data_dir={demo}', *SIZES, '--compile=true', f'--out_dir={out}',
               env={'PYTHONPATH': str(tmp_path)}).stdout
    assert 'not compiled: the gradient of' in said
    assert 'is nan in the compiled pass' in said
    meta = json.loads((out / 'meta.json').read_text('utf-8'))
    assert meta['val_loss'] < 5


# --- config files ---

@pytest.mark.parametrize('name, T, steps, flags', [
    ('demo', 256, 4, []),
    ('kr3', 256, 2, []),
    ('kr3_ffn', 256, 2, []),
    ('kr3_manual', 512, 2, []),
    ('kr3_classic', 256, 2, ['--mode=tokenizer']),
])
def test_every_config_file_trains_with_its_own_sizes(name, T, steps, flags, demo, tmp_path):
    """A few steps of two rows. Depth, width, rate and the length of rows are the file's."""
    million = 4 * T / 1e6
    said = run('train.py', f'config/{name}.py', f'--data_dir={demo}', f'--out_dir={tmp_path}',
               f'--n_tokens={million}', '--batch_size=2', '--epochs=1', *flags).stdout
    assert f'{steps} steps of' in said
    assert log(tmp_path)[-1]['val_loss']
