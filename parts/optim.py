"""The optimizers: Muon for the matrices inside the model, AdamW for the rest; the schedule; the
loss scale of float16.

    gradients (N, rows, columns) → momentum → the nearest orthogonal matrices → steps of one size in
    every direction
"""
import math

import torch
import torch.distributed as dist

from parts.errors import UserError
from parts.runtime import rank, world_size

# Three odd polynomials a x + b x³ + c x⁵. One after the other they bring every singular value
# between 0.01 and 1 to between 0.73 and 1.27, as near to 1 as three of them can (Amsel et al. 2025,
# arXiv:2505.16932).
POLAR = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))

# The learning rate of embedding and head, as multiples of lr. Entries of the embedding are of size
# 1, those of a matrix of size 1/√C, so the embedding needs longer steps. What was counted or
# trained before needs only a touch. For what was tried, see docs/LOG.md.
EMBED_LR_MULT = {'random': 25.0, 'counted': 4.0, 'tied': 1.0}
HEAD_LR_MULT = {'random': 1.0, 'counted': 0.25, 'tied': 1.0}


class Muon(torch.optim.Optimizer):
    """Momentum, then the nearest orthogonal matrix in place of the gradient, so that all directions
    of the update get steps of one size (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    The iteration of Newton and Schulz finds it by multiplications alone. All matrices of one shape
    go through it as one stack (N, rows, columns), in `dtype`. The momentum hears every gradient;
    the matrices move at every `interval`-th step, and farther then (docs/LOG.md).
    """

    def __init__(self, matrices, lr, weight_decay, dtype, interval=1):
        by_shape = {}
        for p in matrices:
            by_shape.setdefault(p.shape, []).append(p)
        groups = [dict(params=same_shape) for same_shape in by_shape.values()]
        super().__init__(groups, dict(lr=lr, weight_decay=weight_decay))
        self.dtype, self.interval = dtype, interval

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group['params']
            gradients = [p.grad for p in params]
            state = self.state[params[0]]
            if 'momentum' not in state:
                state['momentum'] = params[0].new_zeros(len(params), *params[0].shape)
            momentum = state['momentum']                               # (N, rows, columns)
            torch._foreach_lerp_(momentum.unbind(), gradients, 0.05)
            state['n_steps'] = state.get('n_steps', 0) + 1
            if state['n_steps'] % self.interval:
                continue
            direction = torch.stack(gradients).lerp_(momentum, 0.95)   # Nesterov's look ahead
            update = orthogonalize_together(direction, self.dtype).float()
            # as long a step as AdamW's, whose entries are about 0.2 in size (Liu et al. 2025,
            # arXiv:2502.16982)
            scale = 0.2 * math.sqrt(max(update.shape[1:]))
            lr = self.interval ** (2 / 3) * group['lr']
            torch._foreach_mul_(params, 1 - lr * group['weight_decay'])
            torch._foreach_add_(params, update.unbind(), alpha=-lr * scale)


