"""torch.compile: whether it pays, and whether what it made computes the same."""
import math
from contextlib import contextmanager

import torch

from parts.errors import UserError, print0
from parts.runtime import all_reduce

# Floating-point operations of a run from which compiling pays: on a CPU some two minutes' worth
# uncompiled; for GPUs a guess. A rule of the settings alone and never of a clock, because a resumed
# run must choose as the first one did.
PAYS_FROM = {'cpu': 1e13, 'cuda': 3e15}
# Of the loss, or of a gradient's norm, between the compiled and the plain pass
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def worth_compiling(choice, n_flops, device):
    """Whether to compile a run of n_flops a process. choice: the setting, 'true', 'false' or
    'auto'. Raises UserError.
    """
    choice = str(choice).lower()
    if choice not in ('true', 'false', 'auto'):
        raise UserError(f"compile='{choice}': it is true, false or auto")
    if choice != 'auto':
        return choice == 'true'
    return n_flops >= PAYS_FROM.get(device.type, math.inf)


def compile_and_check(model, one_pass, dtype, device):
    """Compile the model in place and compare a pass with the plain model's. Returns (compiled,
    dtype): how to go on.

    one_pass(dtype) runs forward and backward and returns the loss; gradients are left in the
    model's parameters. A compiler's bug may show on one kind of processor alone, and a run would
    learn nothing for an hour: so the first pass, which has to be made anyway for its kernels to be
    built, is held against the plain one. Where they differ, one line is printed and the run goes on
    uncompiled; where the plain pass is not finite either, in float32.
    """
    # All buckets of gradients are sent after the backward pass. (Sent one by one, a pass would be
    # cut into several, and FlexAttention cannot be in one of these.)
    torch._dynamo.config.optimize_ddp = False
    with zeros_filled(model):
        plain = measure_pass(model, one_pass, dtype)
        try:
            model.compile(dynamic=False)  # in place: the names of the parameters stay as they are
            compiled = measure_pass(model, one_pass, dtype)
            problem = difference(plain, compiled, LARGEST_DIFFERENCE[dtype])
        except torch._dynamo.exc.TorchDynamoException as error:
            problem = ' '.join(str(error).strip().splitlines()[:2])
    if not happened_anywhere(problem, device):
        return True, dtype
    print0(f'not compiled: {problem or "another process could not"}')
    model._compiled_call_impl = None
    model.zero_grad(set_to_none=True)  # of a pass that failed midway
    torch._dynamo.reset()
    finite = all(math.isfinite(value) for value in plain.values())
    if happened_anywhere(not finite, device):
        print0(f'in {dtype} the gradients are not finite here; the run goes on in float32')
        return False, torch.float32
    return False, dtype


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


def measure_pass(model, one_pass, dtype):
    """{'loss': …, name of a parameter: norm of its gradient}, of one pass; the gradients are
    cleared again.
    """
    measured = {'loss': float(one_pass(dtype))}
    for name, p in model.named_parameters():
        measured[name] = p.grad.float().norm().item()
        p.grad = None
    return measured


def difference(plain, compiled, tolerance):
    """What differs between two passes, in words; '' where nothing does by more than the tolerance.

    A gradient's norm may differ by that share of its size, or of a thousandth of the whole
    gradient's: rounding is all there is in one so small.
    """
    whole = math.hypot(*(norm for name, norm in plain.items() if name != 'loss'))
    for name, value in compiled.items():
        what = 'the loss' if name == 'loss' else f'the gradient of {name}'
        if not math.isfinite(value):
            return f'{what} is {value} in the compiled pass'
        if abs(value - plain[name]) > tolerance * max(abs(plain[name]), whole / 1000):
            return f'{what} is {value:.4g} in the compiled pass, {plain[name]:.4g} in the plain one'
    return ''


def happened_anywhere(event, device):
    """True on every process where the event is true on one."""
    return all_reduce(torch.tensor(float(bool(event)), device=device)).item() > 0
