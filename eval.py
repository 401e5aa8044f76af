"""How good is it? Loss, perplexity, bits per character, next-token accuracy and sentiment, on any prepared text.

    python eval.py                                              the newest model, on the data it was trained on
    python eval.py --model_path=out/kr3,out/kr3_ffn             one table
    python eval.py --data_dir=data/hate_speech                  out of domain: the same model, another text
    python eval.py --text="국물이 끝내줘요"                         rate a sentence of your own (--text=-: every piped line), coloured by surprise

    validation.txt → the model's own vocabulary → each review alone → -log P of every token (surprise)

Perplexity compares models of one vocabulary; bits per character compare any two, for a character is a character to both.
"""
import math
import sys
from json import dumps, loads
from os import environ
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure, refuse
from data.device import choose
from data.pictures import coloured, draw_ladder
from model import load
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


def find(model_path=''):
    """The folder a person means: the one named, or the newest model under out/. Raises ValueError in one sentence."""
    if model_path:
        return Path(model_path)
    found = sorted(Path('out').rglob('model.safetensors'), key=lambda f: f.stat().st_mtime)
    if not found:
        raise ValueError('there is no trained model under out/ yet; run train.py first, or name a folder with --model_path=')
    return found[-1].parent


def agree(model, meta, **flags):
    """Shape and mode are read from the model folder; a flag that says the same is welcome, one that contradicts raises ValueError."""
    held = {**meta, **vars(model.config)}
    for name, value in flags.items():
        if value and value != held.get(name, value):
            raise ValueError(f'--{name}={value}, but the model has {name}={held[name]}; leave the flag out')


def open_model(path, dev, settings):
    """(model, meta, vocabulary) of a model folder, checked against the settings of a script. Raises ValueError."""
    model, meta = load(path, dev)
    agree(model, meta, **{name: settings[name] for name in ('arch', 'mode', 'd_model', 'd_ffn', 'n_layers', 'chunk_size')})
    return model, meta, load_vocabulary(path)