def orthogonalize_together(x, dtype):
    """orthogonalize() of x (N, rows, columns), which all processes hold: each does its share of the
    N matrices, and then gets those of the others.
    """
    if world_size == 1:
        return orthogonalize(x, dtype)
    share = -(-len(x) // world_size)
    mine = x[rank * share:(rank + 1) * share]
    padded = x.new_zeros(share, *x.shape[1:])                 # the last may have fewer, or none
    padded[:len(mine)] = mine
    mine = orthogonalize(padded, dtype)
    everyones = mine.new_empty(world_size * share, *x.shape[1:])
    # as bytes, for gloo does not know every format
    dist.all_gather_into_tensor(everyones.view(torch.uint8), mine.view(torch.uint8))
    return everyones[:len(x)]


def orthogonalize(x, dtype):
    """x (N, rows, columns) = U S Vᵀ → U R Vᵀ, where R is between 0.73 and 1.27 for all directions
    but the faintest, below a hundredth of the norm.

    With R = 1 it would be the orthogonal matrix that is nearest to x.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT                                              # the products below are then smaller
    norm = x.norm(dim=(1, 2), keepdim=True)
    x = x / (1.02 * norm).clamp(min=1e-30)                    # all singular values below 1
    x = x.to(dtype)                                           # now nothing is too small for it
    for a, b, c in POLAR:                                     # x ← (a I + b A + c A²) x, A = x xᵀ
        A = x @ x.mT                                          # (N, rows, rows)
        polynomial = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A²
        x = torch.baddbmm(x, polynomial, x, beta=a)           # a x + (b A + c A²) x
    return (x.mT if tall else x).contiguous()


def muon_interval(matrices, steps, step_flops):
    """Steps from one move of the matrices to the next: 1, or as many as bring Muon down to about a
    twentieth of the arithmetic, where a step of step_flops has few tokens. A run of few steps has
    none to leave out. See docs/LOG.md.
    """
    if steps < 300:
        return 1
    muon_flops = 0
    for p in matrices:
        short, long = sorted(p.shape)
        muon_flops += len(POLAR) * (4 * short ** 2 * long + 2 * short ** 3)
    return max(1, int(20 * muon_flops / step_flops))


def make_optimizers(model, optimizer, lr, weight_decay, dtype, warm_start, table_decay=0.0,
                    steps=0, step_flops=math.inf):
    """[optimizer, …]: every parameter is in one group, and learns at lr * group['lr_mult'].

    warm_start: embedding and head hold what was counted or trained before. Muon is for matrices
    that mix directions. A row of the embedding or the head belongs to one token, and most tokens
    are not in a batch at all: rows are learned one by one, and AdamW does that.

    table_decay: the share of embedding and head that a step at the peak rate takes away. Where data
    come back, it is worth more than any on the matrices (docs/LOG.md). train.py's setting is the
    share of an epoch, for what counts is how many epochs back a weight remembers (Wang & Aitchison
    2024, arXiv:2405.13698). 'adamw' ignores it and treats tables as it treats matrices.
    """
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    tied = False
    tables = [embedding] if tied else [embedding, head]
    in_table = {id(p) for p in tables}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in in_table]
    gains = [p for p in model.parameters() if p.ndim == 1]
    adamw = dict(lr=lr, betas=(0.9, 0.99), fused=embedding.device.type in ('cpu', 'cuda'))
    if optimizer == 'adamw':
        groups = [dict(params=matrices + tables, lr_mult=1.0, weight_decay=weight_decay),
                  dict(params=gains, lr_mult=1.0, weight_decay=0.0)]
        return [torch.optim.AdamW(groups, **adamw)]
    if optimizer != 'muon':
        raise UserError(f"optimizer='{optimizer}': it is 'muon' or 'adamw'")
    begun = 'tied' if tied else 'counted' if warm_start else 'random'
    groups = [dict(params=[embedding], lr_mult=EMBED_LR_MULT[begun])]
    if not tied:
        groups.append(dict(params=[head], lr_mult=HEAD_LR_MULT[begun]))
    for group in groups:  # AdamW multiplies it by the group's rate
        group['weight_decay'] = table_decay / (lr * group['lr_mult']) if lr else 0.0
    groups.append(dict(params=gains, lr_mult=1.0))
    muon = Muon(matrices, lr, weight_decay, dtype, muon_interval(matrices, steps, step_flops))
    for group in muon.param_groups:
        group['lr_mult'] = 1.0
    return [torch.optim.AdamW(groups, weight_decay=0.0, **adamw), muon]


def load_optimizer_states(optimizers, states):
    """Resume: momenta and steps come from the checkpoint; the shares of the rate are what
    make_optimizers() set.
    """
    for optimizer, state in zip(optimizers, states):
        multipliers = [group['lr_mult'] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, lr_mult in zip(optimizer.param_groups, multipliers):
            group['lr_mult'] = lr_mult


def set_learning_rate(optimizers, lr):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group['lr'] = lr * group['lr_mult']


def lr_schedule(step, steps, warmup=0):
    """Share of the peak learning rate at a step: up in a line, then down half a cosine, which is
    zero at step == steps (Loshchilov & Hutter 2016, arXiv:1608.03983).

    warmup: steps of the rise (0: a fiftieth of the run).
    """
    rise = warmup or max(1, steps // 50)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class LossScaler:
    """float16 knows no number below 6e-8, and gradients are small. So the loss is multiplied before
    the backward pass and the gradients are divided after it (Micikevicius et al. 2018,
    arXiv:1710.03740). Where one of them overflows, the step is left out, for all optimizers, and
    the scale is halved. Other formats have the range of float32: their scale is 1.
    """

    def __init__(self, dtype):
        self.active = dtype == torch.float16
        self.scale = 2.0 ** 16 if self.active else 1.0
        self.good_steps = 0

    @torch.no_grad()
    def unscale(self, parameters):
        if self.active:
            torch._foreach_div_([p.grad for p in parameters], self.scale)

    def allows_step(self, gradient_norm):
        """Whether the gradients are sound; adjusts the scale for the next step."""
        if not self.active:
            return True
        if math.isfinite(float(gradient_norm)):
            self.good_steps += 1
            if self.good_steps % 2000 == 0:
                self.scale *= 2
            return True
        self.good_steps = 0
        self.scale = max(1.0, self.scale / 2)
        return False

    def state_dict(self):
        return {'scale': self.scale, 'good_steps': self.good_steps}

    def load_state_dict(self, state):
        if self.active:
            self.scale, self.good_steps = state['scale'], state['good_steps']
