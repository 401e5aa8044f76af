"""Muon, the groups and their rates, the schedule, and float16's loss scale."""
import math

import pytest
import torch

from model import Config, build
from parts import optim
from parts.errors import UserError
from parts.optim import (
    LossScaler,
    Muon,
    load_optimizer_states,
    lr_schedule,
    make_optimizers,
    set_learning_rate,
)
from parts.runtime import matmul_flops


def param_groups(optimizers):
    groups = []
    for optimizer in optimizers:
        groups += optimizer.param_groups
    return groups


@pytest.mark.parametrize('shape', [(128, 32), (32, 128)])
@pytest.mark.parametrize('size', [1e-3, 1e-8])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_muon_steps_in_every_direction_alike_however_small_the_gradient(shape, size, dtype):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)]
    for p in params:
        p.grad = torch.randn(shape) * size
    Muon(params, lr=1.0, weight_decay=0.0, dtype=dtype).step()
    for p in params:
        u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
        length = 0.2 * math.sqrt(max(shape))
        step = u.T @ -p.data @ v.T / length  # in the gradient's own directions
        lengths = step.diagonal()
        assert lengths.min() > 0.7 and lengths.max() < 1.3, lengths
        elsewhere = step - lengths.diag()
        assert elsewhere.abs().max() < 0.1


def test_muon_leaves_alone_what_has_no_gradient():
    p = torch.nn.Parameter(torch.ones(8, 4))
    p.grad = torch.zeros(8, 4)
    Muon([p], lr=1.0, weight_decay=0.0, dtype=torch.float32).step()
    assert torch.equal(p.data, torch.ones(8, 4))


def test_the_matrices_move_at_every_fourth_step_also_after_a_resumption():
    def muon():
        return Muon([p], lr=1.0, weight_decay=0.0, dtype=torch.float32, interval=4)

    p = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = muon()
    moved = []
    for n in range(8):
        p.grad = torch.eye(8, 4)
        before = p.detach().clone()
        optimizer.step()
        moved.append(not torch.equal(p, before))
        if n == 1:
            state = optimizer.state_dict()
            optimizer = muon()
            optimizer.load_state_dict(state)
    assert moved == [False, False, False, True] * 2


def test_muon_takes_about_a_twentieth_of_a_step_of_few_tokens():
    model = build(Config(vocab_size=8000, d_model=256, n_layers=6, nhead=4))

    def interval(n_tokens, steps=400):
        step_flops = matmul_flops(model, 128) * n_tokens
        *_, muon = make_optimizers(model, 'muon', 1e-2, 0.1, torch.float32, True,
                                   steps=steps, step_flops=step_flops)
        return muon.interval

    assert [interval(8 * 256), interval(16 * 256), interval(64 * 256)] == [4, 2, 1]
    assert interval(8 * 256, steps=200) == 1


@pytest.mark.parametrize('n, world_size', [(7, 3), (2, 4)])
def test_each_process_does_its_share_of_the_matrices_and_gets_all(monkeypatch, n, world_size):
    x = torch.randn(n, 6, 4, generator=torch.Generator().manual_seed(0))
    alone = optim.orthogonalize_together(x, torch.float32)
    shares = {}

    def all_gather_into_tensor(everyones, mine):
        shares[optim.rank] = mine
        for rank, share in shares.items():
            everyones.view(world_size, *share.shape)[rank] = share

    monkeypatch.setattr(optim.dist, 'all_gather_into_tensor', all_gather_into_tensor)
    monkeypatch.setattr(optim, 'world_size', world_size)
    for rank in range(world_size):
        monkeypatch.setattr(optim, 'rank', rank)
        together = optim.orthogonalize_together(x, torch.float32)
    assert {len(share) for share in shares.values()} == {math.ceil(n / world_size)}
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
@pytest.mark.parametrize('tied', [False, True])
def test_every_parameter_is_in_one_group(optimizer, tied):
    model = build(Config(vocab_size=50, d_model=32, nhead=2, n_layers=2, tied=tied))
    optimizers = make_optimizers(model, optimizer, 1e-2, 0.1, torch.float32, warm_start=True)
    grouped = []
    for group in param_groups(optimizers):
        grouped += [id(p) for p in group['params']]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
