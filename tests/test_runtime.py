"""The machine: formats are measured, compiled passes are checked, failures are sentences."""
import math
from functools import partial

import pytest
import torch

from model import Config, attend, build
from parts import compiling, runtime
from parts.errors import UserError

CPU = torch.device('cpu')


# --- the number format ---

def plant_measurement(monkeypatch, measured):
    """Let the measurement say what it would on another machine: {dtype: (seconds, error)}."""
    def time_products(name, device):
        return measured[name]

    monkeypatch.setattr(runtime, 'time_products', time_products)


@pytest.mark.parametrize('seconds, error, expected', [
    (4e-4, 3e-3, 'bfloat16'),
    (2e-3, 3e-3, 'float32'),      # slower, for it is emulated
    (9e-4, 3e-3, 'float32'),      # not fast enough to be worth its coarseness
    (1e-4, 0.5, 'float32'),       # fast and wrong
    (1e-4, math.inf, 'float32'),  # not even finite
])
def test_the_fastest_format_that_computes_right_is_taken(monkeypatch, seconds, error, expected):
    plant_measurement(monkeypatch, {'float32': (1e-3, 0), 'bfloat16': (seconds, error)})
    dtype, told = runtime.select_dtype('auto', CPU)
    assert dtype == getattr(torch, expected)
    assert told.startswith(expected)
    assert 'float32 1.00 ms' in told


@pytest.mark.parametrize('bfloat16, float16, expected', [
    (1.1e-4, 1.0e-4, 'bfloat16'),  # float16 is not so much faster as to be worth its loss scale
    (2.0e-3, 1.0e-4, 'float16'),   # an older GPU: bfloat16 is emulated
])
def test_of_the_short_formats_the_one_without_a_loss_scale_comes_first(monkeypatch, bfloat16,
                                                                       float16, expected):
    measured = {'float32': (1e-3, 0), 'bfloat16': (bfloat16, 3e-3), 'float16': (float16, 5e-4)}
    plant_measurement(monkeypatch, measured)
    dtype, _ = runtime.select_dtype('auto', torch.device('cuda'))
    assert dtype == getattr(torch, expected)


def test_a_format_asked_for_is_not_measured_against_others(monkeypatch):
    plant_measurement(monkeypatch, {'float32': (1e-3, 0), 'bfloat16': (1e-4, 0)})
    dtype, _ = runtime.select_dtype('float16', CPU)
    assert dtype == torch.float16


def test_the_measurement_itself_finds_every_format_right_here():
    errors = {}
    for name in ('float32', 'bfloat16'):
        seconds, errors[name] = runtime.time_products(name, CPU, seconds=0.01)
        assert 0 < seconds < 10
        assert errors[name] <= runtime.LARGEST_ERROR[name]
    assert errors['bfloat16'] > 0


@pytest.mark.parametrize('name, words', [
    ('cuda:99', 'there'),
    ('tpu', 'it is auto'),
    ('cuda:x', 'it is auto'),
])
def test_a_device_that_is_not_there_is_a_sentence(name, words):
    with pytest.raises(UserError, match=words):
        runtime.select_device(name)


def test_a_second_gpu_where_there_is_one_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with pytest.raises(UserError, match='cuda:7: there are only 1 here, counted from 0'):
        runtime.select_device('cuda:7')


# --- compiled or not ---

@pytest.mark.parametrize('choice, n_flops, expected', [
    ('auto', 1e12, False),
    ('auto', 1e14, True),
    ('true', 0, True),
    ('false', 1e20, False),
    (True, 0, True),
])
def test_compiling_is_decided_by_the_length_of_the_run(choice, n_flops, expected):
    assert compiling.worth_compiling(choice, n_flops, CPU) is expected


def test_a_wrong_choice_is_a_sentence():
    with pytest.raises(UserError, match='true, false or auto'):
        compiling.worth_compiling('yes', 0, CPU)