@torch.inference_mode()
def surprise(model, reviews, batch_tokens=8192):
    """How surprised the model is by every token of every review, given the tokens before it.

    reviews: arrays of ids, `</s> <rating> tokens … </s>`. Returns a list of (nats, hit) pairs of arrays one shorter than the
    review: -log P of each token after the first, and whether it was the model's first guess. One longer than a row is read
    in pieces of chunk_size, as in training. Batched by length: padding would be work for nothing."""
    T, device = model.config.chunk_size, model.lm_head.weight.device
    pieces = [(n, i, r[i:i + T + 1]) for n, r in enumerate(reviews) for i in range(0, max(1, len(r) - 1), T)]
    pieces.sort(key=lambda piece: len(piece[2]))
    out = [(torch.empty(len(r) - 1), torch.empty(len(r) - 1, dtype=torch.bool)) for r in reviews]
    while pieces:
        longest = len(pieces[-1][2]) - 1
        rows = [pieces.pop() for _ in range(min(len(pieces), max(1, batch_tokens // max(1, longest))))]
        batch = torch.full((len(rows), longest + 1), model.config.eos)
        for row, (_, _, ids) in zip(batch, rows):
            row[:len(ids)] = torch.as_tensor(ids, dtype=torch.long)
        batch = batch.to(device)
        logits = model(batch[:, :-1]).float()
        nats = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction='none').view(len(rows), -1).cpu()
        hit = (logits.argmax(-1) == batch[:, 1:]).cpu()
        for (n, i, ids), a, b in zip(rows, nats, hit):
            out[n][0][i:i + len(ids) - 1], out[n][1][i:i + len(ids) - 1] = a[:len(ids) - 1], b[:len(ids) - 1]
    return out


def rate(model, texts, starts, batch_tokens=8192):
    """log P(start) + log P(text | start), in nats, for every text (ids without control tokens) and every start id: (N, len(starts)).
    The same sum that training lowered, so the model is a classifier with nothing added (a generative classifier, Bayes' rule)."""
    eos = model.config.eos
    scored = surprise(model, [[eos, start, *text, eos] for text in texts for start in starts], batch_tokens)
    return -torch.stack([nats.sum() for nats, _ in scored]).view(len(texts), len(starts))


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

    rated: [(rating, ids)] of negative and positive reviews; own: the nats of each under its own start, known already, so that one more
    pass under the other start decides. Returns what --json prints of it. Balanced accuracy counts both ratings alike while P(start)
    leans to the commoner; at even odds log P(text | start) decides alone, as it must where a test set is half and half."""
    eos = vocab.eos
    flipped = surprise(model, [[eos, vocab.starts[1 - rating], *ids, eos] for rating, ids in rated], batch_tokens)
    truth = torch.tensor([rating for rating, _ in rated])
    tables = []
    for first in (0, 1):  # with what the start itself costs, and without
        better = torch.stack([mine[first:].sum() <= other[first:].sum() for mine, (other, _) in zip(own, flipped)])
        guess = torch.where(better, truth, 1 - truth)
        tables.append(torch.tensor([[((truth == t) & (guess == g)).sum() for g in (0, 1)] for t in (0, 1)]).double())  # rows truth, columns guess
    (recall, even), table = (t.diagonal() / t.sum(1).clamp(min=1) for t in tables), tables[0]
    f1 = 2 * table.diagonal() / (table.sum(0) + table.sum(1)).clamp(min=1)
    return {'sentiment_accuracy': (table.diagonal().sum() / table.sum()).item(), 'sentiment_balanced_accuracy': recall.mean().item(),
            'sentiment_balanced_accuracy_at_even_odds': even.mean().item(), 'sentiment_macro_f1': f1.mean().item(), 'confusion': table.long().tolist()}


def evaluate(path, dev, kind, folder, reviews=None):
    """(scores of the model at path, the reviews they are of: given, or those of folder, or of the data it was trained on). Raises ValueError."""
    model, meta, vocab = open_model(path, dev, globals())
    folder = folder or meta.get('data_dir', '')
    reviews = reviews or read_reviews(folder, vocab)
    eos, batch_tokens = vocab.eos, batch_size * model.config.chunk_size
    ids = vocab.encode([t for _, t in reviews])
    with torch.autocast(dev.type, kind, enabled=kind != torch.float32):
        scored = surprise(model, [[eos, vocab.starts[rating], *review, eos] for (rating, _), review in zip(reviews, ids)], batch_tokens)
        rated = [(rating, review, nats) for (rating, _), review, (nats, _) in zip(reviews, ids, scored) if rating in (0, 1)]
        feeling = sentiment(model, vocab, [(r, i) for r, i, _ in rated], [n for _, _, n in rated], batch_tokens) if len({r for r, _, _ in rated}) == 2 else {}
    nats, tokens = sum(n.double().sum().item() for n, _ in scored), sum(len(n) for n, _ in scored)
    scores = {'model_path': str(path), 'data_dir': str(folder), 'arch': model.config.arch, 'parameters': sum(p.numel() for p in model.parameters()),
              'loss': nats / tokens, 'perplexity': math.exp(nats / tokens), 'bits_per_char': nats / math.log(2) / sum(len(t) for _, t in reviews),
              'accuracy': sum(hit.sum().item() for _, hit in scored) / tokens, 'tokens': tokens, 'reviews': len(reviews), **feeling}
    about = Path(folder) / 'meta.json'
    floor = loads(about.read_text('utf-8')).get('floor_bits_per_char') if about.exists() else None
    return {**scores, **({'floor_bits_per_char': floor, 'above_floor': scores['bits_per_char'] / floor - 1} if floor else {})}, reviews


def read_sentences(path, dev):
    """Rate --text, or every piped line: probability of each rating, by Bayes' rule; on a terminal, coloured by surprise."""
    model, _, vocab = open_model(path, dev, globals())
    colours = sys.stdout.isatty() or 'FORCE_COLOR' in environ
    for line in (sys.stdin if text == '-' else [text]):
        line = clean(line)
        if line:
            ids = vocab.encode([line])[0]
            scored = [nats for nats, _ in surprise(model, [[vocab.eos, start, *ids, vocab.eos] for start in vocab.starts[:-1]])]
            shares = torch.stack([-nats.sum() for nats in scored]).softmax(0).tolist()
            likeliest = max(range(len(shares)), key=shares.__getitem__)
            if json:
                print(dumps({'text': line, 'rating': likeliest, 'probability': shares[likeliest]}, ensure_ascii=False), flush=True)
                continue
            shown = coloured(vocab, ids, scored[likeliest][1:].tolist()) if colours else line  # the first is the rating's
            print(f'{NAMES[likeliest][0]:9} {shares[likeliest]:4.0%}   {shown}', flush=True)


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
            row, reviews = evaluate(path, dev, kind, rows[0]['data_dir'] if rows else data_dir, reviews)  # the same ones for all
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
                print(f'\n{row["model_path"]}: negative or positive? accuracy {row["sentiment_accuracy"]:.3f}, balanced {row["sentiment_balanced_accuracy"]:.3f} '
                      f'(at even odds {row["sentiment_balanced_accuracy_at_even_odds"]:.3f}), macro-F1 {row["sentiment_macro_f1"]:.3f}\n'
                      f'  said:        negative  positive\n  negative {nn:12,} {np_:9,}\n  positive {pn:12,} {pp:9,}')
        draw_ladder(rows, Path('out/ladder.png'))


if __name__ == '__main__':
    main()
