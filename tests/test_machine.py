"""The machine: formats are measured, compiled passes are checked, failures are sentences."""
import math
import os
import signal
from functools import partial

import pytest
import torch
from conftest import random_model, run

from model import Config, build
from parts import machine
from parts.errors import UserError, how_to_wait

CPU = torch.device('cpu')


# --- device ---

@pytest.mark.parametrize('name, words', [
    ('cuda:99', 'there'),
    ('tpu', 'it is auto'),
    ('cuda:x', 'it is auto'),
])
def test_a_device_that_is_not_there_is_a_sentence(name, words):
    with pytest.raises(UserError, match=words):
        machine.select_device(name)


@pytest.mark.parametrize('name, local_rank, device', [
    ('cuda:7', 0, 'cuda:7'), ('auto', 1, 'cuda:1')])          # two processes on one GPU
def test_a_second_gpu_where_there_is_one_is_a_sentence(monkeypatch, name, local_rank, device):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(machine, 'local_rank', local_rank)
    with pytest.raises(UserError, match=f'{device}: there are only 1 here, counted from 0'):
        machine.select_device(name)


@pytest.mark.parametrize('cuda, mps, name, expected', [
    (True, False, 'auto', 'cuda:1'),                          # this process's own
    (True, False, 'cuda:0', 'cuda:0'),
    (True, True, 'auto', 'cuda:1'),
    (False, True, 'auto', 'mps'),
    (True, True, 'cpu', 'cpu'),
])
def test_what_is_selected_where_there_is_a_gpu(monkeypatch, cuda, mps, name, expected):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(machine, 'local_rank', 1)
    taken = []
    monkeypatch.setattr(torch.cuda, 'set_device', taken.append)
    device = machine.select_device(name)
    assert str(device) == expected
    assert taken == ([device] if device.type == 'cuda' else [])


@pytest.fixture
def gpu_without_torch(monkeypatch):
    """A GPU is plugged in, and torch cannot use it."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    monkeypatch.setattr(machine.Path, 'exists', lambda path: str(path) == '/dev/nvidia0')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)


def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(gpu_without_torch, capsys,
                                                                    monkeypatch):
    assert machine.select_device('auto') == CPU
    assert 'there is a GPU here' in capsys.readouterr().err
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')            # a person hides it
    assert machine.select_device('auto') == CPU
    assert not capsys.readouterr().err


def test_under_torchrun_it_is_refused_unless_the_cpu_is_asked_for(gpu_without_torch, monkeypatch):
    monkeypatch.setattr(machine, 'world_size', 4)
    with pytest.raises(UserError, match='or say --device=cpu'):
        machine.select_device('auto')
    assert machine.select_device('cpu') == CPU


# --- number format ---

def plant_measurement(monkeypatch, measured):
    """Let the measurement say what it would on another machine: {dtype: (seconds, error)}."""
    def time_products(name, device):
        return measured[name]

    monkeypatch.setattr(machine, 'time_products', time_products)


@pytest.mark.parametrize('device, measured, expected', [
    ('cpu', {'bfloat16': (4e-4, 3e-3)}, 'bfloat16'),
    ('cpu', {'bfloat16': (2e-3, 3e-3)}, 'float32'),           # slower, for it is emulated
    ('cpu', {'bfloat16': (9e-4, 3e-3)}, 'float32'),           # not worth its coarseness
    ('cpu', {'bfloat16': (1e-4, 0.5)}, 'float32'),            # fast and wrong
    ('cpu', {'bfloat16': (1e-4, math.inf)}, 'float32'),       # not even finite
    # float16 is not so much faster as to be worth its loss scale
    ('cuda', {'bfloat16': (1.1e-4, 3e-3), 'float16': (1.0e-4, 5e-4)}, 'bfloat16'),
    # an older GPU: bfloat16 is emulated
    ('cuda', {'bfloat16': (2.0e-3, 3e-3), 'float16': (1.0e-4, 5e-4)}, 'float16'),
])
def test_the_fastest_format_that_computes_right_is_taken(monkeypatch, device, measured, expected):
    plant_measurement(monkeypatch, {'float32': (1e-3, 0), **measured})
    dtype, how = machine.select_dtype('auto', torch.device(device))
    assert dtype == getattr(torch, expected)
    assert how.startswith(f'{expected} (measured: float32 1.00 ms')


def test_a_format_asked_for_is_not_measured_against_others(monkeypatch):
    plant_measurement(monkeypatch, {})
    assert machine.select_dtype('float16', CPU) == (torch.float16, 'float16 as asked')


@pytest.mark.parametrize('name', ['float32', 'bfloat16'])
def test_the_measurement_itself_finds_every_format_right_here(name):
    seconds, error = machine.time_products(name, CPU, seconds=0.01)
    assert 0 < seconds < math.inf
    assert error <= machine.LARGEST_ERROR[name]
    assert (error > 0) is (name == 'bfloat16')


@pytest.mark.parametrize('arch, expected', [
    ('decoder', 6 * (2 * (4 * 32 * 32 + 3 * 32 * 48) + 50 * 32) + 12 * 2 * 32 * 16),
    ('ffn', 6 * (4 * 32 * 32 + 2 * 3 * 32 * 48 + 50 * 32)),
])
def test_operations_of_a_token(arch, expected):
    """6 for each weight of a matrix but the embedding's, and 12 C T a layer of attention."""
    assert machine.matmul_flops(random_model(arch), 16) == expected