class WrongGradient(torch.autograd.Function):
    """Forwards the identity; backwards a gradient like that of a broken kernel."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def plant_compiler(monkeypatch, compiled):
    """Let torch.compile give a model that computes compiled(model, *args)."""
    def compile_in_place(model, **_):
        model._compiled_call_impl = partial(compiled, model)

    monkeypatch.setattr(torch.nn.Module, 'compile', compile_in_place)


def plant_broken_compiler(monkeypatch, factor):
    """Let torch.compile give a model whose loss is right and whose gradients are not."""
    def compiled_pass(model, *args):
        return WrongGradient.apply(model.forward(*args), factor)

    plant_compiler(monkeypatch, compiled_pass)


def model_and_pass():
    """A small model, and the function one_pass(dtype) -> loss that leaves gradients in it."""
    torch.manual_seed(0)
    model = build(Config(vocab_size=50, d_model=32, nhead=2, n_layers=1, chunk_size=16))
    x = torch.randint(1, 50, (4, 16))                              # (B, T)

    def one_pass(dtype):
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = model(x, x) / x.numel()
        loss.backward()
        return loss.detach()

    return model, one_pass


@pytest.mark.parametrize('factor, words', [(math.nan, 'is nan'), (1.5, 'in the plain one')])
def test_a_compiled_pass_that_differs_is_not_used(monkeypatch, capsys, factor, words):
    plant_broken_compiler(monkeypatch, factor)
    model, one_pass = model_and_pass()
    compiled, dtype = compiling.compile_and_check(model, one_pass, torch.bfloat16, CPU)
    assert not compiled
    assert dtype == torch.bfloat16
    told = capsys.readouterr().out
    assert told.startswith('not compiled: the gradient of')
    assert words in told
    assert told.count('\n') == 1
    # Nothing of the attempt is left in the model.
    assert model._compiled_call_impl is None
    for p in model.parameters():
        assert p.grad is None


def test_a_wrong_gradient_is_seen_also_behind_the_zeros_of_a_fresh_block(monkeypatch, capsys):
    def attend_wrongly(q, k, v, mask):
        return attend(WrongGradient.apply(q, 1.5), k, v, mask)

    def compiled_pass(model, *args):
        with monkeypatch.context() as patch:
            patch.setattr('model.attend', attend_wrongly)
            return model.forward(*args)

    plant_compiler(monkeypatch, compiled_pass)
    model, one_pass = model_and_pass()
    before = {name: p.clone() for name, p in model.named_parameters()}
    compiled, _ = compiling.compile_and_check(model, one_pass, torch.float32, CPU)
    assert not compiled
    assert 'the gradient of' in capsys.readouterr().out
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_the_run_goes_on_in_float32_where_the_plain_pass_is_not_finite_either(monkeypatch, capsys):
    plant_broken_compiler(monkeypatch, math.nan)
    model, one_pass = model_and_pass()

    def broken_in_bfloat16(dtype):
        loss = one_pass(dtype)
        if dtype == torch.bfloat16:
            model.model.norm.weight.grad.fill_(math.inf)
        return loss

    compiled, dtype = compiling.compile_and_check(model, broken_in_bfloat16, torch.bfloat16, CPU)
    assert not compiled
    assert dtype == torch.float32
    assert 'goes on in float32' in capsys.readouterr().out


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_compiled_pass_that_agrees_is_used(dtype):
    model, one_pass = model_and_pass()
    assert compiling.compile_and_check(model, one_pass, dtype, CPU) == (True, dtype)
    torch._dynamo.reset()


# --- failures ---

GPU_IS_FULL = 'CUDA out of memory. Tried to allocate 2 GiB'
MEMORY_IS_FULL = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"
DISK_IS_FULL = 'No space left on device'
PEER_IS_LOST = '[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242'


@pytest.mark.parametrize('error, words', [
    (torch.OutOfMemoryError(GPU_IS_FULL), 'cpu has too little memory'),
    (RuntimeError(MEMORY_IS_FULL), 'smaller --micro_batch'),
    (OSError(28, DISK_IS_FULL), f'{DISK_IS_FULL}; what was saved before is there still'),
])
def test_what_the_machine_does_is_a_sentence(error, words):
    with pytest.raises(UserError, match=words), runtime.explain_failures(CPU):
        raise error


def test_only_a_lost_peer_is_called_one(monkeypatch, capsys):
    monkeypatch.setattr(runtime, 'world_size', 2)
    with pytest.raises(RuntimeError, match='gloo'), runtime.explain_failures(CPU):
        raise RuntimeError('a bug of ours that mentions gloo and nccl')
    with pytest.raises(SystemExit) as end, runtime.explain_failures(CPU):
        raise RuntimeError(PEER_IS_LOST)
    assert end.value.code == 1
    assert 'another process has ended' in capsys.readouterr().err


def plant_second_host(monkeypatch, other=None):
    """Let a second process hold the checkpoint other, (step, checksum, host); without it, ours."""
    def all_gather_object(copies, mine):
        copies[0] = mine
        copies[1] = other or mine

    monkeypatch.setattr(runtime, 'world_size', 2)
    monkeypatch.setattr(torch.distributed, 'all_gather_object', all_gather_object)


def test_a_stale_copy_of_the_checkpoint_is_named(monkeypatch):
    plant_second_host(monkeypatch, (90, 77, 'second-host'))
    with pytest.raises(UserError, match=r'step 120, but second-host \(step 90\) another one'):
        runtime.check_same_checkpoint(120, 55)


def test_equal_copies_of_the_checkpoint_are_accepted(monkeypatch):
    plant_second_host(monkeypatch)
    runtime.check_same_checkpoint(120, 55)


def test_on_gpus_the_processes_ask_each_other_only_now_and_then(monkeypatch):
    """An answer makes a processor wait for its GPU; on a CPU it costs next to nothing."""
    asked = []

    def all_reduce(tensor):
        asked.append(tensor.item())
        return tensor

    monkeypatch.setattr(runtime, 'world_size', 2)
    monkeypatch.setattr(runtime, 'all_reduce', all_reduce)
    monkeypatch.setattr(runtime.signal, 'signal', lambda number, handler: None)
    stop = runtime.StopRequest()
    assert not stop.heard(CPU, 1)
    stop.hear(runtime.signal.SIGTERM, None)
    assert stop.heard(CPU, 2)
    assert asked == [0, 1]

    gpu = torch.device('cuda')
    monkeypatch.setattr(runtime.torch, 'tensor', lambda value, device: torch.full((), value))
    assert [stop.heard(gpu, step) for step in range(1, 17)] == ([False] * 7 + [True]) * 2
    assert asked == [0, 1, 1, 1]
