"""Write a text: give it a beginning, a rating, or nothing at all.

    python sample.py --prompt="김치찌개가" --rating=positive
    python sample.py                                   asks for one beginning after another
    cat beginnings.txt | python sample.py              one text a line
    python sample.py --page=out/demo/page.html         a page to look inside the model

    beginning → ids → </s> <rating> ids… (B, T) → logits (B, V) → one id a row (B,), again and again
    until </s> → text

main, write_texts and write_batch tell the story from a person's side.
How ids become logits, and logits the next ids, is in model.py.
"""
import os
import re
import sys

from parts.errors import UserError, how_to_wait, print_error, refuse_bytes, run_script, user_path

os.environ.update(how_to_wait())  # before torch reads it

import torch

from configurator import configure
from model import generate
from parts.corpus import RATING_NAMES, cleaner
from parts.folder import MODEL_FLAGS, find_model_folder, open_model
from parts.guidance import Guided
from parts.machine import explain_failures, select_device
from parts.scoring import rating_log_probs
from parts.vocabulary import Characters, printable

model_path = ''            # a model folder ('': the newest under out/)
prompt = None              # how the text begins ('': from nothing; none: ask for it)
rating = ''                # positive, negative, ambiguous (1, 0, 2; 긍정, 부정, 보통); '': any
guidance = 1.0             # how much to insist on the rating asked for (0: rely on its token alone)
num_samples = 1            # how many texts
max_token = 200            # tokens at most; a review mostly ends before
temperature = 0.8          # below 1 likelier, above 1 wilder; 0: always the likeliest
top_k = 0                  # choose among the k likeliest tokens only (0: all)
top_p = 0.95               # among the likeliest that together hold this much probability (1: all)
seed = 0                   # the same seed writes the same texts
show_rating = False        # also say which rating the model finds in what it wrote
page = ''                  # write to this file an HTML page that shows the model think
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
settings = configure(globals(), also=MODEL_FLAGS)

MOST_ROWS = 256            # in a batch of texts that are written side by side
BATCH_BYTES = 1 << 30      # that such a batch may keep in memory
BETWEEN_TEXTS = 15 * '-'   # where a text may have several lines


@explain_failures(advice='take fewer --num_samples, or where it is a GPU --device=cpu')
def main():
    check_settings()
    device = select_device(settings.device)
    folder = find_model_folder(settings.model_path)
    model, meta, vocabulary = open_model(folder, device, settings)
    if not settings.model_path:
        print(f'{folder}, the newest', file=sys.stderr)
    if settings.page:
        from parts.page import write_page
        n_bytes = write_page(model.cpu(), vocabulary, meta, page_path())
        print(f'{settings.page}: {n_bytes / 1e6:.1f} MB; open it in a browser')
        return
    ratings = meta['ratings']                                 # that the model knows, as [0, 1, 2]
    check_ratings(folder, ratings)
    generator = torch.Generator(device).manual_seed(settings.seed)
    unit = meta.get('unit', 'line')                           # what was one text in training
    clean = cleaner(unit)
    for beginning in read_beginnings():
        write_texts(model, vocabulary, ratings, clean(beginning), unit, generator)


# --- what a person asks for ---

def check_settings():
    """Raise UserError where a setting makes no sense."""
    asked_rating()
    for name in ('num_samples', 'max_token'):
        if getattr(settings, name) < 1:
            raise UserError(f'{name}={getattr(settings, name)}: it takes 1 or more')
    if settings.top_k < 0:
        raise UserError(f'top_k={settings.top_k}: it takes 0 or more')
    if settings.temperature != 0 and not 0.001 <= settings.temperature <= 1000:
        raise UserError(f'temperature={settings.temperature}: it takes 0, which is always the '
                        'likeliest token, or 0.001 to 1000')
    if not 0 <= settings.guidance <= 1000:
        raise UserError(f'guidance={settings.guidance}: it takes 0 to 1000')
    if not 1e-9 <= settings.top_p <= 1:
        raise UserError(f'top_p={settings.top_p}: it takes more than 0 (1e-9 or more), at most 1')
    if not 0 <= settings.seed < 2 ** 63:
        raise UserError(f'seed={settings.seed}: it takes 0 to 2^63 - 1')


