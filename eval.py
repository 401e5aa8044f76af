"""How good is a model? Loss, perplexity, bits per character, first guesses, sentiment.

    python eval.py                                     the newest model, on held-out reviews
    python eval.py --model_path=out/kr3,out/kr3_ffn    several models in one table
    python eval.py --data_dir=data/hate_speech         the same model, another text
    python eval.py --baseline=true                     # and is it better than a linear model?
    python eval.py --text="국물이 끝내줘요"                rate a sentence, coloured by surprise
    python eval.py --text=-                            rate every piped line

    validation.txt → the vocabulary of the model → each review alone → -log P of every token

Perplexity compares models of one vocabulary. Bits per character compare any two, for a character is
a character to both. They pay for all that the model has to say: the rating, the text, and the
`</s>` that ends it. 'First guess' is how often the likeliest token was the right one. How a model
reads is told in parts/scoring.py.
"""
import math
import os
import sys
from itertools import accumulate
from json import dumps
from pathlib import Path

import torch

from configurator import configure
from parts.baseline import linear_log_odds
from parts.corpus import RATING_NAMES, clean, read_split
from parts.errors import UserError, run_script
from parts.checkpoint import read_json
from parts.folder import SHAPE_FLAGS, find_model_folder, open_model
from parts.pictures import colour_by_surprise, draw_ladder, draw_scaling
from parts.machine import explain_failures, keep_freed_memory, select_device, select_dtype
from parts.scoring import rating_log_probs, sentiment, sentiment_scores, surprise

model_path = ''            # a model folder, or several with commas ('': the newest under out/)
data_dir = ''              # whose validation.txt to read ('': of the data it was trained on)
n_tokens = 0.0             # million tokens to read in all (0: the whole of validation.txt)
text = ''                  # rate this sentence instead (-: every line of the standard input)
baseline = False           # also rate with a linear model over letters; needs scikit-learn
json = False               # print one JSON object for each model, or sentence, instead
batch_size = 16            # rows of chunk_size tokens read at once; on a GPU more is faster
arch = ''                  # decoder or ffn; refused if the model folder says otherwise
mode = ''                  # tokenizer or manual; likewise
d_model = 0                # width of the model; likewise
d_ffn = 0                  # width inside its MLPs; likewise
n_layers = 0               # depth; likewise
chunk_size = 0             # how far attention looks back; likewise
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'float32'          # the same figures on every machine; bfloat16, float16, auto: faster
settings = configure(globals())

NEGATIVE = RATING_NAMES[0][0]
POSITIVE = RATING_NAMES[1][0]
LINEAR_MODEL = 'a linear model'


def main():
    if settings.batch_size < 1 or settings.n_tokens < 0:
        raise UserError('batch_size takes 1 or more, n_tokens 0 or more')
    device = select_device(settings.device)
    keep_freed_memory(device)
    dtype, _ = select_dtype(settings.dtype, device)
    folders = [find_model_folder(path) for path in settings.model_path.split(',')]
    if not settings.model_path:
        print(f'{folders[0]}, the newest', file=sys.stderr)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with explain_failures(device, smaller='--batch_size'), autocast:
        if settings.text:
            rate_sentences(folders[0], device)
        else:
            compare_models(folders, device)


# --- models on a data folder ---

def compare_models(folders, device):
    """Print the scores of every model on the same reviews: those of the first one's data."""
    flags = {name: getattr(settings, name) for name in SHAPE_FLAGS}
    opened = [open_model(folder, 'cpu', flags) for folder in folders]  # all: or one fails too late
    _, meta, vocabulary = opened[0]
    data_dir = find_data(folders[0], meta)
    reviews = read_reviews(data_dir, vocabulary)
    floor = read_floor(data_dir)
    linear = []
    if settings.baseline:
        train_dir = Path(meta.get('data_dir', data_dir))
        linear = [score_linear_model(train_dir / 'train.txt', reviews)]
    rows = []
    for folder, (model, meta, vocabulary) in zip(folders, opened):
        row = {'model_path': str(folder), 'data_dir': str(data_dir)}
        if 'training_flops' in meta:                          # it was trained here
            row['training_flops'] = meta['training_flops']
        row |= score(model.to(device), vocabulary, reviews)
        if floor:
            row['floor_bits_per_char'] = floor
            row['above_floor'] = row['bits_per_char'] / floor - 1
        rows.append(row)
        if settings.json:
            print(dumps(row, ensure_ascii=False), flush=True)
    if settings.json:
        for row in linear:
            print(dumps(row, ensure_ascii=False))
        return
    print_scores(rows, linear)
    ladder, scaling = Path('out/ladder.png'), Path('out/scaling.png')
    if draw_ladder(rows, ladder):
        print(f'\n{ladder}: the same as a picture')
    if draw_scaling(rows, scaling):
        print(f'{scaling}: quality against cost')


