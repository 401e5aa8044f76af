"""The reviews: where they come from, what their ratings are called, how they are cleaned and split.

    kr3 | kr3_raw | nsmc | hate_speech | demo | a file
      → (rating, text) of every review, the text clean
      → <name>_train.txt, <name>_val.txt      one source: a line is rating<TAB>text
      → train.txt, validation.txt             all sources, one after the other

A fourth rating is a fourth line in RATINGS; everything else takes the ratings from there. Only the
demo has tables of its own, in grammar.py.
"""
import csv
import hashlib
import json
import re
import unicodedata
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path

from parts import grammar, hub
from parts.errors import UserError, print0
from parts.checkpoint import atomic_write
from parts.parallel import map_ordered
from parts.readers import guess_encoding, read_parquet, read_rows

# --- ratings ---

RATINGS = [  # one line a rating, 0, 1, 2: its token, its English name, its Korean name
    ('<neg>', 'negative', '부정'),
    ('<pos>', 'positive', '긍정'),
    ('<amb>', 'ambiguous', '보통'),
]
UNKNOWN = -1  # the rating of a review that has none
RATING_TOKENS = [token for token, _, _ in RATINGS]
RATING_NAMES = [(english, korean) for _, english, korean in RATINGS]

# what a file may say of a rating → the rating
RATING_LABELS = {'False': 0, 'True': 1}
RATING_LABELS |= {str(rating): rating for rating in range(len(RATINGS))}
RATING_LABELS |= {f'{rating}.0': rating for rating in range(len(RATINGS))}
RATING_LABELS |= {label: UNKNOWN for label in ('', '-', 'None', 'nan', 'NaN')}


def rating_help():
    """What a rating can be: '0 (negative), 1 (positive), 2 (ambiguous)'."""
    return ', '.join(f'{i} ({english})' for i, (english, _) in enumerate(RATING_NAMES))


# --- sources ---

RAW = 'https://raw.githubusercontent.com'
GITHUB_FILES = {
    'nsmc': [
        f'{RAW}/e9t/nsmc/master/ratings_train.txt',
        f'{RAW}/e9t/nsmc/master/ratings_test.txt',
    ],
    'hate_speech': [
        f'{RAW}/kocohub/korean-hate-speech/master/labeled/train.tsv',
        f'{RAW}/kocohub/korean-hate-speech/master/labeled/dev.tsv',
    ],
}
KNOWN_SOURCES = ['demo', 'kr3', 'kr3_raw', *GITHUB_FILES]
LICENCES = {  # of sources, and of vocabularies
    'kr3': 'CC BY-NC-SA 4.0',
    'kr3_raw': 'CC BY-NC-SA 4.0',
    'nsmc': 'CC0 1.0',
    'hate_speech': 'CC BY-SA 4.0',
    'demo': 'MIT',
    'skt/kogpt2-base-v2': 'CC BY-NC-SA 4.0',
}
LANGUAGES = {  # of sources; of a file of one's own it is not known
    'kr3': 'ko',
    'kr3_raw': 'ko',
    'nsmc': 'ko',
    'hate_speech': 'ko',
    'demo': 'ko',
}


def source_files(source):
    """The files of a source, downloaded once. Raises UserError."""
    if source in ('kr3', 'kr3_raw'):
        return hub.dataset(source)
    if source in GITHUB_FILES:
        urls = GITHUB_FILES[source]
        return [hub.download(url, hub.DOWNLOADS / f'{source}_{Path(url).stem}.tsv') for url in urls]
    return [Path(source)]


def read_source(source, encoding, batch_size, n_reviews, seed):
    """Yield (file, number of the first row, rows) of a source, batch_size rows at a time.

    A row is (text, label), as they stand in the file. A row of the demo has a third element, bits:
    -log2 P(rating, text). encoding is for files, n_reviews and seed are for the demo.
    Raises UserError.
    """
    if source == 'demo':
        reviews = grammar.reviews(n_reviews, seed)
        rows = ((text, rating, bits) for rating, text, bits in reviews)
        yield from number_batches('demo', in_batches(rows, batch_size))
        return
    for file in source_files(source):
        yield from number_batches(file, read_file(file, encoding, batch_size))


def number_batches(file, batches):
    first = 1
    for rows in batches:
        yield file, first, rows
        first += len(rows)


# what open, csv, json and pyarrow raise where a file is missing or damaged
READING_ERRORS = (
    OSError, ValueError, LookupError, NotImplementedError, RecursionError, csv.Error,
)


