"""The machine: which device, which number format, how fast it multiplies, and how much of that a token takes."""
import ctypes
import math
import os
import sys
import time

import torch


def choose(device='auto', dtype='auto'):
    """(torch.device, torch.dtype): what was named, or the fastest there is. bfloat16 is taken where the hardware multiplies in it.
    On a CPU under Linux the process is also told to keep the memory it has had. Raises ValueError in one sentence where the device is not there."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    name = device if device != 'auto' else 'cuda' if cuda else 'mps' if mps else 'cpu'
    if not {'cuda': cuda, 'mps': mps, 'cpu': True}.get(name.partition(':')[0]):
        raise ValueError(f'device={device}: there is none here; --device=auto takes what there is')
    if dtype not in ('auto', 'bfloat16', 'float16', 'float32'):
        raise ValueError(f"dtype='{dtype}': it is auto, bfloat16, float16 or float32")
    chosen = torch.device(name, int(os.environ.get('LOCAL_RANK', 0))) if name == 'cuda' else torch.device(name)
    if chosen.type == 'cuda':
        torch.cuda.set_device(chosen)
        fastest = 'bfloat16' if torch.cuda.get_device_capability(chosen) >= (8, 0) else 'float16'
    else:
        if sys.platform == 'linux':  # else glibc returns large blocks after every step, and each next one faults them in anew
            for what, value in ((-4, 0), (-1, 2 ** 31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
                getattr(ctypes.CDLL(None), 'mallopt', lambda *_: 0)(what, value)  # not every libc has it
        flags = getattr(torch.cpu, 'get_capabilities', dict)() if chosen.type == 'cpu' else {}
        fastest = 'bfloat16' if flags.get('avx512_bf16') or flags.get('amx_bf16') else 'float32'
    return chosen, getattr(torch, fastest if dtype == 'auto' else dtype)


def matmul_peak(device, dtype):
    """Floating-point operations a second that this device reaches on large matrices: what a perfect training step would run at."""
    n = 8192 if device.type == 'cuda' else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    sync = getattr(torch, device.type).synchronize
    a @ a  # the first call readies the library, which may take longer than all the rest
    best, end = math.inf, time.perf_counter() + 0.5
    while time.perf_counter() < end:
        sync()
        t = time.perf_counter()
        a @ a
        sync()
        best = min(best, time.perf_counter() - t)
    return 2 * n ** 3 / best


def matmul_flops(model, T):
    """Floating-point operations of one token's forward and backward pass: 6 a matrix weight, and attention's 12 C T a layer."""
    c = model.config
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2) - (0 if c.tied else model.model.embed_tokens.weight.numel())
    return 6 * weights + (12 * c.n_layers * c.nhead * c.head_dim * T if c.arch == 'decoder' else 0)
