"""The machine a script runs on: its processes, its device, its number format and how fast it
multiplies, what its compiler made, and the signal to stop.

torchrun starts world_size processes and tells each its rank; without it there is one, of rank 0.
"""
import ctypes
import math
import os
import re
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.distributed as dist

from parts.errors import UserError, print0, print_error, run_script

rank = int(os.environ.get('RANK', 0))
local_rank = int(os.environ.get('LOCAL_RANK', 0))
world_size = int(os.environ.get('WORLD_SIZE', 1))
local_world_size = int(os.environ.get('LOCAL_WORLD_SIZE', 1))  # of this machine alone

DTYPES = ('auto', 'bfloat16', 'float16', 'float32')
CANDIDATES = {
    'cpu': ('float32', 'bfloat16'),
    'cuda': ('float32', 'bfloat16', 'float16'),  # float16 last: it needs a loss scale
}
# the largest error that a product may have, relative to its size
LARGEST_ERROR = {'float32': 1e-4, 'float16': 5e-3, 'bfloat16': 2e-2}
WORTH_IT = 1.2  # a format must be this many times faster to be chosen


# --- device ---

def select_device(name='auto'):
    """The torch.device that is named, or the fastest kind there is. Raises UserError."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == 'auto':
        name = 'cuda' if cuda else 'mps' if mps and world_size == 1 else 'cpu'
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1', 'NoDevFiles')
        if name == 'cpu' and Path('/dev/nvidia0').exists() and not hidden:
            sentence = ('there is a GPU here (/dev/nvidia0), but torch cannot use it: its driver '
                        'is too old for this torch, or this torch was built without CUDA')
            if world_size > 1:                                # torchrun started them for it
                raise UserError(f'{sentence}; mend that, or say --device=cpu')
            print(f'{sentence}; going on with the CPU', file=sys.stderr)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device='{name}': it is auto, cpu, cuda, cuda:1 … or mps") from None
    if not {'cuda': cuda, 'mps': mps, 'cpu': True}.get(device.type):
        raise UserError(f'device={name}: there is none here; --device=auto takes what there is')
    if device.type == 'cuda':
        if device.index is not None and local_world_size > 1:
            raise UserError(f'device={name} is one GPU for {local_world_size} processes; '
                            'with --device=cuda each takes its own')
        index = local_rank if device.index is None else device.index
        n_devices = torch.cuda.device_count()
        if index >= n_devices:
            raise UserError(f'device=cuda:{index}: there are only {n_devices} here, counted from 0')
        device = torch.device('cuda', index)
        torch.cuda.set_device(device)
    return device


def keep_freed_memory(device):
    """Tell glibc to keep large blocks that were freed: else each step gets them anew from the
    system, page by page.
    """
    if device.type == 'cpu' and sys.platform == 'linux':
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # not every libc has it
        if mallopt:
            M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


# --- number format ---

def select_dtype(name, device):
    """(torch.dtype, a sentence): the format that is named or, for 'auto', the one measured fastest
    on this device.

    Hardware that lists a format may multiply in it more slowly than in float32, or wrongly; so each
    candidate is timed, and its result is held against float32's. Raises UserError.
    """
    if name not in DTYPES:
        raise UserError(f"dtype='{name}': it is one of {', '.join(DTYPES)}")
    if name != 'auto':
        return getattr(torch, name), f'{name} as asked'
    if device.type == 'mps':                                  # nothing else was tried there
        return torch.float32, 'float32'
    measured = {}
    for candidate in CANDIDATES[device.type]:
        seconds, error = time_products(candidate, device)
        if error <= LARGEST_ERROR[candidate]:
            measured[candidate] = seconds
    best = 'float32'
    for candidate, seconds in measured.items():
        if seconds * WORTH_IT < measured.get(best, math.inf):
            best = candidate
    times = [f'{candidate} {seconds * 1e3:.2f} ms' for candidate, seconds in measured.items()]
    return getattr(torch, best), f'{best} (measured: {", ".join(times)})'


def time_products(name, device, seconds=0.2):
    """(seconds, error): the time of a matrix product and of a batch of transposed ones, and their
    error relative to float32.

    The second is what flows back through attention: scores (N, T, T) transposed, times queries (N,
    T, D). A CPU does it with one thread: two wait for each other, and beside a busy program that
    takes up to ten times as long, which says nothing of the format (LOG.md, Neighbours).
    """
    n_threads = torch.get_num_threads()
    if device.type == 'cpu':
        torch.set_num_threads(1)
    n = 4096 if device.type == 'cuda' else 512
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, n, n, generator=generator).to(device)
    scores = torch.randn(16, 128, 128, generator=generator).to(device)
    queries = torch.randn(16, 128, 80, generator=generator).to(device)
    inputs = [t.to(getattr(torch, name)) for t in (a, b, scores, queries)]

    def products(a, b, scores, queries):
        return a @ b, scores.mT @ queries

    error = 0.0
    for got, want in zip(products(*inputs), products(a, b, scores, queries)):
        distance = ((got.float() - want).norm() / want.norm()).item()
        error = max(error, distance if math.isfinite(distance) else math.inf)
    best = best_time(lambda: products(*inputs), device, seconds)
    torch.set_num_threads(n_threads)
    return best, error


def best_time(work, device, seconds):
    """The shortest time that work() took, of as many calls as fit into `seconds`."""
    synchronize = getattr(torch, device.type).synchronize
    work()  # the first call readies the library, which may take longer than all the rest
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def matmul_peak(device, dtype):
    """Floating-point operations a second that this device reaches on large matrices: what a perfect
    step would run at.
    """
    n = 8192 if device.type == 'cuda' else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n ** 3 / best_time(lambda: a @ a, device, seconds=0.3)


def matmul_flops(model, T):
    """Floating-point operations of one token's forward and backward pass in rows of T.

    2 forward and 4 backward for each weight of a matrix, and 12 C T a layer for attention's two
    products (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
    """
    config = model.config
    n_weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    n_weights -= model.model.embed_tokens.weight.numel()  # looked up, not multiplied
    attention = 12 * config.n_layers * config.d_model * T
    return 6 * n_weights + (attention if config.arch == 'decoder' else 0)


# --- processes ---

def start_process(device):
    """Get this process ready: sums in a fixed order, memory kept, the other processes found."""
    # Kernels that add up in the same order every time, where there are any: two runs stay alike to
    # the bit. (use_deterministic_algorithms() would load the compiler, a second or two.)
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.set_deterministic_debug_mode('warn')
    torch.utils.deterministic.fill_uninitialized_memory = False  # only finds bugs, and costs time
    keep_freed_memory(device)
    if world_size == 1:
        return
    cuda = device.type == 'cuda'
    try:
        dist.init_process_group('nccl' if cuda else 'gloo', device_id=device if cuda else None)
    except ValueError as error:
        raise UserError(f'the other processes cannot be found ({error}); '
                        'start them all with torchrun') from None


def all_reduce(tensor):
    """The sum of what every process holds, on each of them."""
    if world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def on_any_rank(event, device):
    """True on every process where the event is true on one."""
    return all_reduce(torch.tensor(float(bool(event)), device=device)).item() > 0


def from_rank0(value):
    """What the first process holds, on every process: for what each would measure a little
    differently.
    """
    if world_size > 1:
        box = [value]
        dist.broadcast_object_list(box)
        value = box[0]
    return value


def wait_for_all():
    """Go on when every process has come here."""
    if world_size > 1:
        dist.barrier()


def check_same_everywhere(facts):
    """Raise UserError where the processes do not agree on facts, {what it is: value}: each machine
    reads its own files, and each process its own command line.
    """
    if world_size == 1:
        return
    everyone = [None] * world_size
    dist.all_gather_object(everyone, (socket.gethostname(), facts))
    first_host, first_facts = everyone[0]
    for other, (host, other_facts) in enumerate(everyone):
        for what, value in first_facts.items():
            if other_facts[what] != value:
                raise UserError(f'{what} is {value} for rank 0 ({first_host}) and '
                                f'{other_facts[what]} for rank {other} ({host}); '
                                'give every process the same')


class StopRequest:
    """Ctrl-C, SIGTERM or a closed terminal (SIGHUP) asks the run to finish its step, save and end:
    `signal` is then the number.

    Ctrl-C once more ends it at once.
    """

    def __init__(self):
        self.signal = 0
        self.time = 0.0
        signal.signal(signal.SIGINT, self.hear)
        signal.signal(signal.SIGTERM, self.hear)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # the terminal closes, and no nohup
            signal.signal(signal.SIGHUP, self.hear)

    def hear(self, number, frame):
        heard = self.time > 0
        # Ctrl-C reaches every process of a terminal, and torchrun passes it on once more: a second
        # one within a second is that echo
        if heard and number == signal.SIGINT and time.monotonic() > self.time + 1:
            os._exit(128 + number)
        self.signal, self.time = number, time.monotonic()
        if rank == 0 and not heard:
            with suppress(OSError):                           # nobody may be there to read it
                os.write(2, b'finishing this step, then saving; Ctrl-C once more ends it at once\n')


LOST_PEER = re.compile('Connection (closed|reset) by peer|Broken pipe|remote process exited|'
                       'Socket closed', re.IGNORECASE)
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|ALLOC_FAILED",
                       re.IGNORECASE)


@contextmanager
def explain_failures(advice):
    """Turn what the machine may do to a run into a sentence; a bug of ours stays a traceback.

    advice: how a run needs less memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if of_memory or NO_MEMORY.search(str(error)):
            raise UserError(f'there is too little memory; {advice}') from None
        if world_size == 1 or not LOST_PEER.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        print_error(f'another process has ended ({reason}); '
                    'what was saved before is there still: --init_from=resume')
        raise SystemExit(1) from None


def run_distributed(main):
    """run_script() for a script that torchrun may start. Several processes leave at once, without
    Python's clean-up:

    gloo's threads may still hold tensors of Python's, and abort when it goes first
    (pytorch/pytorch#190489).
    """
    try:
        run_script(main)
    except SystemExit as end:
        if world_size == 1:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


# --- what is compiled ---

# Floating-point operations of a run from which compiling pays: on a CPU some two minutes' worth
# uncompiled; for GPUs a guess. A rule of the settings alone and never of a clock (but with
# --minutes, which measures the machine): the same command makes the same run, and all processes
# choose alike.
PAYS_FROM = {'cpu': 1e13, 'cuda': 3e15}
# The same in minutes, where a person said how many there are (LOG.md, One dial)
PAYS_FROM_MINUTES = 2
# How far the loss and each gradient of a compiled pass may be off, relative to their length
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def worth_compiling(choice, n_flops, device, minutes=math.inf):
    """Whether to compile a run of n_flops a process that may take so many minutes. choice: the
    setting, 'true', 'false' or 'auto'. Raises UserError.
    """
    choice = {'1': 'true', '0': 'false'}.get(choice.lower(), choice.lower())
    if choice not in ('true', 'false', 'auto'):
        raise UserError(f"compile='{choice}': it is true, false or auto")
    if choice != 'auto':
        return choice == 'true'
    enough = n_flops >= PAYS_FROM.get(device.type, math.inf)
    return enough and minutes >= PAYS_FROM_MINUTES


def compile_and_check(model, plain_loss, compiled_loss, dtype, device):
    """Compile blocks and loss of the model in place and compare a pass with the plain model's.
    Returns (compiled, dtype): how to go on.

    Both functions make the same loss, the first before compiling, the second after it, in a batch
    of the run's shape. A compiler's bug may show on one kind of processor alone, and a run would
    learn nothing for an hour. So every gradient is held against the plain one. Where they differ,
    one line is printed and the run goes on uncompiled. If the plain gradients are not finite
    either, the number format is at fault, and it goes on in float32.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)  # now the compiler's as well
    torch._inductor.config.fallback_random = True  # dropout draws what it draws uncompiled
    # what the processor's flags say is not tried out first, by compiling: that takes six seconds
    torch._inductor.config.cpp.vec_isa_ok = True
    with zeros_filled(model):
        plain = gradients(model, plain_loss)
        try:
            compile_parts(model)
            compiled = gradients(model, compiled_loss)
            problem = difference(plain, compiled, LARGEST_DIFFERENCE[dtype])
        except Exception as error:  # whatever a compiler raises, the plain model is there
            problem = ' '.join(str(error).strip().splitlines()[:2]) or type(error).__name__
    # what has another shape or is without gradients, as in validation, runs uncompiled
    torch.compiler.set_stance('eager_on_recompile')
    if not on_any_rank(problem, device):
        return True, dtype
    print0(f'not compiled: {problem or "another process could not"}')
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    vars(model).pop('summed_loss', None)
    model.zero_grad()  # of a pass that failed midway
    finite = all(g.isfinite().all() for g in plain.values())
    if on_any_rank(not finite, device):
        print0(f'in {dtype} the gradients are not finite here; the run goes on in float32')
        return False, torch.float32
    return False, dtype


def compile_parts(model):
    """Compile one block, for all are alike, and the loss, in place: the names of the parameters
    stay as they are. (Compiling the whole model takes half as long again or more, and the run is
    no faster: LOG.md, Compiling one block.)
    """
    torch.compiler.set_stance('default')
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    model.summed_loss = torch.compile(model.summed_loss, dynamic=False)


@contextmanager
def zeros_filled(model):
    """Meanwhile, random numbers in the parameters that are all zero: blocks begin so, and behind
    zeros every gradient is zero, where a wrong one would not be seen.
    """
    zeros = [p for p in model.parameters() if not p.any()]
    for number, p in enumerate(zeros):
        generator = torch.Generator(p.device).manual_seed(number)
        p.data.normal_(std=1 / math.sqrt(p.shape[-1]), generator=generator)
    yield
    for p in zeros:
        p.data.zero_()


def gradients(model, make_loss):
    """{'the loss': …, 'the gradient of …': …} of one pass; they are cleared in the model."""
    torch.manual_seed(0)                                      # for dropout
    loss = make_loss()
    loss.backward()
    found = {'the loss': loss.detach().float()}
    for name, p in model.named_parameters():
        found[f'the gradient of {name}'] = p.grad.float()
        p.grad = None
    return found


def difference(plain, compiled, tolerance):
    """What differs between two passes of gradients(), in words; '' where nothing does by more than
    the tolerance: ‖compiled - plain‖ / ‖plain‖.

    A gradient a thousand times smaller than the whole is held to the whole's thousandth: rounding
    is all there is in it.
    """
    whole = math.hypot(*(g.norm().item() for what, g in plain.items() if what != 'the loss'))
    for what, g in plain.items():
        distance = (compiled[what] - g).norm().item()
        length = max(g.norm().item(), whole / 1000)
        if not distance <= tolerance * length:                # so that NaN differs, too
            return f'{what} is off by {distance / length:.2g} of its length in the compiled pass'
    return ''
