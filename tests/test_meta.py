"""A GPU that is not there: the meta device is not the CPU, and a tensor on it has no value to read.

A tensor made on the wrong device cannot be mixed with it; .item() or a branch on a value, which
make a GPU wait, raise there. What must read a value stands outside the step: the log, validation,
whether every text is closed.
"""
import pytest
import torch
from conftest import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import Config, build, sample_ids
from parts.guidance import Guided
from parts.optim import make_optimizer

META = torch.device('meta')


class NoFloat64(TorchDispatchMode):
    """Whatever makes a float64 off the CPU raises: Apple's GPUs have none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != 'cpu':
                assert tensor.dtype != torch.float64, func
        return made


@pytest.fixture(params=['decoder', 'ffn'])
def model(request):
    return build(Config(vocab_size=50, arch=request.param, d_model=32, d_ffn=48, n_layers=2,
                        nhead=2, chunk_size=16, window=4, dropout=0.1)).to(META)


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_a_training_step_reads_no_value_of_the_device(model, optimizer):
    optimizer = make_optimizer(model, optimizer, 1e-3, 0.1, True, torch.float32)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    x = torch.zeros(3, 16, dtype=torch.long, device=META)
    rating_ids = torch.tensor([2, 3], device=META)
    with NoFloat64():
        token_loss, rating_loss = model(x, x, x, rating_ids)
        scaler.scale((token_loss + rating_loss) / 48).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert states and all(tensor.device == META for tensor in states)


@pytest.mark.parametrize('guidance', [0, 1.0])
def test_writing_a_token_reads_no_value_of_the_device(model, guidance):
    reader = Guided(model.eval(), [3, 4], guidance) if guidance else model.eval()
    prompt = torch.zeros(3, 20, dtype=torch.long, device=META)           # longer than chunk_size
    with NoFloat64():
        cache = reader.new_cache(3, 24)
        logits = reader.read(prompt, cache)
        ids = sample_ids(logits, temperature=0.8, top_k=5)
        assert reader.read(ids[:, None], cache).shape == (3, 50)


def test_forward_and_backward_are_one_graph_each():
    """As for torch.compile on a GPU, but for the kernels; a break of the graph would raise."""
    model = random_model()
    x = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))

    def gradients(network):
        token_loss, rating_loss = network(x, x, x % 2, torch.tensor([2, 3]))
        return torch.autograd.grad(token_loss + rating_loss, list(model.parameters()))

    traced = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=False)
    for got, plain in zip(gradients(traced), gradients(model)):
        assert torch.allclose(got, plain, rtol=1e-4, atol=1e-5)
