"""How good is it? Loss, perplexity, bits per character, next-token accuracy and sentiment, on any prepared text.

    python eval.py                                              the newest model, on the data it was trained on
    python eval.py --model_path=out/kr3,out/kr3_ffn             one table
    python eval.py --data_dir=data/hate_speech                  out of domain: the same model, another text
    python eval.py --text="국물이 끝내줘요"                         rate a sentence of your own (--text=-: every piped line), coloured by surprise

    validation.txt → the model's own vocabulary → each review alone → -log P of every token (model.surprise)

Perplexity compares models of one vocabulary; bits per character compare any two, for a character is a character to both.
"""
import math
import sys
from json import dumps, loads
from os import environ
from pathlib import Path

import numpy as np
import torch

from configurator import configure, refuse
from model import agree, choose, find, load, rate, surprise
from prepare import NAMES, clean, load_vocabulary, read_split

model_path = ''            # a model folder, or several with commas ('': the newest under out/)
data_dir = ''              # whose validation.txt to read ('': that of the data the model was trained on)
n_tokens = 0.0             # million tokens to read in all (0: the whole of validation.txt)
text = ''                  # rate this sentence instead (-: every line of the standard input)
json = False               # one JSON object a model, a line each, instead of the table
batch_size = 16            # rows of chunk_size tokens at a time; on a GPU more is faster
arch = ''                  # may be given if the model folder says the same; it is read from there
mode = ''                  # likewise
d_model = 0                # likewise
d_ffn = 0                  # likewise
n_layers = 0               # likewise
chunk_size = 0             # likewise
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'auto'             # bfloat16, float16, float32, or auto: the fastest this device has in hardware
configure(globals())


def open_model(path, dev):
    """(model, meta, vocabulary) of a model folder, checked against the flags. Raises ValueError."""
    model, meta = load(path, dev)
    agree(model, meta, mode=mode, arch=arch, d_model=d_model, d_ffn=d_ffn, n_layers=n_layers, chunk_size=chunk_size)
    return model, meta, load_vocabulary(path)


def read_reviews(folder, vocab):
    """[(rating, text)] of validation.txt, as many as n_tokens of this vocabulary hold."""
    try:
        reviews = list(read_split(Path(folder) / 'validation.txt'))
    except FileNotFoundError:
        raise ValueError(f'{folder} has no validation.txt; run prepare.py with --output_dir={folder} first') from None
    if n_tokens:
        lengths = np.cumsum([len(ids) + 2 for ids in vocab.encode([t for _, t in reviews])])
        reviews = reviews[:max(1, int((lengths <= n_tokens * 1e6).sum()))]
    return reviews


def sentiment(model, vocab, rated, own, batch_tokens):
    """Negative against positive, as KR3's authors test it: which of the two starts makes the review likelier?

    rated: [(rating, ids)] of negative and positive reviews; own: their nats under their own start, known already, so that
    one more pass under the other start decides. Returns what --json prints of it."""
    eos = vocab.eos
    flipped = surprise(model, [[eos, vocab.starts[1 - rating], *ids, eos] for rating, ids in rated], batch_tokens)
    other = torch.stack([nats.sum() for nats, _ in flipped])
    truth = torch.tensor([rating for rating, _ in rated])
    guess = torch.where(torch.stack(own) <= other, truth, 1 - truth)
    table = torch.tensor([[((truth == t) & (guess == g)).sum() for g in (0, 1)] for t in (0, 1)]).double()  # rows truth, columns guess
    recall = table.diagonal() / table.sum(1).clamp(min=1)
    f1 = 2 * table.diagonal() / (table.sum(0) + table.sum(1)).clamp(min=1)
    return {'sentiment_accuracy': (table.diagonal().sum() / table.sum()).item(), 'sentiment_balanced_accuracy': recall.mean().item(),
            'sentiment_macro_f1': f1.mean().item(), 'confusion': table.long().tolist()}


