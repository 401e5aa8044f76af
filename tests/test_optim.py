"""Muon and AdamW in one optimizer, their groups and rates, the schedule, float16's loss scale."""
import io
import math

import pytest
import torch

from model import Config, build
from parts.optim import BETA1, BETA2, EPS, WEIGHT_DECAY, MuonAdamW, get_lr, make_optimizer

TABLES = {'model.embed_tokens.weight', 'lm_head.weight'}


def small_model():
    torch.manual_seed(0)
    model = build(Config(vocab_size=50, d_model=32, d_ffn=48, nhead=2, n_layers=2))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model


def set_gradients(params, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * size


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def muon_of(params, dtype=torch.float32):
    group = dict(kind='muon', params=params, lr_mult=1.0, weight_decay=0.0)
    return MuonAdamW([group], lr=1.0, dtype=dtype)


# --- Muon ---

@pytest.mark.parametrize('shape', [(128, 32), (32, 128)])
@pytest.mark.parametrize('size', [1e-3, 1e-8])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_muon_steps_in_every_direction_alike_however_small_the_gradient(shape, size, dtype):
    params = [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)]
    set_gradients(params, seed=0, size=size)
    muon_of(params, dtype).step()
    for p in params:
        u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
        length = 0.2 * math.sqrt(max(shape))
        step = u.T @ -p.data @ v.T / length  # in the gradient's own directions
        lengths = step.diagonal()
        assert lengths.min() > 0.7
        assert lengths.max() < 1.3
        elsewhere = step - lengths.diag()
        assert elsewhere.abs().max() < 0.1


def test_muon_leaves_alone_what_has_no_gradient():
    p = torch.nn.Parameter(torch.ones(8, 4))
    p.grad = torch.zeros(8, 4)
    muon_of([p]).step()
    assert torch.equal(p.data, torch.ones(8, 4))


def test_every_matrix_moves_at_every_step():
    model = small_model()
    optimizer = make_optimizer(model, 'muon', 1e-2, 0.0, True, torch.float32)
    for step in range(5):
        before = weights(model)
        set_gradients(model.parameters(), seed=step)
        optimizer.step()
        for name, p in model.named_parameters():
            assert (p != before[name]).float().mean() > 0.9, (step, name)


# --- AdamW ---

def test_adamw_is_torchs_adamw():
    ours, theirs = small_model(), small_model()
    optimizer = make_optimizer(ours, 'adamw', 1e-2, 0.0, True, torch.float32)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    gains = [p for p in theirs.parameters() if p.ndim == 1]
    reference = torch.optim.AdamW([dict(params=matrices, weight_decay=WEIGHT_DECAY),
                                   dict(params=gains, weight_decay=0.0)],
                                  lr=1e-2, betas=(BETA1, BETA2), eps=EPS)
    for step in range(5):
        set_gradients(ours.parameters(), seed=step)
        set_gradients(theirs.parameters(), seed=step)
        optimizer.step()
        reference.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, msg=name)


# --- groups ---

@pytest.mark.parametrize('optimizer, n_muon', [('muon', 2 * 7), ('adamw', 0)])
def test_every_parameter_is_in_one_group_and_no_table_is_muons(optimizer, n_muon):
    model = small_model()
    names = {p: name for name, p in model.named_parameters()}
    groups = make_optimizer(model, optimizer, 1e-2, 0.0, True, torch.float32).param_groups
    grouped = [names[p] for group in groups for p in group['params']]
    assert sorted(grouped) == sorted(names.values())
    of_muon = [names[p] for group in groups for p in group['params'] if group['kind'] == 'muon']
    assert len(of_muon) == n_muon
    assert not TABLES & set(of_muon)


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_a_saved_optimizer_goes_on_to_the_last_bit(optimizer):
    def step(model, opt, number):
        set_gradients(model.parameters(), seed=number)
        opt.step()

    model = small_model()
    opt = make_optimizer(model, optimizer, 1e-2, 0.1, True, torch.float32)
    for number in range(3):
        step(model, opt, number)
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    file.seek(0)
    model_state, optimizer_state = torch.load(file, weights_only=True)
    resumed = small_model()
    resumed.load_state_dict(model_state)
    resumed_opt = make_optimizer(resumed, optimizer, 1e-2, 0.1, True, torch.float32)
    resumed_opt.load_state_dict(optimizer_state)
    for number in range(3, 6):
        step(model, opt, number)
        step(resumed, resumed_opt, number)
    for (name, p), q in zip(model.named_parameters(), resumed.parameters()):
        assert torch.equal(p, q), name


# --- rates ---

@pytest.mark.parametrize('lr, steps', [(1e-2, 50), (1e-4, 500)])
@pytest.mark.parametrize('warm_start', [False, True])
def test_in_an_epoch_the_tables_forget_the_same_whatever_the_rates_and_steps(lr, steps, warm_start):
    model = small_model()
    for p in model.parameters():
        torch.nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    optimizer = make_optimizer(model, 'muon', lr, 1 / steps, warm_start, torch.float32)
    for group in optimizer.param_groups:
        group['lr'] = lr * group['lr_mult']
    for _ in range(steps):
        optimizer.step()
    for name in TABLES:
        kept = model.get_parameter(name).detach().mean().item()
        assert kept == pytest.approx(math.exp(-1), rel=0.02), name


def test_the_rate_rises_over_a_fiftieth_and_falls_in_a_line_over_the_second_half():
    assert [get_lr(step, 200, 1.0) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert get_lr(100, 200, 1.0) == 1
    assert get_lr(150, 200, 1.0) == pytest.approx(0.5)
    assert get_lr(200, 200, 1.0) == 0
    assert get_lr(0, 1, 3e-3) == 3e-3                         # the shortest run learns, too


# --- float16 ---

def test_a_step_with_an_overflow_is_left_out_and_the_scale_halved():
    model = small_model()
    optimizer = make_optimizer(model, 'muon', 1e-2, 0.0, True, torch.float16)
    scaler = torch.amp.GradScaler('cpu')
    scales, moved = [], []
    for overflow in (0, math.inf, 0):
        before = weights(model)
        set_gradients(model.parameters(), seed=0, size=scaler.get_scale())
        scaler.scale(torch.zeros(()))                         # as before every backward pass
        model.lm_head.weight.grad[0, 0] += overflow
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        same = [torch.equal(p, before[name]) for name, p in model.named_parameters()]
        moved.append((any(same), all(same)))
    assert moved == [(False, False), (True, True), (False, False)]
    assert scales == [2 ** 16, 2 ** 15, 2 ** 15]
