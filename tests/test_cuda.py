"""What only a GPU can show. Where there is none, these tests are left out."""
import pytest
import torch
from conftest import SMALL, log, random_model, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here')


@pytest.mark.parametrize('T', [64, 128, 256])
def test_a_compiled_pass_has_the_gradients_of_the_plain_one(T):
    """The compiled one gets the mask as a rule, see Decoder.block_mask."""
    model = random_model(d_model=64, chunk_size=256).to('cuda')
    x = torch.randint(0, 50, (3, T), device='cuda')
    gradients = []
    for call in (model, torch.compile(model, dynamic=False)):
        with torch.autocast('cuda', torch.bfloat16):
            call(x, x).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    plain, compiled = gradients
    for name, gradient in plain.items():
        assert (compiled[name] - gradient).norm() < 0.1 * gradient.norm(), name


@pytest.mark.parametrize('compiled', ['false', 'true'])
def test_a_model_learns_reads_and_writes_on_a_gpu(demo, tmp_path, compiled):
    gpu = {'CUDA_VISIBLE_DEVICES': '0'}
    flags = [*SMALL, '--device=cuda', '--dtype=auto', f'--compile={compiled}', '--log_interval=1']
    said = run('train.py', f'--data_dir={demo}', *flags, f'--out_dir={tmp_path}', env=gpu).stdout
    assert 'not compiled: ' not in said
    losses = [float(row['train_loss']) for row in log(tmp_path)]
    assert losses[-1] < losses[0]
    run('eval.py', f'--model_path={tmp_path}', '--device=cuda', env=gpu)
    run('sample.py', f'--model_path={tmp_path}', '--device=cuda', '--prompt=', env=gpu)