def read_file(file, encoding, batch_size):
    """Yield the rows (text, label) of a file, batch_size at a time. Raises UserError."""
    n = 0
    try:
        if file.suffix.lower() == '.parquet':
            for batch in read_parquet(file, batch_size):
                n += len(batch)
                yield batch
            return
        batch = []
        for row in read_rows(file, encoding):
            n += 1
            batch.append(row)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch
    except UnicodeError:
        named = encoding.removesuffix('-sig')
        raise UserError(f'{file} is not {named}; {guess_encoding(file)}') from None
    except (UserError, *READING_ERRORS) as error:
        where = f' after review {n}' if n else ''
        raise UserError(f'{file} cannot be read{where}: {error}') from None


def in_batches(items, size):
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    batch = list(islice(items, size))
    while batch:
        yield batch
        batch = list(islice(items, size))


# --- the Hugging Face Hub ---

class NotFound(UserError):
    """The Hub has no such repository, revision or file."""


def is_repository(name):
    """Is this owner/name? Nothing else ever becomes part of an address or a path."""
    return re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name) is not None


def hub_file(repository, file, revision=None, repo_type='model'):
    """The path of one file of a repository, downloaded once. Raises NotFound or UserError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    try:
        return Path(hf_hub_download(repository, file, revision=revision, repo_type=repo_type))
    except (EntryNotFoundError, RepositoryNotFoundError) as error:
        raise NotFound(f'{repository}: {error}') from None
    except Exception as error:
        raise UserError(f'{repository}: {error}') from None


# --- cleaning ---

# \ud800 to \udfff: halves of surrogate pairs, which no encoding can write
CONTROL_CHARACTER = re.compile('[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff\ufeff]')


def clean(text):
    """A review as one line of plain text. Cleaning twice changes nothing more.

    Control characters and halves of surrogate pairs are removed. Letters are composed by NFC, not
    by NFKC, which turns ㅋㅋ into ᄏᄏ and cannot be undone. ▁ becomes _, because SentencePiece
    writes ▁ for the space. Each run of spaces and line breaks becomes one space; none is left at
    the ends.
    """
    if is_clean(text):
        return text.strip()
    text = CONTROL_CHARACTER.sub('', text)
    text = unicodedata.normalize('NFC', text)
    text = text.replace('▁', '_')
    return ' '.join(text.split())


def clean_lines(text):
    """As clean, but spaces and line breaks stay: of a paragraph, a file. A line ends with \\n."""
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    text = CONTROL_CHARACTER.sub('', text)
    text = unicodedata.normalize('NFC', text)
    return text.replace('▁', '_')


def cleaner(unit):
    """The function that cleans the texts of a unit."""
    return clean if unit == 'line' else clean_lines


def check_texts(folder, meta):
    """Stand-in."""


def is_clean(text):
    """Whether only spaces at the ends may be left to remove: so in most reviews, and seen quickly.

    Printable characters are no control characters, no surrogates, and no white space but ' '.
    """
    return (
        text.isprintable()
        and '  ' not in text
        and '▁' not in text
        and unicodedata.is_normalized('NFC', text)
    )


# --- one text a line ---

BREAK = '␤'    # a line break in a text
LITERAL = '␛'  # in front of a ␤ or ␛ that the text itself has


def escape(text):
    """A text without line breaks, from which unescape makes the same text again."""
    text = re.sub(f'[{BREAK}{LITERAL}]', rf'{LITERAL}\g<0>', text)
    return text.replace('\n', BREAK)


def unescape(line):
    return re.sub(f'{LITERAL}([{BREAK}{LITERAL}])|{BREAK}', unescape_one, line)


def unescape_one(match):
    return match[1] or '\n'


# --- the split ---

def in_validation(content, val_ratio):
    """Whether a review belongs to the validation side. content: its text in UTF-8.

    The hash of the text alone decides. So a duplicate never sits on both sides, and neither the
    order of the reviews nor another source moves one.
    """
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, 'big') < val_ratio * 2 ** 64


def split_sources(sources, folder, val_ratio, **reading):
    """Write every review to its side, and meta.json with where they come from: all files or none.

    sources: {name: source}, as {'reviews': 'data/reviews.csv'}.
    reading: the other arguments of read_source. Raises UserError.
    """
    about = []
    floor = Floor()
    with ExitStack() as files:
        def create(name):
            return files.enter_context(atomic_write(folder / name, 'wb'))

        meta_file = create('meta.json')
        all_train = create('train.txt')
        all_val = create('validation.txt')
        for name, source in sources.items():
            train_files = [create(f'{name}_train.txt'), all_train]
            val_files = [create(f'{name}_val.txt'), all_val]
            batches = read_source(source, **reading)
            n_train, n_val = split_source(name, batches, val_ratio, train_files, val_files, floor)
            licence = LICENCES.get(source, "the file's own")
            counts = {'train_reviews': n_train, 'val_reviews': n_val}
            about.append({'name': name, 'licence': licence, **counts})
            print0(f'{name}: {n_train:,} reviews to train on, {n_val:,} to validate; '
                   f'licence: {licence}')

        n_train = sum(source['train_reviews'] for source in about)
        n_val = sum(source['val_reviews'] for source in about)
        if n_train == 0 or n_val == 0:
            raise UserError(f'{n_train + n_val} reviews are too few to have some on each side '
                            f'with val_ratio={val_ratio}')
        meta = {'sources': about, **floor.meta()}
        meta_file.write(json.dumps(meta, indent=1, ensure_ascii=False).encode())


def split_source(name, batches, val_ratio, train_files, val_files, floor):
    """Write the reviews of one source to the files of their sides. Returns (n_train, n_val)."""
    from tqdm import tqdm
    n_train = 0
    n_val = 0
    with tqdm(desc=f'split {name}', unit=' reviews', mininterval=0.5, disable=None) as bar:
        for train, val in map_ordered(partial(split_batch, val_ratio), batches):
            for file in train_files:
                file.write(train.lines)
            for file in val_files:
                file.write(val.lines)
            floor.add(val)
            n_train += len(train)
            n_val += len(val)
            bar.update(len(train) + len(val))
    return n_train, n_val


class Side:
    """Reviews of one side, on their way to its files."""

    def __init__(self):
        self.lines = bytearray()  # rating<TAB>text of each review, in UTF-8
        self.bits = []            # -log2 P(rating, text) of each, or None
        self.n_chars = 0          # in all texts

    def __len__(self):
        return len(self.bits)


def split_batch(val_ratio, batch):
    """Clean the reviews of a batch of read_source and sort them: (train, val). Raises UserError."""
    file, first, rows = batch
    train = Side()
    val = Side()
    for n, (text, label, *more) in enumerate(rows, first):
        rating = RATING_LABELS.get(str(label).strip())
        if rating is None:
            raise UserError(f'{file}, review {n}: the rating is {label!r}; '
                            f'it must be {rating_help()} or empty')
        text = clean(text) if isinstance(text, str) else ''
        if not text:
            continue
        content = text.encode()
        side = val if in_validation(content, val_ratio) else train
        label = '-' if rating == UNKNOWN else str(rating)
        side.lines += b'%b\t%b\n' % (label.encode(), content)
        side.bits.append(more[0] if more else None)
        side.n_chars += len(text)
    return train, val


class Floor:
    """The fewest bits per character that any model can need for the validation reviews.

    It is the mean of -log2 P(rating, text) over these very reviews; only the grammar that wrote
    them knows P. The entropy of the grammar is the expectation of this mean over all samples.
    """

    def __init__(self):
        self.n_chars = 0
        self.bits = 0.0
        self.known = True

    def add(self, side):
        self.n_chars += side.n_chars
        for bits in side.bits:
            if bits is None:
                self.known = False
            else:
                self.bits += bits

    def meta(self):
        return {'floor_bits_per_char': self.bits / self.n_chars} if self.known else {}


# --- reading it again ---

def read_split(path, step=1):
    """Yield (rating, text) of every step-th line of train.txt or validation.txt, from the first on.

    Raises UserError.
    """
    for batch in read_lines(path, 1000, step):
        yield from parse_lines(path, batch)


def read_lines(path, batch_size, step=1):
    """Yield (their numbers, lines as bytes), batch_size at a time. Raises UserError."""
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            first = 1
            for lines in in_batches(islice(file, 0, None, step), batch_size):
                end = first + step * len(lines)
                yield range(first, end, step), lines
                first = end
    except FileNotFoundError:
        folder = path.parent
        raise UserError(f'{folder} has no {path.name}; '
                        f'run prepare.py with --output_dir={folder} first') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error}') from None


def parse_lines(path, batch):
    """Yield (rating, text) of each line of a batch of read_lines. Raises UserError."""
    for n, line in zip(*batch):
        try:
            label, tab, text = line.decode().rstrip('\n').partition('\t')
        except UnicodeDecodeError as error:
            raise UserError(f'{path}, line {n}: {error}') from None
        rating = RATING_LABELS.get(label)
        if not tab or rating is None:
            known = ', '.join(map(str, range(len(RATINGS))))
            raise UserError(f'{path}, line {n}: a line is rating<TAB>review, rating {known} or -; '
                            f'--source= reads other forms')
        yield rating, unescape(text)
