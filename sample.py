"""Write a review: give it a beginning, a rating, or nothing at all.

    python sample.py --prompt="김치찌개가" --rating=positive
    python sample.py                                   asks for one beginning after another
    cat beginnings.txt | python sample.py              one review a line
    python sample.py --page=out/demo/page.html         a page to look inside the model

    beginning → ids → </s> <rating> ids… (B, T) → logits (B, V) → one id a row (B,), again and again
    until </s> → text

Start reading here: main, write_reviews and write_batch tell the story from a person's side.
How ids become logits, and logits the next ids, is in model.py.
"""
import sys
from functools import lru_cache

import torch

from configurator import configure
from model import generate, next_logits
from parts.corpus import RATING_NAMES, clean
from parts.errors import UserError, run_script
from parts.folder import SHAPE_FLAGS, find_model_folder, open_model

from parts.machine import select_device
from parts.scoring import rating_log_probs

model_path = ''            # a model folder ('': the newest under out/)
prompt = None              # how the review begins ('': from nothing; none: ask for it)
rating = ''                # positive, negative, ambiguous (1, 0, 2; 긍정, 부정, 보통); '': any
guidance = 1.0             # how much to insist on the rating asked for (0: its token must do)
num_samples = 1            # how many reviews
max_token = 200            # tokens at most; a review mostly ends before
temperature = 0.8          # below 1 likelier, above 1 wilder; 0: always the likeliest
top_k = 0                  # choose among the k likeliest tokens only (0: all)
top_p = 0.95               # among the likeliest that together hold this much probability (1: all)
seed = 0                   # the same seed writes the same reviews
show_rating = False        # also say what the model reads in what it wrote
page = ''                  # write to this file an HTML page that shows the model think
arch = ''                  # only a check: an error if the model folder says otherwise
mode = ''                  # tokenizer or manual; likewise
d_model = 0                # width of the model; likewise
d_ffn = 0                  # width inside its MLPs; likewise
n_layers = 0               # depth; likewise
chunk_size = 0             # how far attention looks back; likewise
device = 'auto'            # cuda, mps, cpu, or auto: the first of them that is there
compile = False            # torch.compile the writing of a token; on a CPU it gains nothing
settings = configure(globals())

MOST_ROWS = 256            # in a batch of reviews that are written side by side
BATCH_BYTES = 1 << 30      # that such a batch may keep in memory


def main():
    check_settings()
    device = select_device(settings.device)
    folder = find_model_folder(settings.model_path)
    flags = {name: getattr(settings, name) for name in SHAPE_FLAGS}
    model, meta, vocabulary = open_model(folder, device, flags)
    if not settings.model_path:
        print(f'{folder}, the newest', file=sys.stderr)
    if settings.page:
        from parts.page import write_page
        n_bytes = write_page(model.cpu(), vocabulary, meta, settings.page)
        print(f'{settings.page}: {n_bytes / 1e6:.1f} MB; open it in a browser')
        return
    generator = torch.Generator(device).manual_seed(settings.seed)
    for beginning in read_beginnings():
        write_reviews(model, vocabulary, clean(beginning), generator)


# --- what a person asks for ---

def check_settings():
    """Raise UserError where a setting makes no sense."""
    asked_rating()
    for name in ('num_samples', 'max_token'):
        if getattr(settings, name) < 1:
            raise UserError(f'{name}={getattr(settings, name)}: it takes 1 or more')
    for name in ('temperature', 'top_k', 'guidance'):
        if getattr(settings, name) < 0:
            raise UserError(f'{name}={getattr(settings, name)}: it takes 0 or more')
    if not 0 < settings.top_p <= 1:
        raise UserError(f'top_p={settings.top_p}: it takes more than 0 and at most 1')
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


def read_beginnings():
    """--prompt, or what a person types until exit, or every line of a pipe. Raises UserError."""
    if settings.prompt is not None:
        yield settings.prompt
        return
    try:
        if sys.stdin.isatty():
            yield from ask_for_beginnings()
        else:
            yield from sys.stdin
    except UnicodeDecodeError:
        raise UserError('the input is not UTF-8') from None


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

