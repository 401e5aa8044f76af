"""How good is a model? Loss, perplexity, bits per character, first guesses, sentiment.

    python eval.py                                     the newest model, on held-out texts
    python eval.py --model_path=out/kr3,out/kr3_ffn    several models in one table
    python eval.py --data_dir=data/hate_speech         the same model, another text
    python eval.py --text="국물이 끝내줘요"                rate a sentence, coloured by surprise
    python eval.py --text=-                            rate every piped line

    validation.txt → the vocabulary of the model → each text alone, a long one in pieces of
    chunk_size → -log P of every token

Perplexity compares models of one vocabulary. Bits per character compare any two, for a character is
a character to both. They pay for all that the model has to say: the rating, the text, and the
`</s>` that ends it. So that a vocabulary gains nothing by hiding what is rare, each character that
it hides behind `<unk>` pays 20.1 bits more, for which of the 1,112,064 characters that Unicode can
number it was. (PPM does so at its order -1, Cleary & Witten 1984.) A tokenizer of the Hub may
change a text before it spells it, as ½ to 1⁄2; then the bits are those of the changed text.

'First guess' is how often the likeliest token was the right one. How a model rates texts is
explained in parts/scoring.py.
"""
import math
import os
import sys
from itertools import accumulate
from json import dumps
from pathlib import Path

from parts.errors import (
    UserError,
    how_to_wait,
    refuse_bytes,
    run_script,
    split_at_commas,
    user_path,
)

os.environ.update(how_to_wait())  # before torch reads it

import torch

from configurator import configure
from parts.corpus import RATING_NAMES, changed_text, cleaner, read_split, read_texts_meta
from parts.folder import MODEL_FLAGS, find_model_folder, open_model
from parts.machine import explain_failures, keep_freed_memory, select_device, select_dtype
from parts.pictures import colour_by_surprise, draw_ladder
from parts.scoring import BITS_OF_UNSEEN, rating_log_probs, sentiment, surprise
from parts.vocabulary import printable

model_path = ''            # a model folder, or several with commas ('': the newest under out/)
data_dir = ''              # whose validation.txt to read ('': of the data it was trained on)
n_tokens = 0.0             # million tokens to read in all (0: the whole of validation.txt)
text = ''                  # rate this sentence instead (-: every line of the standard input)
json = False               # print one JSON object for each model, or sentence, instead
batch_size = 16            # rows of chunk_size tokens read at once; on a GPU more is faster
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
dtype = 'float32'          # the same digits on every machine; bfloat16, float16, auto: faster
settings = configure(globals(), also=MODEL_FLAGS)

NEGATIVE = RATING_NAMES[0][0]
POSITIVE = RATING_NAMES[1][0]


def main():
    if settings.batch_size < 1 or settings.n_tokens < 0:
        raise UserError('batch_size takes 1 or more, n_tokens 0 or more')
    if 'text' in settings.given and not settings.text.strip():
        raise UserError('text is empty; give a sentence, or - for the lines of the standard input')
    device = select_device(settings.device)
    keep_freed_memory(device)
    dtype, _ = select_dtype(settings.dtype, device)
    folders = [find_model_folder(path) for path in split_at_commas(settings.model_path.rstrip(','))]
    if settings.text and len(folders) > 1:
        raise UserError('one model reads --text=; name one with --model_path=')
    if not settings.model_path:
        print(f'{folders[0]}, the newest', file=sys.stderr)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with explain_failures(advice='take a smaller --batch_size'), autocast:
        if settings.text:
            rate_sentences(folders[0], device)
        else:
            compare_models(folders, device)


# --- models on a data folder ---

def compare_models(folders, device):
    """Print the scores of every model on the same texts: those of the first one's data."""
    opened = [open_model(folder, 'cpu', settings) for folder in folders]  # all, before any is read
    _, meta, vocabulary = opened[0]
    data_dir = find_data(folders[0], meta)
    for folder, (_, its_meta, _) in zip(folders, opened):
        if not settings.data_dir and its_meta.get('data_dir') == meta['data_dir']:
            refuse_learned(folder, its_meta, data_dir)
    texts = read_texts(data_dir, vocabulary)
    floor = read_texts_meta(data_dir).get('floor_bits_per_char')
    rows = []
    for folder, (model, meta, vocabulary) in zip(folders, opened):
        row = {'model_path': str(folder), 'data_dir': str(data_dir)}
        if 'training_flops' in meta:                          # it was trained here
            row['training_flops'] = meta['training_flops']
        row |= score(model.to(device), vocabulary, meta['ratings'], texts)
        if floor:
            row['floor_bits_per_char'] = floor
            row['above_floor'] = row['bits_per_char'] / floor - 1
        rows.append(row)
        if settings.json:
            print(dumps(row, ensure_ascii=False), flush=True)
    if settings.json:
        return
    print_scores(rows)
    ladder = Path('out/ladder.png')
    if draw_ladder(rows, ladder):
        print(f'\n{ladder}: the same as a picture')