def find_data(model_folder, meta):
    """The data folder to read: the one asked for, or that of the model. Raises UserError."""
    data_dir = settings.data_dir or meta.get('data_dir')
    if not data_dir:
        raise UserError(f'{model_folder} does not tell what it was trained on; '
                        'name a data folder with --data_dir=')
    return Path(data_dir)


def read_reviews(data_dir, vocabulary):
    """[(rating, text)] of validation.txt, as many as n_tokens hold. Raises UserError."""
    path = data_dir / 'validation.txt'
    reviews = list(read_split(path))
    if not any(text for _, text in reviews):
        raise UserError(f'{path} is empty')
    if settings.n_tokens:
        texts = vocabulary.encode([text for _, text in reviews])
        lengths = [len(ids) + 2 for ids in texts]             # with its rating and </s>
        wanted = settings.n_tokens * 1e6
        n_reviews = sum(total <= wanted for total in accumulate(lengths))
        reviews = reviews[:max(1, n_reviews)]
    return reviews


def read_floor(data_dir):
    """The bits per character that no model can go below, or None where it is not known."""
    path = data_dir / 'meta.json'
    if not path.exists():
        return None
    return read_json(path).get('floor_bits_per_char')


def score(model, vocabulary, reviews):
    """The scores of a model on reviews [(rating, text)], under their names in --json."""
    eos = vocabulary.eos
    batch_tokens = settings.batch_size * model.config.chunk_size
    texts = vocabulary.encode([text for _, text in reviews])
    framed = []
    for (rating, _), ids in zip(reviews, texts):
        framed.append([eos, vocabulary.start_ids[rating], *ids, eos])
    surprises = surprise(model, framed, batch_tokens)

    nats = sum(nats.double().sum().item() for nats, _ in surprises)
    hits = sum(hit.sum().item() for _, hit in surprises)
    n_targets = sum(len(nats) for nats, _ in surprises)
    n_chars = sum(len(text) for _, text in reviews)
    scores = {
        'arch': model.config.arch,
        'parameters': sum(p.numel() for p in model.parameters()),
        'loss': nats / n_targets,
        'perplexity': math.exp(nats / n_targets),
        'bits_per_char': nats / math.log(2) / n_chars,
        'accuracy': hits / n_targets,
        'tokens': n_targets,
        'reviews': len(reviews),
    }

    rated, own_nats = [], []                                  # the negative and positive reviews
    for (rating, _), ids, (nats, _) in zip(reviews, texts, surprises):
        if rating in (0, 1):
            rated.append((rating, ids))
            own_nats.append(nats)
    if len({rating for rating, _ in rated}) == 2:
        scores |= sentiment(model, vocabulary.rating_ids, rated, own_nats, batch_tokens)
    return scores


def score_linear_model(train_path, reviews):
    """How well a linear model, trained on the same reviews, rates these. Raises UserError."""
    rated = [(rating, text) for rating, text in reviews if rating in (0, 1)]
    truth = [rating for rating, _ in rated]
    if len(set(truth)) < 2:
        raise UserError('--baseline=true needs negative and positive reviews, '
                        'and there are none of one kind')
    log_odds, even_log_odds = linear_log_odds(train_path, [text for _, text in rated])
    return {'model_path': LINEAR_MODEL, **sentiment_scores(truth, log_odds, even_log_odds)}


# --- tables ---

