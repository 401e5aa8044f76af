"""Lesson 0: a text, a transformer, its training and its writing, all in this file.

    python -m bench.lesson --source=mine.txt

Ids are characters, and nothing is saved. The rest of the project makes this faster, better and
safe. bench/first.py goes on from here.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from configurator import configure
from parts.errors import UserError, run_script, user_path

source = 'data/download/shakespeare.txt'  # UTF-8; prepare.py --source=shakespeare writes it
steps = 1000                              # how often the weights move
configure(globals())

T, B = 64, 12                             # a step reads B rows of T characters
C, H, N_LAYERS = 128, 4, 4                # width of the model, attention heads, blocks


class Block(nn.Module):
    """(B, T, C) → (B, T, C): attention looks at earlier places, the MLP at each one alone."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(C), nn.RMSNorm(C)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.out = nn.Linear(C, C, bias=False)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x):
        B, T, C = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, H, C // H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                  # (B, H, T, D) each; D = C / H
        scores = q @ k.mT / math.sqrt(C // H)                 # (B, H, T, T): what looks at what
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        shares = scores.masked_fill(later, -math.inf).softmax(dim=-1)
        y = (shares @ v).transpose(1, 2).reshape(B, T, C)     # the heads side by side
        x = x + self.out(y)
        return x + self.mlp(self.norm_2(x))


class Transformer(nn.Module):
    """ids (B, T) → logits (B, T, V): at each place, a score for every character to come next."""

    def __init__(self, V):
        super().__init__()
        self.token = nn.Embedding(V, C)
        self.position = nn.Embedding(T, C)
        self.blocks = nn.Sequential(*[Block() for _ in range(N_LAYERS)])
        self.norm = nn.RMSNorm(C)
        self.head = nn.Linear(C, V, bias=False)

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def main():
    try:
        text = user_path(source).read_text('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{source} cannot be read as UTF-8: {error}') from None
    letters = sorted(set(text))
    id_of = {letter: n for n, letter in enumerate(letters)}
    ids = torch.tensor([id_of[letter] for letter in text])
    train, held_out = ids[:len(ids) * 9 // 10], ids[len(ids) * 9 // 10:]
    if len(held_out) <= T:
        raise UserError(f'source={source}: it needs more than {10 * T:,} characters')

    torch.manual_seed(0)
    model = Transformer(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = 4e-3 * min(step / 50, 1 - step / steps)  # a warmup, then down to zero
        x, y = random_rows(train)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())    # mean of -ln P(y), in nats
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f'step {step}  loss {loss.item():.3f}', flush=True)

    print(f'held out: {score(model, held_out):.3f} nats per character')
    beginning = held_out[:T]
    print(''.join(letters[n] for n in beginning), end='[from here on, the model]')
    for n in write(model, beginning, 500):
        print(letters[n], end='', flush=True)
    print()


def random_rows(ids):
    """x (B, T), cut anywhere from ids (N,), and y (B, T): the id that follows each of x."""
    starts = torch.randint(len(ids) - T, (B, 1))
    rows = ids[starts + torch.arange(T + 1)]                  # (B, T+1)
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def score(model, ids):
    """The mean loss over ids (N,), cut into rows of T, 64 of them at a time."""
    n = (len(ids) - 1) // T * T
    nats = 0.0
    for x, y in zip(ids[:n].view(-1, T).split(64), ids[1:n + 1].view(-1, T).split(64)):
        nats += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction='sum').item()
    return nats / n


@torch.no_grad()
def write(model, ids, n_more):
    """Yield the ids that continue ids (N,): each is drawn, and then read with the last T."""
    for _ in range(n_more):
        logits = model(ids[None, -T:])[0, -1]                 # (V,): what comes next
        one = torch.multinomial((logits / 0.8).softmax(dim=-1), 1)     # 0.8: a bit less daring
        ids = torch.cat((ids, one))
        yield one.item()


if __name__ == '__main__':
    run_script(main)
