"""Write a review: give it a beginning, a rating, or nothing at all.

    python sample.py --prompt="김치찌개가" --rating=positive
    python sample.py                                       asks for one beginning after another, until `exit`
    cat beginnings.txt | python sample.py                  one review a line

    prompt → ids → </s> <rating> prompt… (B, T) → logits (B, V) → one id a row (B,), and again, until </s> → text

Start reading here: write() below is the whole story from a person's side. How logits become ids, and ids logits, is in model.py: generate, then Decoder.
"""
import sys

import torch

from configurator import configure, refuse
from data.device import choose
from eval import find, open_model, rate
from model import generate
from prepare import NAMES, clean

model_path = ''            # a model folder ('': the newest under out/)
prompt = None              # how the review begins ('': from nothing; none: ask for it)
rating = ''                # positive, negative, ambiguous (1, 0, 2; 긍정, 부정, 보통); '': the model picks
guidance = 1.0             # how strongly to insist on the rating asked for (0: no more than the data does)
num_samples = 1            # how many, written side by side in one batch
max_token = 200            # tokens at most; a review mostly ends before
temperature = 0.8          # below 1 likelier, above 1 wilder; 0: always the likeliest
top_k = 0                  # choose among the k likeliest tokens only (0: all)
top_p = 0.95               # choose among the likeliest that together hold this much probability (1: all)
seed = 0                   # the same seed writes the same reviews
show_rating = False        # also say what the model reads in what it wrote
arch = ''                  # may be given if the model folder says the same; it is read from there
mode = ''                  # likewise
d_model = 0                # likewise
d_ffn = 0                  # likewise
n_layers = 0               # likewise
chunk_size = 0             # likewise
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
configure(globals())

SHOWN = (*(name for name, _ in NAMES), 'of unknown rating')
WORDS = {word: i for i, names in enumerate(NAMES) for word in (str(i), *names)}


def write(model, vocab, beginning, wanted, generator, dev):
    """Print num_samples reviews that begin with `beginning`. One alone is streamed, whole characters only."""
    beginning = clean(beginning)  # and so without a space at its end: to the vocabulary a space belongs to the word it precedes
    if wanted is None:            # what follows a lone </s> is the model's idea of how ratings are distributed
        prior = model(torch.tensor([[vocab.eos]], device=dev))[0, -1, vocab.starts].float().softmax(0)
        picked = torch.multinomial(prior, num_samples, replacement=True, generator=generator).tolist()
    else:
        picked = [wanted] * num_samples
    ids = vocab.encode([beginning])[0] if beginning else []
    idx = torch.tensor([[vocab.eos, vocab.starts[r], *ids] for r in picked], device=dev)
    written, shown = [list(ids) for _ in picked], ''
    if num_samples == 1:
        print(f'[{SHOWN[picked[0]]}] ' if wanted is None else '', end='', flush=True)
    rivals = [start for start in vocab.starts[:-1] if wanted is not None and start != vocab.starts[wanted]]
    for column in generate(model, idx, max_token, vocab.banned, rivals, guidance, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator):
        for row, i in zip(written, column.tolist()):
            if i != vocab.eos:
                row.append(i)
        if num_samples == 1:
            text = vocab.decode(written[0]).rstrip('\ufffd')  # the rest of a character spelled in bytes is still to come
            print(text[len(shown):], end='', flush=True)
            shown = text
    texts = [vocab.decode(row) for row in written]
    if num_samples == 1:
        print(texts[0][len(shown):])
    readings = rate(model, written, vocab.starts[:-1]).softmax(1) if show_rating else [None] * len(texts)
    for r, text, reading in zip(picked, texts, readings):
        if num_samples > 1:
            print((f'[{SHOWN[r]}] ' if wanted is None else '') + text)
        if reading is not None:
            print('    reads as ' + ', '.join(f'{name} {share:.0%}' for name, share in zip(SHOWN, reading.tolist())))


def main():
    if rating and rating.lower() not in WORDS:
        refuse(f"rating='{rating}': it is one of {', '.join(f'{en} ({i}, {ko})' for i, (en, ko) in enumerate(NAMES))}")
    if num_samples < 1 or max_token < 1 or temperature < 0 or top_k < 0 or guidance < 0 or not 0 < top_p <= 1:
        refuse('num_samples and max_token take 1 or more, temperature, top_k and guidance 0 or more, top_p more than 0 and at most 1')
    try:
        dev, _ = choose(device)
        path = find(model_path)
        model, _, vocab = open_model(path, dev, globals())
    except (OSError, ValueError) as e:
        refuse(e)
    if not model_path:
        print(f'{path}, the newest', file=sys.stderr)
    generator = torch.Generator(dev).manual_seed(seed)
    wanted = WORDS[rating.lower()] if rating else None
    try:
        if prompt is not None:
            write(model, vocab, prompt, wanted, generator, dev)
        elif sys.stdin.isatty():
            while (line := input('\nbegin with (exit to end): ')).strip() != 'exit':
                write(model, vocab, line, wanted, generator, dev)
        else:
            for line in sys.stdin:
                write(model, vocab, line, wanted, generator, dev)
    except EOFError:
        print()
    except KeyboardInterrupt:
        print()
        raise SystemExit(130)
    except UnicodeDecodeError:
        refuse('the input is not UTF-8')


if __name__ == '__main__':
    main()
