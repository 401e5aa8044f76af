"""A GPU that is not there: the meta device is not the CPU, and a tensor on it has no value to read.

A tensor made on the wrong device cannot be mixed with it; .item() or a branch on a value, which
make a GPU wait, raise there. What must read a value stands outside the step: the log, validation,
whether every text is closed, what eval.py tells. There a planted GPU counts how often it is read.
"""
from contextlib import nullcontext

import pytest
import torch
from conftest import random_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import Config, build, generate, sample_ids
from parts.data import Batch
from parts.guidance import Guided
from parts.optim import make_optimizer
from parts.scoring import log_joint, positive_log_odds, rating_log_probs, surprise
from train import validate

META = torch.device('meta')


class NoFloat64(TorchDispatchMode):
    """Whatever makes a float64 off the CPU raises: Apple's GPUs have none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != 'cpu':
                assert tensor.dtype != torch.float64, func
        return made


class ZerosAreRead(TorchDispatchMode):
    """A copy to the CPU, .item() and a branch find zeros, and are counted: a GPU waits at each."""

    def __init__(self):
        super().__init__()
        self.n_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        source = args[0] if args else None
        if not isinstance(source, torch.Tensor) or source.device != META:
            return func(*args, **(kwargs or {}))
        words = (*args[1:], *(kwargs or {}).values())
        if name in ('_to_copy', 'to') and torch.device('cpu') in words:
            self.n_reads += 1
            return torch.zeros(source.shape, dtype=source.dtype)
        if name in ('_local_scalar_dense', 'item', 'is_nonzero'):
            self.n_reads += 1
            return source.dtype == torch.float32 and 0.0
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=['decoder', 'ffn'])
def model(request):
    return build(Config(vocab_size=50, arch=request.param, d_model=32, d_ffn=48, n_layers=2,
                        nhead=2, chunk_size=16, window=4, dropout=0.1)).to(META)


@pytest.mark.parametrize('is_cuda', [False, True])            # which attention is computed
@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_a_training_step_reads_no_value_of_the_device(monkeypatch, model, optimizer, is_cuda):
    monkeypatch.setattr(torch.Tensor, 'is_cuda', is_cuda, raising=False)
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


def test_a_step_in_float16_reads_one_number(model):
    """Whether a gradient has overflown, which torch's GradScaler asks before the step."""
    optimizer = make_optimizer(model, 'muon', 1e-3, 0.1, True, torch.float16)
    scaler = torch.amp.GradScaler('cpu', enabled=True)
    x = torch.zeros(3, 16, dtype=torch.long, device=META)
    with ZerosAreRead() as reads:
        scaler.scale(model(x, x)[0] / 48).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert reads.n_reads == 1
    assert optimizer.state                                    # nothing has: the step was taken


@pytest.mark.parametrize('guidance', [0, 1.0])
def test_writing_a_token_reads_no_value_of_the_device(model, guidance):
    reader = Guided(model.eval(), [3, 4], guidance) if guidance else model.eval()
    prompt = torch.zeros(3, 20, dtype=torch.long, device=META)           # longer than chunk_size
    with NoFloat64():
        cache = reader.new_cache(3, 24)
        logits = reader.read(prompt, cache)
        ids = sample_ids(logits, temperature=0.8, top_k=5)
        assert reader.read(ids[:, None], cache).shape == (3, 50)


def test_a_batch_is_copied_to_the_device_and_read_nowhere(model):
    x = torch.zeros(4, 16, dtype=torch.long)
    with NoFloat64():
        x, y, ratings = Batch(x, x, x, n_targets=64).rows(1, 3, META)
        model(x, y, ratings, torch.tensor([2, 3], device=META))[0].backward()
    assert x.shape == (2, 16) and x.device == META


@pytest.mark.parametrize('device_type', ['cuda', 'cpu'])
def test_a_copy_to_a_gpu_is_from_pinned_memory_and_beside_the_computing(monkeypatch, device_type):
    called = []
    monkeypatch.setattr(torch.Tensor, 'pin_memory', lambda t: called.append('pinned') or t)
    monkeypatch.setattr(torch.Tensor, 'to', lambda t, *a, **k: called.append((a, k)) or t)
    x = torch.zeros(4, 16, dtype=torch.long)
    device = torch.device(device_type)
    Batch(x, x, x, n_targets=64).rows(0, 2, device)
    copied = ((device,), {'non_blocking': device_type == 'cuda'})
    assert called == (['pinned'] * 3 if device_type == 'cuda' else []) + [copied] * 3


class ValidationOnly:
    """What validate() asks of the data."""
    row_length = chunk_size = 16

    def validation_batch(self, rows):
        x = torch.zeros(len(rows), 16, dtype=torch.long)
        return x, x


def test_validation_reads_one_number_a_pass(model):
    with NoFloat64(), ZerosAreRead() as reads:
        loss = validate(model, ValidationOnly(), [[]] * 6, 2, META, nullcontext())
    assert loss == 0 and reads.n_reads == 3


def test_a_text_is_written_with_one_question_a_token(model):
    """Whether all rows are closed. (The zero it finds says: not yet.)"""
    prompt = torch.zeros(3, 4, dtype=torch.long, device=META)
    with NoFloat64(), ZerosAreRead() as reads:
        columns = list(generate(model.eval(), prompt, 5, banned=(3, 4), top_k=5))
    assert len(columns) == 5 and reads.n_reads == 5


@pytest.mark.parametrize('asked', [True, False])
def test_eval_reads_what_it_needs_once_a_batch(model, asked):
    model.config.reads_ratings = asked
    texts = [list(range(5, 5 + n)) for n in (3, 9, 30)]      # the last in two pieces
    with NoFloat64(), ZerosAreRead() as reads:
        assert [len(nats) for nats, _ in surprise(model, texts)] == [2, 8, 29]
    assert reads.n_reads == 2                                 # nats and hits, of one batch
    with NoFloat64(), ZerosAreRead():
        assert rating_log_probs(model, texts, [3, 4]).shape == (3, 2)
        assert log_joint(model, texts, [3, 4]).shape == (3, 2)
        log_odds, even = positive_log_odds(model, [3, 4], texts, 64)
    assert len(log_odds) == len(even) == 3


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
