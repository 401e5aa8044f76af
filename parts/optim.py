"""The optimizer: Muon for the matrices inside the model, AdamW for the rest; the schedule.

    gradients (N, rows, columns) → momentum → the nearest orthogonal matrices → steps of one size in
    every direction
"""
import math

import torch

# Three odd polynomials a x + b x³ + c x⁵. One after the other they bring every singular value
# between 0.01 and 1 to between 0.73 and 1.27, as near to 1 as three of them can (Amsel et al. 2025,
# arXiv:2505.16932).
POLAR = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))

# The learning rates of the tables, embedding and head, as multiples of lr. Entries of the embedding
# are of size 1, those of a matrix of size 1/√C, so the embedding needs longer steps. What was
# counted or trained before needs small steps (LOG.md, What made training faster).
RANDOM_TABLES = (25.0, 1.0)
LEARNED_TABLES = (4.0, 0.25)

WEIGHT_DECAY = 0.1  # pull of the matrices to zero, per step and unit of learning rate
MOMENTUM = 0.9      # share of Muon's running mean of gradients that each step keeps
BETA1 = 0.9         # the same for AdamW's mean of gradients
BETA2 = 0.99        # and for its mean of their squares
EPS = 1e-8          # keeps AdamW from dividing by zero


class MuonAdamW(torch.optim.Optimizer):
    """Every parameter is in one group, and a group is Muon's or AdamW's.

    groups: dicts of params, kind ('muon' or 'adamw'), lr_mult, weight_decay. The parameters of a
    Muon group are matrices of one shape. dtype: the number format in which Muon multiplies.
    The loop sets the learning rate of each group to that of the step times lr_mult.
    """

    def __init__(self, groups, lr, dtype):
        super().__init__(groups, dict(lr=lr, n_steps=0))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group['n_steps'] += 1
            if group['kind'] == 'muon':
                self.muon(group)
            else:
                self.adamw(group)

    def muon(self, group):
        """Momentum; then the nearest orthogonal matrix takes the gradient's place, so that the
        update has one size in all directions (Jordan et al. 2024,
        kellerjordan.github.io/posts/muon). A few strong directions dominate a raw gradient; this
        way the faint ones are learned, too.
        """
        params = group['params']
        gradients = torch.stack([p.grad for p in params])     # (N, rows, columns)
        state = self.state[params[0]]                         # of the stack, under its first matrix
        if not state:
            state['momentum'] = torch.zeros_like(gradients)
        momentum = state['momentum'].lerp_(gradients, 1 - MOMENTUM)
        direction = gradients.lerp(momentum, MOMENTUM)        # Nesterov's look ahead
        update = orthogonalize(direction, self.dtype).float()
        # as long a step as AdamW's, whose entries are about 0.2 in size; those of an orthogonal
        # matrix are about 1/√max(rows, columns) (Liu et al. 2025, arXiv:2502.16982)
        length = 0.2 * math.sqrt(max(update.shape[1:]))
        torch._foreach_mul_(params, 1 - group['lr'] * group['weight_decay'])  # all in one call
        torch._foreach_add_(params, update.unbind(), alpha=-group['lr'] * length)

    def adamw(self, group):
        """The mean of the gradients over the root of the mean of their squares (Kingma & Ba 2014,
        arXiv:1412.6980); weight decay apart from it (Loshchilov & Hutter 2017, arXiv:1711.05101).
        """
        # both means begin at zero; this makes up for it
        unbias1 = 1 - BETA1 ** group['n_steps']
        unbias2 = 1 - BETA2 ** group['n_steps']
        for p in group['params']:
            state = self.state[p]
            if not state:
                state['mean'], state['square'] = torch.zeros_like(p), torch.zeros_like(p)
            mean = state['mean'].lerp_(p.grad, 1 - BETA1)
            square = state['square'].mul_(BETA2).addcmul_(p.grad, p.grad, value=1 - BETA2)
            size = square.sqrt().div_(math.sqrt(unbias2)).add_(EPS)
            p.mul_(1 - group['lr'] * group['weight_decay'])
            p.addcdiv_(mean, size, value=-group['lr'] / unbias1)


def orthogonalize(x, dtype):
    """x (N, rows, columns) = U S Vᵀ → U S' Vᵀ, where S' is between 0.73 and 1.27 for all directions
    but the faintest, below a hundredth of the norm.

    With S' = 1 it would be the orthogonal matrix that is nearest to x. Polynomials of x come near
    it by multiplications alone.
    """
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT                                              # the products below are then smaller
    norm = x.norm(dim=(1, 2), keepdim=True)
    x = x / (1.02 * norm).clamp(min=1e-30)                    # all singular values below 1
    x = x.to(dtype)                                           # float16 has no tiny numbers
    for a, b, c in POLAR:                                     # x ← (a I + b A + c A²) x, A = x xᵀ
        A = x @ x.mT                                          # (N, rows, rows)
        polynomial = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A²
        x = torch.baddbmm(x, polynomial, x, beta=a)           # a x + (b A + c A²) x
    return x.mT if tall else x


def make_optimizer(model, optimizer, lr, table_decay, warm_start, dtype):
    """The MuonAdamW of a model.

    optimizer: 'muon', or 'adamw' for AdamW everywhere. Muon is for matrices that mix directions. A
    row of the embedding or the head belongs to one token, and rare tokens have small gradients or
    none, so AdamW, which scales each entry by itself, has these. warm_start: embedding and head
    hold what was counted or trained before.

    table_decay: the share of embedding and head that one step at the peak rate removes. (train.py's
    setting is per epoch: what matters is how many epochs back a weight remembers, Wang & Aitchison
    2024, arXiv:2405.13698.) Where data repeat, it is worth more than any decay of the matrices
    (LOG.md, Data that comes back). 'adamw' ignores it and treats tables as matrices.
    """
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    matrices = [p for p in model.parameters()
                if p.ndim == 2 and p is not embedding and p is not head]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = []

    def add(kind, params, lr_mult, decay):
        groups.append(dict(kind=kind, params=params, lr_mult=lr_mult, weight_decay=decay))

    if optimizer == 'muon':
        multiples = LEARNED_TABLES if warm_start else RANDOM_TABLES
        for table, lr_mult in zip((embedding, head), multiples):
            # AdamW multiplies the decay by the group's rate
            add('adamw', [table], lr_mult, table_decay / (lr * lr_mult) if lr else 0.0)
        for shape in sorted({p.shape for p in matrices}):
            add('muon', [p for p in matrices if p.shape == shape], 1.0, WEIGHT_DECAY)
    else:
        add('adamw', [embedding, head, *matrices], 1.0, WEIGHT_DECAY)
    add('adamw', gains, 1.0, 0.0)
    return MuonAdamW(groups, lr, dtype)


def get_lr(step, steps, peak):
    """The learning rate of a step: linear warmup over a fiftieth of the run, level to the middle,
    then linear to zero at step == steps (Hägele et al. 2024, arXiv:2405.18392)."""
    return peak * min(1, (step + 1) / max(1, steps // 50), 2 * (1 - step / steps))