def find_data(model_folder, meta):
    """The data folder to read: the one asked for, or that of the model. Raises UserError."""
    if settings.data_dir:
        return user_path(settings.data_dir)
    if 'data_dir' not in meta:
        raise UserError(f'{model_folder} does not say what it was trained on; '
                        'name a data folder with --data_dir=')
    data_dir = Path(meta['data_dir'])
    if not data_dir.is_dir():
        raise UserError(f'{model_folder} was trained on {printable(meta["data_dir"])}, '
                        'which is not there; name its data folder, or another, with --data_dir=')
    return data_dir


def refuse_learned(model_folder, meta, data_dir):
    """Raise UserError where the texts have changed since a model was trained on their folder."""
    if path := changed_text(data_dir, meta):
        raise UserError(f'{path} is no longer what {model_folder} was trained with, so it may have '
                        'learned texts that are held out there now; --data_dir= scores it all the '
                        'same')


def read_texts(data_dir, vocabulary):
    """[(rating, text)] of validation.txt, as many as n_tokens hold. Raises UserError."""
    path = data_dir / 'validation.txt'
    texts = [(rating, text) for rating, text in read_split(path) if text]
    if not texts:
        raise UserError(f'{path} is empty')
    if settings.n_tokens:
        ids = vocabulary.encode([text for _, text in texts])
        lengths = [len(row) + 2 for row in ids]               # with its rating and </s>
        wanted = settings.n_tokens * 1e6
        n_texts = sum(total <= wanted for total in accumulate(lengths))
        if n_texts == 0:                                      # then the beginning of the first
            rating, text = texts[0]
            n_chars = math.ceil(len(text) * wanted / lengths[0])
            return [(rating, text[:n_chars])]
        texts = texts[:n_texts]
    return texts


def score(model, vocabulary, ratings, texts):
    """The scores of a model on texts [(rating, text)], under their names in --json.

    ratings: the numbers of those that the model knows.
    """
    eos = vocabulary.eos
    batch_tokens = settings.batch_size * model.config.chunk_size
    encoded = vocabulary.encode([text for _, text in texts])
    framed = [[eos, vocabulary.start_ids[rating], *ids, eos]
              for (rating, _), ids in zip(texts, encoded)]
    surprises = surprise(model, framed, batch_tokens)

    nats = sum(nats.double().sum().item() for nats, _ in surprises)
    hits = sum(hit.sum().item() for _, hit in surprises)
    n_targets = sum(len(nats) for nats, _ in surprises)
    n_chars = sum(len(text) for _, text in texts)
    n_unseen = sum(vocabulary.n_unseen(text, ids) for (_, text), ids in zip(texts, encoded))
    bits = nats / math.log(2) + n_unseen * BITS_OF_UNSEEN
    scores = {
        'arch': model.config.arch,
        'parameters': sum(p.numel() for p in model.parameters()),
        'loss': nats / n_targets,
        'perplexity': math.exp(nats / n_targets),
        'bits_per_char': bits / n_chars,
        'unseen': n_unseen / n_chars,
        'accuracy': hits / n_targets,
        'tokens': n_targets,
        'reviews': len(texts),
    }

    # the negative and positive texts
    rated = [(rating, ids) for (rating, _), ids in zip(texts, encoded) if rating in (0, 1)]
    if {0, 1} <= set(ratings) and len({rating for rating, _ in rated}) == 2:
        scores |= sentiment(model, vocabulary.rating_ids, rated, batch_tokens)
    return scores


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
UNSEEN = [('hidden', 'unseen', '.2%')]                        # characters behind <unk>
FLOOR = [('above the floor', 'above_floor', '+.1%')]
SENTIMENT = [
    (f'{NEGATIVE} or {POSITIVE}?', 'model_path', ''),
    ('accuracy', 'sentiment_accuracy', '.3f'),
    ('balanced', 'sentiment_balanced_accuracy', '.3f'),
    ('at even odds', 'sentiment_balanced_accuracy_at_even_odds', '.3f'),
    ('macro-F1', 'sentiment_macro_f1', '.3f'),
    ('ROC AUC', 'sentiment_auc', '.3f'),
]