@pytest.mark.parametrize('tied', [False, True])
def test_a_resumed_group_keeps_its_share_of_the_rate(optimizer, tied):
    """The share comes from the code; what a checkpoint says of it does not count."""
    model = build(Config(vocab_size=50, d_model=32, nhead=2, n_layers=2, tied=tied))
    first = make_optimizers(model, optimizer, 1e-2, 0.1, torch.float32, warm_start=True)
    lr_mults = [group['lr_mult'] for group in param_groups(first)]
    states = [opt.state_dict() for opt in first]
    for state in states:
        for group in state['param_groups']:
            group['lr_mult'] = 77.0

    resumed = make_optimizers(model, optimizer, 1e-2, 0.1, torch.float32, warm_start=True)
    load_optimizer_states(resumed, states)
    set_learning_rate(resumed, 1e-3)
    rates = [group['lr'] for group in param_groups(resumed)]
    assert rates == [1e-3 * lr_mult for lr_mult in lr_mults]


@pytest.mark.parametrize('lr, steps', [(1e-2, 50), (1e-4, 500)])
@pytest.mark.parametrize('warm_start', [False, True])
@pytest.mark.parametrize('tied', [False, True])
def test_in_an_epoch_the_tables_forget_the_same_whatever_the_rates_and_steps(lr, steps, warm_start,
                                                                             tied):
    model = build(Config(vocab_size=50, d_model=32, nhead=2, n_layers=2, tied=tied))
    tables = {'model.embed_tokens.weight', 'lm_head.weight'}
    for p in model.parameters():
        torch.nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    optimizers = make_optimizers(model, 'muon', lr, 0.0, torch.float32, warm_start,
                                 table_decay=1 / steps)
    set_learning_rate(optimizers, lr)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.step()
    for name, p in model.named_parameters():
        left = math.exp(-1) if name in tables else 1
        assert p.detach().mean().item() == pytest.approx(left, rel=0.02), name


def test_an_unknown_optimizer_is_refused():
    model = build(Config(vocab_size=50, d_model=32, nhead=2, n_layers=1))
    with pytest.raises(UserError, match="'muon' or 'adamw'"):
        make_optimizers(model, 'sgd', 1e-2, 0.1, torch.float32, warm_start=False)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine():
    assert [lr_schedule(step, 100, warmup=4) for step in range(4)] == [0.25, 0.5, 0.75, 1]
    assert lr_schedule(52, 100, warmup=4) == pytest.approx(0.5)
    assert lr_schedule(100, 100, warmup=4) == pytest.approx(0)
    assert lr_schedule(0, 500) == 0.1  # a fiftieth of the run


def test_one_overflow_holds_back_the_whole_step_and_halves_the_scale():
    scaler = LossScaler(torch.float16)
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.full((2,), 2.0 ** 16)
    scaler.unscale([p])
    assert p.grad.tolist() == [1, 1]
    assert scaler.allows_step(torch.tensor(1.0))
    assert scaler.scale == 2 ** 16
    assert not scaler.allows_step(torch.tensor(math.inf))
    assert scaler.scale == 2 ** 15
    assert not scaler.allows_step(torch.tensor(math.nan))
    assert scaler.scale == 2 ** 14


def test_the_scale_outlives_a_resumption_and_grows_again_after_2000_sound_steps():
    scaler = LossScaler(torch.float16)
    for _ in range(2):
        scaler.allows_step(torch.tensor(math.inf))
    resumed = LossScaler(torch.float16)
    resumed.load_state_dict(scaler.state_dict())
    assert resumed.scale == 2 ** 14
    for _ in range(2000):
        resumed.allows_step(torch.tensor(1.0))
    assert resumed.scale == 2 ** 15


def test_float32_needs_no_scale():
    assert LossScaler(torch.float32).scale == 1