def write_reviews(model, vocabulary, beginning, generator):
    """Print num_samples reviews that begin with `beginning`, batch after batch.

    The size of a batch follows from the model and the settings. So the same seed writes the same
    reviews, and a larger num_samples begins with the full batches of a smaller one.
    """
    ids = vocabulary.encode([beginning])[0] if beginning else []
    rating = asked_rating()
    rival_ids = []                                            # the ratings guidance keeps away from
    if rating is not None and settings.guidance > 0:
        rival_ids = [i for n, i in enumerate(vocabulary.rating_ids) if n != rating]
    n_rows = rows_at_once(model.config, len(ids) + 2, n_readings=1 + len(rival_ids))
    for first in range(0, settings.num_samples, n_rows):
        B = min(n_rows, settings.num_samples - first)
        if rating is None:
            ratings = draw_ratings(model, vocabulary, B, generator)
        else:
            ratings = [rating] * B
        write_batch(model, vocabulary, ids, ratings, rival_ids, generator)


def rows_at_once(config, T, n_readings):
    """How many reviews to write side by side, so that memory suffices for any num_samples.

    T: tokens of the beginning. A row keeps keys and values of all it may look back at, and while it
    reads the beginning it holds a score for every pair of tokens. Guidance reads a row n_readings
    times.
    """
    kept = min(config.chunk_size, T + settings.max_token)
    cache = 2 * config.n_layers * config.nkv * config.head_dim * kept
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


def write_batch(model, vocabulary, ids, ratings, rival_ids, generator):
    """Print a review of each of the ratings (B,), all beginning with ids. One alone is streamed."""
    rows = [[vocabulary.eos, vocabulary.start_ids[rating], *ids] for rating in ratings]
    idx = torch.tensor(rows, device=generator.device)         # (B, T)
    columns = generate(                                       # yields (B,), one id a row
        model, idx, settings.max_token, vocabulary.banned, rival_ids, settings.guidance,
        step=step_function(model), temperature=settings.temperature, top_k=settings.top_k,
        top_p=settings.top_p, generator=generator)
    labels = [label(rating) for rating in ratings]
    streamed = settings.num_samples == 1
    if streamed:
        print(labels[0], end='', flush=True)
        written = [stream_review(vocabulary, ids, columns)]
    else:
        written = collect_reviews(vocabulary, ids, columns, len(ratings))
    if settings.show_rating:
        log_probs = rating_log_probs(model, written, vocabulary.rating_ids)
        shares = log_probs.softmax(dim=1).tolist()            # P(rating | text), (B, R)
    for n, row in enumerate(written):
        if not streamed:
            print(labels[n] + vocabulary.decode(row))
        if settings.show_rating:
            print(f'    reads as {shares_in_words(shares[n])}')
    sys.stdout.flush()


def stream_review(vocabulary, ids, columns):
    """Print a review while it is written. Returns its ids, those of its beginning included."""
    row = list(ids)
    shown = ''
    for column in columns:
        i = column.item()
        if i != vocabulary.eos:
            row.append(i)
        text = vocabulary.decode(row)
        text = text.rstrip('\ufffd')                          # the bytes of a character to come
        print(text[len(shown):], end='', flush=True)
        shown = text
    print(vocabulary.decode(row)[len(shown):])
    return row


def collect_reviews(vocabulary, ids, columns, B):
    """The ids of B reviews, those of their beginning included."""
    rows = [list(ids) for _ in range(B)]
    for column in columns:
        for row, i in zip(rows, column.tolist()):
            if i != vocabulary.eos:
                row.append(i)
    return rows


@lru_cache(1)
def step_function(model):
    """How the next logits are computed: in the plainest way, or in a faster one."""
    if settings.compile:
        return torch.compile(next_logits)
    if model.config.arch == 'decoder' and model.lm_head.weight.device.type == 'cpu':
        return FusedStep(model)
    return next_logits


def label(rating):
    """'[positive] ', or '' where a person asked for a rating and so knows it."""
    return '' if settings.rating else f'[{rating_name(rating)}] '


def rating_name(rating):
    if rating == len(RATING_NAMES):
        return 'of unknown rating'
    english, _ = RATING_NAMES[rating]
    return english


def shares_in_words(shares):
    """'negative 3%, positive 95%, ambiguous 2%'"""
    return ', '.join(f'{rating_name(n)} {share:.0%}' for n, share in enumerate(shares))


if __name__ == '__main__':
    run_script(main)
