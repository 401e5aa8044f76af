"""What only a GPU can show. Where there is none, these tests are left out."""
import pytest
import torch
from conftest import SMALL, last_weights, log, random_model, run, same

from parts.machine import compile_parts

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here')
GPU = {'CUDA_VISIBLE_DEVICES': '0'}


def gradients(model, call, x):
    """{name: gradient} of one pass in bfloat16."""
    with torch.autocast('cuda', torch.bfloat16):
        token_loss, _ = call(x, x)
    token_loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def test_a_gpu_computes_what_a_cpu_does():
    """It takes another kernel for attention."""
    model = random_model(d_model=64, chunk_size=64)
    x = torch.randint(0, 50, (3, 64), generator=torch.Generator().manual_seed(0))
    expected = model(x)
    got = model.to('cuda')(x.to('cuda')).cpu()
    assert torch.allclose(got, expected, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize('T', [64, 128, 256])
def test_a_compiled_pass_has_the_gradients_of_the_plain_one(T):
    model = random_model(d_model=64, chunk_size=256).to('cuda')
    x = torch.randint(0, 50, (3, T), device='cuda')
    plain = gradients(model, model, x)
    compile_parts(model)
    compiled = gradients(model, model, x)
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.parametrize('compiled', ['false', 'true'])
def test_a_model_learns_reads_and_writes_on_a_gpu(demo, tmp_path, compiled):
    flags = [*SMALL, '--device=cuda', '--dtype=auto', f'--compile={compiled}', '--log_interval=1']
    said = run('train.py', f'--data_dir={demo}', *flags, f'--out_dir={tmp_path}', env=GPU).stdout
    assert 'not compiled: ' not in said
    losses = [float(row['train_loss']) for row in log(tmp_path)]
    assert losses[-1] < losses[0]
    run('eval.py', f'--model_path={tmp_path}', '--device=cuda', env=GPU)
    run('sample.py', f'--model_path={tmp_path}', '--device=cuda', '--prompt=', env=GPU)


def test_the_same_run_twice_is_the_same_to_the_last_bit(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--device=cuda', '--dropout=0.1', '--n_tokens=0.02']
    run('train.py', *flags, f'--out_dir={tmp_path / "a"}', env=GPU)
    run('train.py', *flags, f'--out_dir={tmp_path / "b"}', env=GPU)
    assert same(last_weights(tmp_path / 'a'), last_weights(tmp_path / 'b'))