def asked_rating():
    """The number of the rating asked for, or None. Raises UserError."""
    word = settings.rating.lower()
    if not word:
        return None
    for number, (english, korean) in enumerate(RATING_NAMES):
        if word in (str(number), english, korean):
            return number
    known = [f'{english} ({n}, {korean})' for n, (english, korean) in enumerate(RATING_NAMES)]
    raise UserError(f"rating='{settings.rating}': it is one of {', '.join(known)}")


def check_ratings(folder, ratings):
    """Raise UserError where a person asks for ratings and the model knows others or none.

    ratings: the numbers of those that its training texts had.
    """
    rating = asked_rating()
    if not ratings and (rating is not None or settings.show_rating):
        raise UserError(f'{folder} was trained on texts without ratings and knows none; '
                        'leave --rating and --show_rating out')
    if rating is not None and rating not in ratings:
        known = ' and '.join(rating_name(n) for n in ratings)
        raise UserError(f'{folder} never saw a text that is {rating_name(rating)}; '
                        f'it knows {known} ones')


def page_path():
    """The path that --page= names. Raises UserError where something else is there."""
    path = user_path(settings.page)
    if path.is_dir():
        raise UserError(f'page={settings.page} is a folder; name a file, as page.html')
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(b'<!doctype html>')):
        raise UserError(f'page={settings.page} is there and is no page; name another file')
    return path


def read_beginnings():
    """--prompt, or what a person types until exit, or every line of a pipe. Raises UserError."""
    if settings.prompt is not None:
        refuse_bytes('prompt', settings.prompt)
        yield settings.prompt
        return
    n_lines = 0
    try:
        if sys.stdin and sys.stdin.isatty():
            yield from ask_for_beginnings()
            return
        for line in sys.stdin or []:
            n_lines += 1
            yield line.removesuffix('\n')
    except UnicodeDecodeError:
        raise UserError('the input is not UTF-8') from None
    if n_lines == 0:                                          # as in a notebook
        raise UserError('nothing comes from the standard input; '
                        "say how to begin with --prompt= (--prompt='' begins from nothing)")


def ask_for_beginnings():
    """Lines that a person types, until exit or the end of the input."""
    while True:
        try:
            line = input('\nbegin with (exit to end): ')
        except EOFError:
            print()
            return
        if line.strip() == 'exit':
            return
        yield line


# --- writing ---

def write_texts(model, vocabulary, ratings, beginning, unit, generator):
    """Print num_samples texts that begin with `beginning`, batch after batch.

    ratings: the numbers of those that the model knows. The size of a batch follows from the model
    and the settings. So the same seed writes the same texts, and a larger num_samples begins with
    the full batches of a smaller one.
    """
    if not isinstance(vocabulary, Characters):  # a space belongs to the sub-word after it: ▁was
        beginning = re.sub(r'(?<=[^ \n]) \Z', '', beginning)
    ids = vocabulary.encode([beginning])[0] if beginning else []
    if vocabulary.n_unseen(beginning, ids):
        unseen = [repr(character) for character in dict.fromkeys(beginning)
                  if vocabulary.n_unseen(character, vocabulary.encode([character])[0])]
        print_error(f'the model never saw {", ".join(unseen) or "some of this"}')
    rating = asked_rating()
    rivals = []                                               # the ratings guidance keeps away from
    if rating is not None and settings.guidance > 0:
        rivals = [vocabulary.rating_ids[n] for n in ratings if n != rating]
    n_rows = rows_at_once(model.config, len(ids) + 2, n_readings=1 + len(rivals))
    for first in range(0, settings.num_samples, n_rows):
        B = min(n_rows, settings.num_samples - first)
        if rating is not None:
            starts = [rating] * B
        elif ratings:
            starts = draw_ratings(model, vocabulary, B, generator)
        else:
            starts = [-1] * B                                 # <s>, the last of start_ids
        rows = write_batch(model, vocabulary, ids, starts, rivals, generator)
        show_batch(model, vocabulary, ratings, rows, starts, unit)


