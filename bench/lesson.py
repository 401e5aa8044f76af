"""Lesson 0: from a text to a model to new text, on one page beside model.py.

    python -m bench.lesson --source=mine.txt

Ids are characters, and nothing is saved. The rest of the project makes this faster, better and
safe. bench/first.py goes on from here.
"""
import torch

from configurator import configure
from model import Config, build, generate
from parts.errors import UserError, run_script, user_path

source = 'data/download/shakespeare.txt'  # UTF-8; prepare.py --source=shakespeare writes it
steps = 1000                              # how often the weights move
configure(globals())

T, B = 64, 12                             # a step reads B rows of T characters


def main():
    try:
        text = user_path(source).read_text('utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{source} is no text in UTF-8: {error}') from None

    # text → ids
    letters = sorted(set(text))
    id_of = {letter: n for n, letter in enumerate(letters)}
    ids = torch.tensor([id_of[letter] for letter in text])
    train, held_out = ids[:len(ids) * 9 // 10], ids[len(ids) * 9 // 10:]
    if len(held_out) <= T:
        raise UserError(f'source={source}: it needs more than {10 * T:,} characters')

    torch.manual_seed(0)
    # one id more, </s>, ends a text; here all is one text
    model = build(Config(vocab_size=len(letters) + 1, d_model=128, d_ffn=384, n_layers=4, nhead=4,
                         chunk_size=T, eos=len(letters)))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))

    for step in range(steps):
        for group in optimizer.param_groups:
            group['lr'] = 4e-3 * min(step / 50, 1 - step / steps)  # a warmup, then down to zero
        x, y = random_rows(train)
        nats, _ = model(x, y)                                 # summed over y (_: for ratings)
        loss = nats / y.numel()                               # the mean
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f'step {step}  loss {loss.item():.3f}', flush=True)

    print(f'held out: {score(model, held_out):.3f} nats per character')
    beginning = held_out[:T]
    print(''.join(letters[n] for n in beginning), end='')
    for column in generate(model, beginning[None], 500, banned=[len(letters)], temperature=0.8):
        print(letters[column.item()], end='', flush=True)     # (B,) ids, here of one row
    print()


def random_rows(ids):
    """x (B, T), cut anywhere from ids (N,), and y (B, T), the id that follows each."""
    starts = torch.randint(len(ids) - T, (B, 1))
    rows = ids[starts + torch.arange(T + 1)]                  # (B, T+1)
    return rows[:, :-1], rows[:, 1:]


@torch.no_grad()
def score(model, ids):
    """The mean loss over ids (N,), in rows of T side by side."""
    n = (len(ids) - 1) // T * T
    nats = 0.0
    for x, y in zip(ids[:n].view(-1, T).split(64), ids[1:n + 1].view(-1, T).split(64)):
        nats += model(x, y)[0].item()
    return nats / n


if __name__ == '__main__':
    run_script(main)