def evaluate(path, dev, kind, reviews=None):
    """(scores of the model at path, the reviews they are of). Raises ValueError."""
    model, meta, vocab = open_model(path, dev)
    folder = data_dir or meta.get('data_dir', '')
    reviews = reviews or read_reviews(folder, vocab)
    eos, batch_tokens = vocab.eos, batch_size * model.config.chunk_size
    ids = vocab.encode([t for _, t in reviews])
    with torch.autocast(dev.type, kind, enabled=kind != torch.float32):
        scored = surprise(model, [[eos, vocab.starts[rating], *review, eos] for (rating, _), review in zip(reviews, ids)], batch_tokens)
        rated = [(rating, review, nats.sum()) for (rating, _), review, (nats, _) in zip(reviews, ids, scored) if rating in (0, 1)]
        feeling = sentiment(model, vocab, [(r, i) for r, i, _ in rated], [n for _, _, n in rated], batch_tokens) if len({r for r, _, _ in rated}) == 2 else {}
    nats, tokens = sum(n.double().sum().item() for n, _ in scored), sum(len(n) for n, _ in scored)
    scores = {'model_path': str(path), 'data_dir': str(folder), 'arch': model.config.arch, 'parameters': sum(p.numel() for p in model.parameters()),
              'loss': nats / tokens, 'perplexity': math.exp(nats / tokens), 'bits_per_char': nats / math.log(2) / sum(len(t) for _, t in reviews),
              'accuracy': sum(hit.sum().item() for _, hit in scored) / tokens, 'tokens': tokens, 'reviews': len(reviews), **feeling}
    about = Path(folder) / 'meta.json'
    floor = loads(about.read_text('utf-8')).get('floor_bits_per_char') if about.exists() else None
    return {**scores, **({'floor_bits_per_char': floor, 'above_floor': scores['bits_per_char'] / floor - 1} if floor else {})}, reviews


def coloured(vocab, ids, nats):
    """The text of ids, each character on a background that tells how surprised the model was by it: green none, yellow 4 bits, red 8 and more."""
    line, shown, waiting = '', '', 0.0
    for n in range(len(ids)):
        waiting += nats[n] / math.log(2)
        text = vocab.decode(ids[:n + 1])
        text = text if n + 1 == len(ids) else text.rstrip('\ufffd')  # a character spelled in bytes is whole after its last
        if len(text) > len(shown):
            share = min(1.0, waiting / (len(text) - len(shown)) / 8)
            line += f'\033[30;48;2;{int(255 * min(1, 2 * share))};{int(255 * min(1, 2 - 2 * share))};90m{text[len(shown):]}'
            shown, waiting = text, 0.0
    return line + '\033[0m'


def read_sentences(path, dev):
    """Rate --text, or every piped line: probability of each rating, by Bayes' rule; on a terminal, coloured by surprise."""
    model, _, vocab = open_model(path, dev)
    colours = sys.stdout.isatty() or 'FORCE_COLOR' in environ
    for line in (sys.stdin if text == '-' else [text]):
        line = clean(line)
        if line:
            ids = vocab.encode([line])[0]
            shares = rate(model, [ids], vocab.starts[:-1])[0].softmax(0).tolist()
            likeliest = max(range(len(shares)), key=shares.__getitem__)
            if json:
                print(dumps({'text': line, 'rating': likeliest, 'probability': shares[likeliest]}, ensure_ascii=False), flush=True)
                continue
            if colours:
                nats = surprise(model, [[vocab.eos, vocab.starts[likeliest], *ids, vocab.eos]])[0][0].tolist()
                line = coloured(vocab, ids, nats[1:])  # the first is the rating's
            print(f'{NAMES[likeliest][0]:9} {shares[likeliest]:4.0%}   {line}', flush=True)


def main():
    try:
        dev, kind = choose(device, dtype)
        paths = [find(path) for path in model_path.split(',')]
        if not model_path:
            print(f'{paths[0]}, the newest', file=sys.stderr)
        if text:
            return read_sentences(paths[0], dev)
        rows, reviews = [], None
        for path in paths:
            row, reviews = evaluate(path, dev, kind, reviews)
            rows.append(row)
            if json:
                print(dumps(row, ensure_ascii=False), flush=True)
    except (OSError, ValueError) as e:
        refuse(e)
    if not json:
        width = max(len(row['model_path']) for row in rows)
        print(f'{rows[0]["data_dir"]}: {rows[0]["reviews"]:,} reviews\n\n{"model":{width}}  arch     parameters    loss  perplexity  bits/char  accuracy')
        for row in rows:
            print(f'{row["model_path"]:{width}}  {row["arch"]:7} {row["parameters"]:11,}  {row["loss"]:6.4f}  {row["perplexity"]:10.2f}  {row["bits_per_char"]:9.4f}'
                  f'  {row["accuracy"]:8.1%}' + (f'   {row["above_floor"]:+.1%} from the floor' if 'above_floor' in row else ''))
        for row in rows:
            if 'confusion' in row:
                (nn, np_), (pn, pp) = row['confusion']
                print(f'\n{row["model_path"]}: negative or positive? accuracy {row["sentiment_accuracy"]:.3f}, balanced {row["sentiment_balanced_accuracy"]:.3f}, '
                      f'macro-F1 {row["sentiment_macro_f1"]:.3f}\n  said:        negative  positive\n  negative {nn:12,} {np_:9,}\n  positive {pn:12,} {pp:9,}')


if __name__ == '__main__':
    main()