def rows_at_once(config, T, n_readings):
    """How many texts to write side by side, so that memory suffices for any num_samples.

    T: tokens of the beginning. A row keeps keys and values of all it may look back at and, while it
    reads the beginning, a score for every pair of its tokens. Guidance reads a row n_readings
    times.
    """
    kept = min(config.chunk_size, T + settings.max_token)
    cache = 2 * config.n_layers * config.d_model * kept
    scores = config.nhead * min(T, config.chunk_size) ** 2
    row_bytes = 4 * n_readings * (cache + scores)             # float32
    return max(1, min(MOST_ROWS, BATCH_BYTES // row_bytes))


@torch.inference_mode()
def draw_ratings(model, vocabulary, B, generator):
    """B indices into start_ids, drawn from what the model expects after a lone `</s>`."""
    idx = torch.tensor([[vocabulary.eos]], device=generator.device)
    logits = model(idx)[0, -1, vocabulary.start_ids].float()
    shares = logits.softmax(dim=0)
    return torch.multinomial(shares, B, replacement=True, generator=generator).tolist()


def write_batch(model, vocabulary, ids, starts, rivals, generator):
    """The ids of B texts that all begin with ids, those included. One alone is streamed.

    starts (B,): the start of each, as an index into start_ids. rivals: the start tokens of the
    ratings that guidance keeps away from.
    """
    rows = [[vocabulary.eos, vocabulary.start_ids[start], *ids] for start in starts]
    idx = torch.tensor(rows, device=generator.device)         # (B, T)
    writer = Guided(model, rivals, settings.guidance) if rivals else model
    columns = generate(                                       # yields (B,), one id a row
        writer, idx, settings.max_token, vocabulary.banned, temperature=settings.temperature,
        top_k=settings.top_k, top_p=settings.top_p, generator=generator)
    if settings.num_samples > 1:
        return collect_texts(vocabulary, ids, columns, len(starts))
    print(label(starts[0]), end='', flush=True)
    return [stream_text(vocabulary, ids, columns)]


def stream_text(vocabulary, ids, columns):
    """Print a text while it is written. Returns its ids, those of its beginning included."""
    row = list(ids)
    whole, rest = split_rest(vocabulary.decode(row))
    print(printable(whole), end='', flush=True)
    for column in columns:
        i = column.item()
        if i == vocabulary.eos:
            break
        row.append(i)
        # to decode the whole text again would take longer and longer: 16 tokens are enough, and
        # four more for each character whose bytes are still to come
        window = row[-16 - 4 * len(rest):]
        before, _ = split_rest(vocabulary.decode(window[:-1]))
        now, rest = split_rest(vocabulary.decode(window))
        print(printable(now[len(before):]), end='', flush=True)
    print(rest)
    return row


def split_rest(text):
    """(text, the � at its end): these may be the first bytes of a character that is to come."""
    whole = text.rstrip('\ufffd')
    return whole, text[len(whole):]


def collect_texts(vocabulary, ids, columns, B):
    """The ids of B texts, those of their beginning included."""
    rows = [list(ids) for _ in range(B)]
    for column in columns:
        for row, i in zip(rows, column.tolist()):
            if i != vocabulary.eos:
                row.append(i)
    return rows


def show_batch(model, vocabulary, ratings, rows, starts, unit):
    """Print the texts of a batch, unless one was streamed, and their ratings if asked for."""
    if settings.show_rating:
        rating_ids = [vocabulary.rating_ids[n] for n in ratings]
        log_probs = rating_log_probs(model, rows, rating_ids)
        shares = log_probs.softmax(dim=1).tolist()            # P(rating | text), (B, R)
    for n, row in enumerate(rows):
        if settings.num_samples > 1:
            print(label(starts[n]) + printable(vocabulary.decode(row)))
        if settings.show_rating:
            words = [f'{rating_name(r)} {share:.0%}' for r, share in zip(ratings, shares[n])]
            print(f'    reads as {", ".join(words)}')
        if unit != 'line' and (settings.num_samples > 1 or settings.prompt is None):
            print(BETWEEN_TEXTS)
    sys.stdout.flush()


def label(start):
    """'[positive] ', or '' where a person asked for a rating, or where there are none."""
    if settings.rating or start == -1:
        return ''
    return f'[{rating_name(start)}] '


def rating_name(number):
    """The English name of a rating, or of none: some texts of the data may lack one."""
    if number == len(RATING_NAMES):
        return 'unrated'
    english, _ = RATING_NAMES[number]
    return english


if __name__ == '__main__':
    run_script(main)