def print_scores(rows):
    """Print the scores of several models: a table, one more of sentiment, and all mistakes."""
    first = rows[0]
    columns = list(SCORES)
    if any(row['unseen'] for row in rows):
        columns += UNSEEN
    if 'above_floor' in first:
        columns += FLOOR
    print(f'{printable(first["data_dir"])}: {first["reviews"]:,} texts\n')
    print_table(rows, columns)
    rating_rows = [row for row in rows if 'confusion' in row]
    if rating_rows:
        print()
        print_table(rating_rows, SENTIMENT)
    for row in rating_rows:
        print()
        print_confusion(row)


def print_confusion(row):
    """Print how many texts of each rating the model read as which."""
    columns = [(f'read by {row["model_path"]} as', 'is', '')]
    columns += [(NEGATIVE, NEGATIVE, ',d'), (POSITIVE, POSITIVE, ',d')]
    lines = [{'is': name, NEGATIVE: n_negative, POSITIVE: n_positive}
             for name, (n_negative, n_positive) in zip((NEGATIVE, POSITIVE), row['confusion'])]
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
    """Print the likeliest rating of every sentence; on a terminal, its surprise in colours, too.

    A model that never saw ratings claims none: it says how many bits a character cost.
    """
    model, meta, vocabulary = open_model(folder, device, settings)
    ratings = meta['ratings']
    if len(ratings) < 2:
        print(f'{folder} never saw texts of different ratings, so it tells none; '
              'here are the bits per character', file=sys.stderr)
    coloured = sys.stdout.isatty() or 'FORCE_COLOR' in os.environ
    for sentence in read_sentences(meta.get('unit', 'line')):
        ids = vocabulary.encode([sentence])[0]
        if len(ratings) < 2:
            start = ratings[0] if ratings else -1             # -1: <s>, the last of start_ids
            nats = surprise_of_text(model, vocabulary, start, ids)
            bits = sum(nats) / math.log(2) + vocabulary.n_unseen(sentence, ids) * BITS_OF_UNSEEN
            said = {'text': sentence, 'bits_per_char': bits / len(sentence)}
            verdict = f'{said["bits_per_char"]:6.2f}'
        else:
            rating, probability, nats = rate(model, vocabulary, ratings, ids)
            said = {'text': sentence, 'rating': rating, 'probability': probability}
            name, _ = RATING_NAMES[rating]
            verdict = f'{name:9} {probability:4.0%}'
        if settings.json:
            print(dumps(said, ensure_ascii=False), flush=True)
            continue
        if coloured:
            sentence = colour_by_surprise(vocabulary, ids, nats)
        print(f'{verdict}   {sentence}', flush=True)


def read_sentences(unit):
    """--text, or every line of the standard input that has one. Raises UserError."""
    lines = [settings.text] if settings.text != '-' else sys.stdin or []
    clean = cleaner(unit)
    refuse_bytes('text', settings.text)
    n_sentences = 0
    try:
        for line in lines:
            sentence = clean(line).strip('\n')
            if sentence:
                n_sentences += 1
                yield sentence
    except UnicodeDecodeError:
        raise UserError('the input is not UTF-8') from None
    if not n_sentences:
        raise UserError('there is no sentence to read')


def rate(model, vocabulary, ratings, ids):
    """(likeliest rating, its probability, surprise of every token under it). ids: of one text.

    ratings: the numbers of those that the model knows.
    """
    rating_ids = [vocabulary.rating_ids[n] for n in ratings]
    log_probs = rating_log_probs(model, [ids], rating_ids)[0]
    shares = log_probs.softmax(dim=0)                         # P(rating | text), (R,)
    best = int(shares.argmax())
    nats = surprise_of_text(model, vocabulary, ratings[best], ids)
    return ratings[best], shares[best].item(), nats


def surprise_of_text(model, vocabulary, start, ids):
    """The nats of every token of one text, after its start: an index into start_ids."""
    eos = vocabulary.eos
    nats, _ = surprise(model, [[eos, vocabulary.start_ids[start], *ids, eos]])[0]
    return nats[1:-1].tolist()                                # without the rating and </s>


if __name__ == '__main__':
    run_script(main)