# --- compiled or not ---

@pytest.mark.parametrize('choice, n_flops, expected', [
    ('auto', 1e12, False),
    ('auto', 1e14, True),
    ('true', 0, True),
    ('1', 0, True),
    ('False', 1e20, False),
    ('0', 1e20, False),
])
def test_compiling_is_decided_by_the_length_of_the_run(choice, n_flops, expected):
    assert machine.worth_compiling(choice, n_flops, CPU) is expected


def test_a_run_of_a_minute_is_not_compiled_unless_asked():
    assert not machine.worth_compiling('auto', 1e20, CPU, minutes=1)
    assert machine.worth_compiling('auto', 1e20, CPU, minutes=2)
    assert machine.worth_compiling('true', 1e20, CPU, minutes=1)


class WrongGradient(torch.autograd.Function):
    """Forwards the identity; backwards a gradient like that of a broken kernel."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def scaled_gradients(factor, summed_loss, *args):
    """A compiled loss that is right and whose gradients are all times the factor."""
    return WrongGradient.apply(summed_loss(*args), factor)


def other_loss(summed_loss, *args):
    return summed_loss(*args) * 1.01


def raises(error, summed_loss, *args):
    raise error


def one_scaled_gradient(name, factor, block, *args):
    """A compiled block in which the gradient of one parameter is times the factor."""
    parameters = dict(block.named_parameters())
    parameters[name] = WrongGradient.apply(parameters[name], factor)
    plain = type(block)(block.self_attn.config)
    return torch.func.functional_call(plain, parameters, args)


@pytest.fixture
def check(monkeypatch):
    """check(loss, last_block, dtype) → (model, its weights before, what compile_and_check returns),
    where torch.compile makes a loss that computes loss(summed_loss, *args), and a last block that
    computes last_block(block, *args)."""
    def check(loss=None, last_block=None, dtype=torch.float32):
        torch.manual_seed(0)
        model = build(Config(vocab_size=50, d_model=32, d_ffn=48, nhead=2, n_layers=2,
                             chunk_size=16))

        def compile_block(block, **_):
            if last_block and block is model.model.layers[-1]:
                block._compiled_call_impl = partial(last_block, block)

        def compile_loss(function, **_):
            return partial(loss, function) if loss else function

        monkeypatch.setattr(torch.nn.Module, 'compile', compile_block)
        monkeypatch.setattr(torch, 'compile', compile_loss)
        before = {name: p.clone() for name, p in model.state_dict().items()}
        x = torch.randint(1, 50, (4, 16))                     # (B, T)

        def loss_of():
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                token_loss, _ = model(x, x)
            return token_loss / x.numel()

        outcome = machine.compile_and_check(model, loss_of, loss_of, dtype, CPU)
        return model, before, outcome

    yield check
    torch.compiler.set_stance('default')


DEEP = 'self_attn.q_proj.weight'  # behind zeros in a fresh model


@pytest.mark.parametrize('wrong, words', [
    ({'loss': partial(scaled_gradients, -1)},
     'the gradient of model.embed_tokens.weight is off by 2 '),
    ({'loss': partial(scaled_gradients, 1.5)},
     'the gradient of model.embed_tokens.weight is off by 0.5 '),
    ({'loss': partial(scaled_gradients, math.nan)}, 'is off by nan '),
    ({'last_block': partial(one_scaled_gradient, DEEP, 1.5)},
     f'the gradient of model.layers.1.{DEEP} is off by 0.5 '),
    ({'last_block': partial(one_scaled_gradient, DEEP, 0)},
     f'the gradient of model.layers.1.{DEEP} is off by 1 '),
    ({'loss': other_loss}, 'the loss is off by 0.01 '),
    ({'loss': partial(raises, RuntimeError('no kernel\nfor this\nprocessor'))},
     'no kernel for this'),
    ({'loss': partial(raises, AssertionError())}, 'AssertionError'),
], ids=['negated', 'scaled', 'nan', 'one', 'one zero', 'loss', 'raises', 'raises silently'])
def test_a_compiled_pass_that_differs_is_not_used(check, capsys, wrong, words):
    model, before, outcome = check(**wrong)
    assert outcome == (False, torch.float32)
    said = capsys.readouterr().out
    assert said.startswith('not compiled: ')
    assert words in said
    assert said.count('\n') == 1
    # Nothing of the attempt is left in the model.
    assert all(block._compiled_call_impl is None for block in model.model.layers)
    assert model.summed_loss is type(model).summed_loss
    for name, p in model.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])


def test_the_run_goes_on_in_float32_where_the_plain_pass_is_not_finite_either(monkeypatch, check,
                                                                              capsys):
    plain = machine.gradients

    def gradients(model, make_loss):
        found = plain(model, make_loss)
        found['the gradient of lm_head.weight'][0, 0] = math.inf
        return found

    monkeypatch.setattr(machine, 'gradients', gradients)
    _, _, outcome = check(partial(scaled_gradients, 1), dtype=torch.bfloat16)
    assert outcome == (False, torch.float32)
    assert 'the run goes on in float32' in capsys.readouterr().out


# --- failures ---

GPU_IS_FULL = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')
MEMORY_IS_FULL = RuntimeError('[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: '
                              "can't allocate memory")
PEER_IS_LOST = RuntimeError('[gloo/transport/tcp/pair.cc:538] Connection closed by peer')


@pytest.mark.parametrize('error', [GPU_IS_FULL, MEMORY_IS_FULL])
def test_too_little_memory_is_a_sentence_that_names_the_flag(error):
    with pytest.raises(UserError, match='too little memory; take a smaller --micro_batch'):
        with machine.explain_failures('take a smaller --micro_batch'):
            raise error


def test_a_lost_peer_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(machine, 'world_size', 2)
    with pytest.raises(SystemExit) as end, machine.explain_failures('--micro_batch'):
        raise PEER_IS_LOST
    assert end.value.code == 1
    assert 'another process has ended' in capsys.readouterr().err


@pytest.mark.parametrize('error', [
    RuntimeError('a bug of ours that mentions gloo and nccl'),
    ConnectionResetError('of the network'),
    OSError(28, 'No space left on device', '/elsewhere'),
])
def test_what_is_none_of_these_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(machine, 'world_size', 2)
    with pytest.raises(type(error)), machine.explain_failures('--micro_batch'):
        raise error


# --- neighbours ---

def test_threads_spin_less_beside_others_and_a_persons_word_stands(monkeypatch):
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setattr(os, 'cpu_count', lambda: 10_000)      # there are not so many others
    assert how_to_wait() == {}
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)           # two threads are too many
    assert how_to_wait() == {'GOMP_SPINCOUNT': '100'}
    monkeypatch.setenv('OMP_NUM_THREADS', '1')                # one waits for nobody
    assert how_to_wait() == {}
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    assert how_to_wait() == {}


def test_a_run_says_that_its_threads_spin_less(demo, tmp_path):
    said = run('train.py', f'--data_dir={demo}', f'--out_dir={tmp_path}', '--n_tokens=0.002',
               '--batch_size=2', '--d_model=32', '--n_layers=1', '--dtype=float32',
               env={'OMP_NUM_THREADS': str(os.cpu_count() + 1)}).stdout
    assert 'threads that wait spin 100 times' in said


@pytest.mark.parametrize('ignored', [False, True])
def test_a_terminal_that_closes_asks_the_run_to_stop_unless_nohup_began_it(ignored):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        stop = machine.StopRequest()
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal == (0 if ignored else signal.SIGHUP)
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@pytest.mark.parametrize('n_here, told', [(1, 'there are only 2'), (2, 'one GPU for 2 processes')])
def test_one_gpu_is_not_named_for_several_processes_of_a_machine(n_here, told, monkeypatch):
    monkeypatch.setattr(machine.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(machine.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(machine, 'local_world_size', n_here)
    with pytest.raises(UserError, match=told):
        machine.select_device('cuda:7')