SCORES = [                 # heading, key of the score, format
    ('model', 'model_path', ''),
    ('arch', 'arch', ''),
    ('parameters', 'parameters', ',d'),
    ('loss', 'loss', '.4f'),
    ('perplexity', 'perplexity', '.2f'),
    ('bits/char', 'bits_per_char', '.4f'),
    ('first guess', 'accuracy', '.1%'),
]
FLOOR = [('above the floor', 'above_floor', '+.1%')]
SENTIMENT = [
    (f'{NEGATIVE} or {POSITIVE}?', 'model_path', ''),
    ('accuracy', 'sentiment_accuracy', '.3f'),
    ('balanced', 'sentiment_balanced_accuracy', '.3f'),
    ('at even odds', 'sentiment_balanced_accuracy_at_even_odds', '.3f'),
    ('macro-F1', 'sentiment_macro_f1', '.3f'),
    ('ROC AUC', 'sentiment_auc', '.3f'),
]


def print_scores(rows, linear):
    """Print the scores of several models: a table, one more of sentiment, and all mistakes.

    linear: rows of sentiment alone, to compare with.
    """
    first = rows[0]
    print(f'{first["data_dir"]}: {first["reviews"]:,} reviews\n')
    print_table(rows, SCORES + FLOOR if 'above_floor' in first else SCORES)
    if 'confusion' not in first:
        return
    print()
    print_table(rows + linear, SENTIMENT)
    for row in rows + linear:
        print()
        print_confusion(row)


def print_confusion(row):
    """Print how many reviews of each rating the model read as which."""
    columns = [(f'read by {row["model_path"]} as', 'is', '')]
    columns += [(NEGATIVE, NEGATIVE, ',d'), (POSITIVE, POSITIVE, ',d')]
    lines = []
    for name, (n_negative, n_positive) in zip((NEGATIVE, POSITIVE), row['confusion']):
        lines.append({'is': name, NEGATIVE: n_negative, POSITIVE: n_positive})
    print_table(lines, columns)


def print_table(rows, columns):
    """Print dicts as a table. columns: [(heading, key, format)]; no format: text, to the left."""
    table = [[heading for heading, _, _ in columns]]
    for row in rows:
        table.append([format(row[key], spec) for _, key, spec in columns])
    widths = [max(map(len, cells)) for cells in zip(*table)]
    for line in table:
        cells = []
        for cell, width, (_, _, spec) in zip(line, widths, columns):
            cells.append(cell.rjust(width) if spec else cell.ljust(width))
        print('  '.join(cells).rstrip())


# --- sentences of your own ---

def rate_sentences(folder, device):
    """Print the likeliest rating of every sentence; on a terminal, its surprise in colours, too."""
    flags = {name: getattr(settings, name) for name in SHAPE_FLAGS}
    model, _, vocabulary = open_model(folder, device, flags)
    coloured = sys.stdout.isatty() or 'FORCE_COLOR' in os.environ
    for sentence in read_sentences():
        ids = vocabulary.encode([sentence])[0]
        rating, probability, nats = rate(model, vocabulary, ids)
        if settings.json:
            said = {'text': sentence, 'rating': rating, 'probability': probability}
            print(dumps(said, ensure_ascii=False), flush=True)
            continue
        if coloured:
            sentence = colour_by_surprise(vocabulary, ids, nats)
        name, _ = RATING_NAMES[rating]
        print(f'{name:9} {probability:4.0%}   {sentence}', flush=True)


def read_sentences():
    """--text, or every line of the standard input that has one. Raises UserError."""
    lines = sys.stdin if settings.text == '-' else [settings.text]
    try:
        for line in lines:
            sentence = clean(line)
            if sentence:
                yield sentence
    except UnicodeDecodeError:
        raise UserError('the input is not UTF-8') from None


def rate(model, vocabulary, ids):
    """(likeliest rating, its probability, surprise of every token under it). ids: of one text."""
    eos = vocabulary.eos
    rating_ids = vocabulary.rating_ids
    log_probs = rating_log_probs(model, [ids], rating_ids)[0]
    shares = log_probs.softmax(dim=0)                         # P(rating | text), (R,)
    rating = int(shares.argmax())
    nats, _ = surprise(model, [[eos, rating_ids[rating], *ids, eos]])[0]
    of_text = nats[1:-1]                                      # without the rating and </s>
    return rating, shares[rating].item(), of_text.tolist()


if __name__ == '__main__':
    run_script(main)
