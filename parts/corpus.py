"""The texts: where they come from, what their ratings mean, how they are cleaned, split, encoded.

    kr3 | kr3_raw | nsmc | hate_speech | shakespeare | demo | a file | a folder
      → (text, label) of every row                    readers.py
      → (rating, text), the text clean
      → <name>_train.txt, <name>_val.txt              one source: a line is rating<TAB>text
      → train.txt, validation.txt                     all sources, one after the other
      → train.bin, val.bin                            the same as ids: the stream

A fourth rating is a fourth line in RATINGS; everything else takes the ratings from there, but for
the demo's tables in grammar.py and the curves of page.html.
"""
import gc
import hashlib
import math
import multiprocessing
import os
import re
import shlex
import signal
import threading
import unicodedata
import zlib
from array import array
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from parts.checkpoint import atomic_write, part_of, read_json, sweep, to_json
from parts.errors import UserError, user_path
from parts.readers import (
    FILE_TYPES,
    LABEL_WORDS,
    MISSING,
    PLAIN_TYPES,
    UNITS,
    LeftOut,
    explain_encoding,
    file_type,
    listed,
    visible,
)

# --- ratings ---

RATINGS = [  # one line a rating, 0, 1, 2: its token, its English name, its Korean name
    ('<neg>', 'negative', '부정'),
    ('<pos>', 'positive', '긍정'),
    ('<amb>', 'ambiguous', '보통'),
]
UNKNOWN = -1  # the rating of a text that has none
RATING_TOKENS = [token for token, _, _ in RATINGS]
RATING_NAMES = [(english, korean) for _, english, korean in RATINGS]
RATING_DIGITS = {'-': UNKNOWN} | {str(rating): rating for rating in range(len(RATINGS))}

# what a table may say of a rating → the rating
NO_LABELS = {'': UNKNOWN, 'none': UNKNOWN} | {name.lower(): UNKNOWN for name in MISSING}
RATING_LABELS = RATING_DIGITS | NO_LABELS | {'false': 0, 'true': 1}
RATING_LABELS |= {name: n for n, names in enumerate(RATING_NAMES) for name in names}

STARS = '--ratings=1:0,2:0,3:2,4:1,5:1'


class Labels:
    """What the labels of a table mean: as --ratings= says, or as RATING_LABELS does."""

    def __init__(self, ratings=''):
        """ratings: 'LABEL:RATING,LABEL:RATING'. Raises UserError."""
        self.given = bool(ratings)
        self.meaning = dict(NO_LABELS if ratings else RATING_LABELS)
        said = {}
        # a comma within a label stays: 4,5:1
        pairs = re.sub(r'\s*:\s*([-\d])\s*(?=,|$)', r':\1', ratings)         # without spaces
        for pair in re.split(r'(?<=:[-\d]),', pairs) if ratings else []:
            label, colon, digit = pair.rpartition(':')
            label, rating = self.as_compared(label), RATING_DIGITS.get(digit.strip())
            if not colon or rating is None:
                raise UserError(f"ratings='{ratings}': it is written LABEL:RATING,LABEL:RATING, "
                                f'as {STARS}; a rating is {rating_help()}, or - for none')
            if said.setdefault(label, rating) != rating:
                raise UserError(f"ratings='{ratings}': it gives {label!r} two ratings")
        self.meaning |= said

    @staticmethod
    def as_compared(label):
        """A label as it is compared: a gap in a column of pandas makes 1.0 of every 1, a database
        1.00, Excel 1,0 where that is how it writes 1.0.
        """
        return re.sub(r'(?<=\d)(\.0+|,00?)$', '', visible(label).lower())

    def rating(self, label):
        """The rating that a label means. Raises UserError."""
        rating = self.meaning.get(self.as_compared(str(label)))
        if rating is None and self.given:
            raise UserError(f'its label is {shortened(label)}, of which --ratings= says nothing')
        if rating is None:
            raise UserError(f'its label is {shortened(label)}, and a rating is {rating_help()} or '
                            f'empty; {STARS} says what labels mean, here stars; words are labels, '
                            'too (--ratings=bad:0,good:1), and --rating_column=none reads none')
        return rating

    def check_seen(self, name, digits):
        """Ask what labels mean that are hardly KR3's: 1 and 2, say, can be bad and good.

        name: of the source. digits: {file: the ratings for which it has digits}. Raises
        UserError.
        """
        if self.given:
            return
        known = sorted(set().union(*digits.values()))
        if known in ([1], list(range(len(known)))):           # usual, but perhaps not in each file
            for file, seen in digits.items():
                if seen == {1, 2}:
                    raise UserError(f'{file}: its labels are 1 and 2, and another file has 0, '
                                    'too; --ratings=0:0,1:1,2:2 reads all as they are, and if 1 is '
                                    'bad there, prepare that file by itself with --ratings=1:0,2:1')
            return
        labels = ' and '.join(map(str, known))
        as_they_are = ','.join(f'{rating}:{rating}' for rating in known)
        other = (f'--ratings={known[0]}:0,{known[-1]}:1 reads the first as negative and the last '
                 f'as positive, ' if len(known) > 1 else '')
        raise UserError(f'{name}: its labels are {labels}, and a rating is {rating_help()}; {other}'
                        f'--ratings={as_they_are} reads them as they are')


def rating_help():
    """What a rating can be: '0 (negative), 1 (positive), 2 (ambiguous)'."""
    return ', '.join(f'{i} ({english})' for i, (english, _) in enumerate(RATING_NAMES))


# --- sources ---

RAW = 'https://raw.githubusercontent.com'
NSMC = f'{RAW}/e9t/nsmc/cc0670e872d4ac27bfe36c87456783004b39ef6c'
HATE_SPEECH = f'{RAW}/kocohub/korean-hate-speech/f8d05dce2b22007bb149e5139c0060c68ad8f94b/labeled'
CHAR_RNN = f'{RAW}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data'
PLAIN_FILES = {  # source → (address of a commit, name that the file gets, its sha256)
    'nsmc': [
        (f'{NSMC}/ratings_train.txt', 'nsmc_ratings_train.tsv',
         'e03b7d14e9e41be8d464a28057cd25d7396c53e67aa7fd5f7e552c59b0ee2940'),
        (f'{NSMC}/ratings_test.txt', 'nsmc_ratings_test.tsv',
         '8ac9f64052f11dbf6ae0acb5e038f03d90a76f0eda7820cfb3a92d02edfcebda'),
    ],
    'hate_speech': [
        (f'{HATE_SPEECH}/train.tsv', 'hate_speech_train.tsv',
         'ebebacdcd023af2c4acc8c0a37695fb6433ac04fc009feff8f222724e303a5a9'),
        (f'{HATE_SPEECH}/dev.tsv', 'hate_speech_dev.tsv',
         '232b615d6e359a9d31dfb8370f32e1733dc5bb3f9c5430d34d7fcc7ba4b7e8ef'),
    ],
    'shakespeare': [
        (f'{CHAR_RNN}/tinyshakespeare/input.txt', 'shakespeare.txt',
         '86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed'),
    ],
}
# source → (repository, file, commit). kr3_raw.tsv left the repository with a later commit.
HUB_DATASETS = {
    'kr3': ('leey4n/KR3', 'kr3.parquet', '290dc88'),
    'kr3_raw': ('leey4n/KR3', 'kr3_raw.tsv', 'ca30a6074c6a66a480c5df319391d03d8a5a80c6'),
}
PINNED = {'skt/kogpt2-base-v2': 'd0c0df48bf2b2c9350dd855021a5b216f560c0c7'}  # models
KNOWN_SOURCES = ['demo', *HUB_DATASETS, *PLAIN_FILES]
OWN_LICENCE = "the file's own"  # of a file that a person brings
LICENCES = {  # of sources, and of vocabularies
    'kr3': 'CC BY-NC-SA 4.0',
    'kr3_raw': 'CC BY-NC-SA 4.0',
    'nsmc': 'CC0 1.0',
    'hate_speech': 'CC BY-SA 4.0',
    'shakespeare': 'public domain',
    'demo': 'MIT',
    'skt/kogpt2-base-v2': 'CC BY-NC-SA 4.0',
}
LANGUAGES = {'shakespeare': 'en'}  # of known sources; the others are in Korean
DOWNLOADS = Path('data/download')
ADVICE = {  # for files that are not read
    '.json': '; write one object a line and name it .jsonl',
    '.ndjson': '; name it .jsonl',
    '.tab': '; name it .tsv',
    '.arrow': '; save it as .parquet',
    '.feather': '; save it as .parquet',
}
ADVICE |= dict.fromkeys(('.zip', '.bz2', '.xz', '.zst', '.7z', '.rar', '.tar', '.tgz'),
                        '; unpack it')
ADVICE |= dict.fromkeys(('.xlsx', '.xls', '.ods', '.numbers'), '; save the table as CSV (UTF-8)')
ADVICE |= dict.fromkeys(('.docx', '.doc', '.odt', '.rtf', '.pdf', '.hwp', '.hwpx', '.epub'),
                        '; save it as plain text, .txt')


def find_source(source):
    """One source as a known name or as the path of a file or folder. Raises UserError."""
    if source in KNOWN_SOURCES:
        return source
    path = user_path(source)
    if not path.exists() and path.parent.is_dir():
        for other in path.parent.iterdir():  # macOS writes names in NFD
            if unicodedata.normalize('NFC', other.name) == unicodedata.normalize('NFC', path.name):
                path = other
    if source and path.is_dir() or path.is_file() and file_type(path):
        return path
    types = ' '.join(FILE_TYPES)
    if path.is_file():
        suffix = Path(path.name.lower().removesuffix('.gz')).suffix
        advice = ADVICE.get(suffix, '')
        raise UserError(f"source '{source}' is a file of a type that is not read{advice} "
                        f'(these are: {types}, each also with .gz)')
    raise UserError(f"source '{source}' is neither one of {', '.join(KNOWN_SOURCES)} "
                    f'nor a file that is there ({types}, each also with .gz) nor a folder')


def source_name(source):
    """The name that the texts of a source are written under: that of the file without its type."""
    if source in KNOWN_SOURCES:
        return source
    name = source.resolve().name
    if source.is_file():
        packed = source.suffix.lower() == '.gz'
        name = source.stem if packed else source.name         # a link has its own
        name = name[:-len(file_type(source))]
    if not name.isprintable():
        raise UserError(f'source {ascii(name)}: there are characters in this name that cannot be '
                        'printed; rename it')
    return unicodedata.normalize('NFC', name)


def source_files(source, revision):
    """(files, others): the paths of a source's files, in order, fetched where they must be, and the
    files of a folder that cannot be read. Raises UserError.
    """
    if source in HUB_DATASETS:
        repository, file, commit = HUB_DATASETS[source]
        return [hub_file(repository, file, revision or commit, 'dataset')], []
    if source in PLAIN_FILES:
        return [plain_file(*file) for file in PLAIN_FILES[source]], []
    if source.is_file():
        return [source], []
    files, others = [], []
    for path in sorted(source.rglob('*')):
        hidden = any(part.startswith('.') for part in path.relative_to(source).parts)
        closed = path.is_dir() and not os.access(path, os.R_OK | os.X_OK)
        if path.is_file():
            readable = file_type(path) and not hidden
            (files if readable else others).append(path)
        elif path.is_symlink() or closed:  # a link is to a folder, or to nothing
            others.append(path)
    if not files:
        raise UserError(f'{source} holds no file that is read ({" ".join(FILE_TYPES)}, each also '
                        f'with .gz)')
    return files, others


def refuse_twice(sources):
    """Raise UserError where one file is read twice: named, in a folder, or by a link."""
    seen = {}
    for source in sources:
        for file in source_files(source, '')[0]:
            status = file.stat()
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            again = seen.setdefault(key, file)
            if again is not file:
                raise UserError(f'{file} is {again} again; leave one of the two out')


# --- the Hugging Face Hub, and plain addresses ---

class NotFound(UserError):
    """The Hub has no such repository, revision or file."""


def is_repository(name):
    """Is this owner/name? Nothing else ever becomes part of an address or a path."""
    return re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name) is not None


def hub_file(repository, file, revision=None, repo_type='model'):
    """The path of one file of a repository, downloaded once into the Hub's cache.

    revision: a commit, at least its first seven digits, a tag or a branch; None: the commit that is
    pinned here, or what is newest. Raises NotFound or UserError.
    """
    from huggingface_hub import errors, hf_hub_download
    revision = revision or PINNED.get(repository)
    try:
        if re.fullmatch('[0-9a-f]{7,39}', revision or ''):
            revision = whole_commit(repository, revision, repo_type)
        return Path(hf_hub_download(repository, file, revision=revision, repo_type=repo_type))
    except errors.GatedRepoError:
        raise UserError(f'{repository}: its owner lets only some people in; ask for access on its '
                        f'page, then log in (hf auth login)') from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError,
            errors.RemoteEntryNotFoundError) as error:
        raise NotFound(f'{repository}: the Hub does not have {file} of {revision or "main"} '
                       f'({first_line(error)})') from None
    except NotFound:            # of whole_commit
        raise
    except Exception as error:  # of the network, the disk, the cache: the library has a dozen
        raise UserError(f'{repository}: {file} cannot be fetched ({first_line(error)})') from None


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def whole_commit(repository, digits, repo_type):
    """All forty digits of a commit: from the cache, or from the Hub's list of commits."""
    from huggingface_hub import HfApi, constants
    cached = Path(constants.HF_HUB_CACHE) / f'{repo_type}s--{repository.replace("/", "--")}'
    for snapshot in cached.glob(f'snapshots/{digits}*'):
        return snapshot.name
    for commit in HfApi().list_repo_commits(repository, repo_type=repo_type):
        if commit.commit_id.startswith(digits):
            return commit.commit_id
    raise NotFound(f'{repository}: the Hub has no commit {digits}')


def plain_file(url, name, sha256):
    """The path of a file on the web, downloaded once, and never another file than the one whose
    sha256 is known. Raises UserError.
    """
    path = DOWNLOADS / name
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
        raise UserError(f'{path} is not the file that {url} was; delete or rename it')
    import requests
    try:
        answer = requests.get(url, timeout=30)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise UserError(f'{url} cannot be fetched: {first_line(error)}') from None
    if hashlib.sha256(answer.content).hexdigest() != sha256:
        raise UserError(f'{url}: what came is not the file that was there; nothing was kept')
    with atomic_write(path, 'wb') as file:
        file.write(answer.content)
    return path


# --- cleaning ---

# all that ends a line for str.splitlines(), but \n itself; and the other separators of ASCII
LINE_END = re.compile('\r\n|[\r\v\f\x1c-\x1f\x85\u2028\u2029]')

LATIN_CONTROL = re.compile('[\x80-\x84\x86-\x9f]')  # quotes and the like, if it was cp1252
# \ud800 to \udfff: halves of surrogate pairs, which no encoding can write; \ufeff: a BOM
CONTROL_CHARACTER = re.compile(
    f'[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff\ufeff]|{LATIN_CONTROL.pattern}')


def clean(text):
    """A text as one line of plain characters. Cleaning twice changes nothing more.

    Control characters, BOMs and halves of surrogate pairs are removed. Letters are composed by NFC,
    not by NFKC, which turns ㅋㅋ into ᄏᄏ and cannot be undone. ▁ becomes _, because SentencePiece
    writes ▁ for the space. Each run of spaces and line breaks becomes one space; none is left at
    the ends.
    """
    # in most texts only spaces at the ends may be left to remove, which is seen quickly: what is
    # printable is no control character, no surrogate, and no white space but ' '
    if (text.isprintable() and '  ' not in text and '▁' not in text
            and unicodedata.is_normalized('NFC', text)):
        return text.strip()
    return ' '.join(clean_lines(text).split())


def clean_lines(text):
    """As clean, but spaces and line breaks stay: of a paragraph, a file. A line ends with \\n."""
    text = LINE_END.sub('\n', text)
    text = CONTROL_CHARACTER.sub('', text)
    text = unicodedata.normalize('NFC', text)
    return text.replace('▁', '_')


def cleaner(unit):
    """The function that cleans the texts of a unit."""
    return clean if unit == 'line' else clean_lines


# --- one text a line ---

BREAK = '␤'    # a line break in a text
LITERAL = '␛'  # in front of a ␤ or ␛ that the text itself has


def escape(text):
    """A text without line breaks, from which unescape makes the same text again."""
    if BREAK in text or LITERAL in text:
        text = re.sub(f'[{BREAK}{LITERAL}]', rf'{LITERAL}\g<0>', text)
    return text.replace('\n', BREAK)


def unescape(line):
    if BREAK not in line and LITERAL not in line:
        return line
    return re.sub(f'{LITERAL}([{BREAK}{LITERAL}])|{BREAK}', lambda match: match[1] or '\n', line)


def text_line(rating, text):
    """The line of train.txt: rating<TAB>text in UTF-8."""
    label = '-' if rating == UNKNOWN else str(rating)
    return f'{label}\t{escape(text)}\n'.encode()


# --- the split ---

SIDES = {'train': 'train.txt', 'val': 'validation.txt'}


def in_validation(text, val_ratio):
    """Whether a text belongs to the validation side. text: what can be seen of it.

    Its hash alone decides. So a duplicate never sits on both sides, and neither the order of the
    texts nor another source moves one.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') < val_ratio * 2 ** 64


class Report:
    """What became of the rows of one source, or of some, for people and for meta.json."""

    def __init__(self, name='', licence=''):
        self.name = name
        self.licence = licence
        self.n_rows = 0
        self.n_texts = Counter()   # side → how many
        self.ratings = Counter()
        self.digits = {}           # file → the ratings that a digit told there, and not a word
        self.left_out = Counter()  # why → how many
        self.types = Counter()     # '.csv' → how many files are read
        self.others = []           # files of a folder that are not read
        self.labels_of_files = set()  # names of files and folders that a rating has, too
        self.n_controls = 0        # texts with control characters of ISO 8859-1
        self.empty = []            # files without a row
        self.replaced = ''         # the folder, where it held another train.txt
        self.columns = {}          # (text column, rating column) → names of all columns
        self.val_chars = 0
        self.val_bits = 0.0        # -log2 P of the validation texts, NaN where it is not known

    def add(self, part):
        """Count what another report of the same source counted, of other rows."""
        self.n_rows += part.n_rows
        for file, seen in part.digits.items():
            self.digits.setdefault(file, set()).update(seen)
        self.ratings += part.ratings
        self.left_out += part.left_out
        self.n_controls += part.n_controls
        self.n_texts += part.n_texts
        self.val_chars += part.val_chars
        self.val_bits += part.val_bits

    def meta(self):
        texts = self.n_texts
        return {'name': self.name, 'licence': self.licence,
                'train_reviews': texts['train'], 'val_reviews': texts['val']}

    @property
    def is_plain(self):
        """Whether all files that are read are plain text."""
        return set(self.types) <= set(PLAIN_TYPES)

    @property
    def rated(self):
        """Whether a text has a rating, or a column that may hold some was read."""
        return bool(set(self.ratings) - {UNKNOWN}) or any(rating for _, rating in self.columns)

    def lines(self):
        """Sentences that tell it, from the rows that were read to those that were left out."""
        kept = sum(self.ratings.values())
        train, val = self.n_texts['train'], self.n_texts['val']
        yield (f'{self.name}: texts read: {self.n_rows:,}, kept: {kept:,}, to train on: {train:,}, '
               f'to validate: {val:,}; licence: {self.licence}')
        if self.rated:
            parts = [f'{self.ratings[rating]:,} {english}'
                     for rating, (english, _) in enumerate(RATING_NAMES)]
            parts.append(f'{self.ratings[UNKNOWN]:,} without a rating')
            yield f'{self.name}: {", ".join(parts)}'
        if 2 in set().union(*self.digits.values()) and self.licence == OWN_LICENCE:
            yield (f'{self.name}: labels 0, 1 and 2 are read as negative, positive and ambiguous '
                   '(--ratings=0:0,1:2,2:1 where 1 is neutral and 2 positive)')
        for text, rating in sorted(self.columns, key=repr):
            its_rating = f', the rating {rating!r}' if rating else ''
            yield f'{self.name}: the text is the column {text!r}{its_rating}'
        if self.columns and not self.rated:
            names = listed(next(iter(self.columns.values())))
            yield f'{self.name}: no ratings; its columns are {names} (--rating_column= takes one)'
        if len(self.labels_of_files) > 1 and not self.rated:
            yield (f'{self.name}: no ratings are read from the names of folders and files '
                   f'({", ".join(sorted(self.labels_of_files))}); a table has a column for them')
        if self.n_controls:
            yield (f'{self.name}: texts with characters of U+0080 to U+009F, which were removed: '
                   f'{self.n_controls:,} (were they quotes and dashes, cp1252 read as Latin-1?)')
        if self.replaced:
            yield f'{self.replaced} held another train.txt; this one has taken its place'
        if len(self.types) > 1:
            parts = [f'{n:,} {suffix}' for suffix, n in self.types.items()]
            yield f'{self.name}: files read: {", ".join(parts)}'
        if self.left_out:
            yield f'{self.name}: {self.left_out_words()}'
        if self.others:
            types = sorted({path.suffix or path.name for path in self.others})
            yield f'{self.name}: other files, not read: {len(self.others):,}, as {types[:5]}'
        if self.empty:
            names = [path.name for path in self.empty]
            yield f'{self.name}: files without a text: {len(names):,}, as {names[:5]}'

    def left_out_words(self):
        reasons = ', '.join(f'{n:,} {reason}' for reason, n in self.left_out.most_common())
        return f'{sum(self.left_out.values()):,} left out: {reasons}'


def read_source(source, reader, report, revision='', n_reviews=0, seed=0):
    """Yield (file, number of the first row, rows) of a source, some thousand rows at a time.

    A row is (text, label), and in the demo (text, label, bits), bits being -log2 P(rating, text).
    n_reviews and seed are for the demo. Raises UserError.
    """
    if source == 'demo':
        from parts import grammar
        rows = ((text, rating, bits) for rating, text, bits in grammar.reviews(n_reviews, seed))
        if reader.rating_column == 'none':
            rows = ((text, None) for text, *_ in rows)
        tables = [('demo', rows)]
    else:
        files, report.others = source_files(source, revision)
        report.types = Counter(map(file_type, files))
        names = {name for file in files for name in (file.parent.name, file.stem)}
        report.labels_of_files = {name for name in names if name.lower() in LABEL_WORDS}
        tables = ((file, read_file(file, reader)) for file in files)
    for file, rows in tables:
        n_rows = 0
        for batch in batches(rows, 5000):
            yield file, n_rows + 1, batch
            n_rows += len(batch)
        if n_rows == 0:
            report.empty.append(file)
    report.columns = reader.read
    for name in ('text_column', 'rating_column'):
        wanted = getattr(reader, name)
        if wanted not in ('', 'none') and report.is_plain:
            raise UserError(f'{name}={wanted}: {source} is plain text, which has no columns')


LONG_TEXT = 100_000  # characters from which on a text is worked on by itself


def batches(items, size):
    """Yield lists of `size` of the items, or of fewer where their texts are long; one of more than
    LONG_TEXT characters comes alone. An item has its text first.
    """
    batch, n_chars = [], 0
    for item in items:
        n = len(item[0]) if isinstance(item[0], str | bytes) else 0
        if batch and (n > LONG_TEXT or len(batch) == size or n_chars + n > 50 * LONG_TEXT):
            yield batch
            batch, n_chars = [], 0
        batch.append(item)
        n_chars += n
        if n > LONG_TEXT:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


# what open, gzip and pyarrow raise where a file is missing or damaged
READING_ERRORS = (OSError, EOFError, ValueError, LookupError, NotImplementedError, zlib.error)


def read_file(file, reader):
    """Yield the rows (text, label) of a file. Raises UserError."""
    n = 0
    try:
        for row in reader.rows(file):
            yield row
            n += 1
    except UnicodeError:
        raise UserError(why_not_decoded(file, reader.encoding)) from None
    except (UserError, *READING_ERRORS) as error:
        where = f' after row {n:,}' if n else ''
        raise UserError(f'{file} cannot be read{where}: {error}') from None


def why_not_decoded(file, encoding):
    """What is wrong with a file that is not in its encoding, in words."""
    if file_type(file) == '.parquet':
        return f'{file} holds text that is not UTF-8, which a .parquet must have'
    try:
        return explain_encoding(file, encoding)
    except READING_ERRORS as error:                           # it is cut off, too
        return f'{file} cannot be read: {error}'


def split_sources(sources, folder, val_ratio, labels, make_reader, **reading):
    """Write every text to its side, and meta.json: all files or none. Returns a Report of each.

    sources: {name: source}, as {'reviews': Path('data/reviews.csv')}. make_reader(): a Reader.
    reading: the last arguments of read_source. Raises UserError.
    """
    from tqdm import tqdm
    reports, labelled = [], []  # labelled: --ratings= is of a person's own files, if there are any
    files = other_files(folder, text_names(sources))
    before = read_texts_meta(folder).get('train_txt_crc32')
    all_known = set(sources.values()) <= set(KNOWN_SOURCES)
    with new_files(folder) as create:
        shared = {side: TextFile(create(name)) for side, name in SIDES.items()}
        for name, source in sources.items():
            reader = make_reader(source)
            report = Report(name, LICENCES.get(source, OWN_LICENCE))
            own = {side: TextFile(create(f'{name}_{side}.txt')) for side in SIDES}
            rows = read_source(source, reader, report, **reading)
            its_labels = Labels()
            if all_known or source not in KNOWN_SOURCES:
                its_labels = labels
                labelled.append(report)
            parts = map_ordered(split_rows, rows, reader.unit, val_ratio, its_labels)
            with (
                closing(parts),
                tqdm(desc=f'split {name}', unit=' texts', mininterval=0.5, disable=None) as bar,
            ):
                for lines, part in parts:
                    for side in SIDES:
                        own[side].write(lines[side])
                        shared[side].write(lines[side])
                    report.add(part)
                    bar.update(part.n_rows)
            if source not in KNOWN_SOURCES:
                labels.check_seen(name, report.digits)
            reports.append(report)
            files |= {f'{name}_{side}.txt': file.crc32 for side, file in own.items()}
        if labels.given and not any(report.rated for report in labelled):
            raise UserError('--ratings= says what ratings mean, and no text has one; '
                            '--rating_column= names the column of a table that holds them')
        # pos.txt,neg.txt: two sources
        reports[0].labels_of_files.update(*(report.labels_of_files for report in reports))
        check_sides(reports, val_ratio, reader.unit)
        meta = {'sources': [report.meta() for report in reports],
                'unit': reader.unit, 'files': files}
        for side, file in shared.items():
            meta |= file.meta(side)
        bits = sum(report.val_bits for report in reports)
        if not math.isnan(bits):  # of these very texts; only the grammar that wrote them knows it
            n_chars = sum(report.val_chars for report in reports)
            meta['floor_bits_per_char'] = bits / n_chars
        create('meta.json').write(to_json(meta))
    if before not in (None, meta['train_txt_crc32']):
        reports[0].replaced = str(folder)
    return reports


def split_rows(unit, val_ratio, labels, numbered_rows):
    """Clean the rows of a batch of read_source and send each to its side: ({side: the lines of its
    file}, a Report of these rows). Raises UserError.
    """
    file, first, rows = numbered_rows
    clean_text = cleaner(unit)
    whole_file = unit == 'file' and file != 'demo' and file_type(file) in PLAIN_TYPES
    lines = {side: bytearray() for side in SIDES}
    report = Report()
    digits = report.digits.setdefault(file, set())
    for n, (text, label, *bits) in enumerate(rows, first):
        report.n_rows += 1
        reason = text if isinstance(text, LeftOut) else 'empty'
        text = text if text and reason == 'empty' else ''
        report.n_controls += not text.isprintable() and bool(LATIN_CONTROL.search(text))
        text = clean_text(text)
        seen = visible(text)
        if not seen:
            report.left_out[reason] += 1
            continue
        try:
            rating = labels.rating('' if label is None else label)
        except UserError as error:
            raise UserError(f'{file}, row {n:,}: {error}') from None
        report.ratings[rating] += 1
        in_digits = not labels.given and labels.as_compared(str(label)).isdigit()
        if rating not in (UNKNOWN, *digits) and in_digits:
            digits.add(rating)
        if whole_file:
            # pieces of one text cannot be shuffled between the sides: its end is validation
            cut = int(len(text) * (1 - val_ratio))
            if not visible(text[cut:]):                       # it ends with many blank lines
                cut = int(len(text.rstrip()) * (1 - val_ratio))
            parts = {'train': text[:cut], 'val': text[cut:]}
            shown = [side for side, part in parts.items() if visible(part)]
            if len(shown) == 1:                               # the other side would show nothing
                parts = {shown[0]: text}
        else:
            parts = {'val' if in_validation(seen, val_ratio) else 'train': text}
        for side, part in parts.items():
            lines[side] += text_line(rating, part)
            report.n_texts[side] += 1
            if side == 'val':
                report.val_chars += len(part)
                report.val_bits += bits[0] if bits and not labels.given else math.nan
    return lines, report


def check_sides(reports, val_ratio, unit):
    """Raise UserError where a side has no text."""
    n_texts = {side: sum(report.n_texts[side] for report in reports) for side in SIDES}
    if all(n_texts.values()):
        return
    left_out = [report.left_out_words() for report in reports if report.left_out]
    left_out += [f'{file} has none' for report in reports for file in report.empty[:3]]
    why = f' ({"; ".join(left_out)})' if left_out else ''
    plain = all(report.types and report.is_plain for report in reports)
    advice = ''
    if plain and unit != 'file' and any(n_texts.values()):
        advice = '; --unit=file makes one text of a file and keeps its end for validation'
    elif sum(n_texts.values()) > 1:
        advice = f'; a {"smaller" if n_texts["val"] else "larger"} --val_ratio= may help'
    raise UserError(f'{sum(n_texts.values()):,} texts are too few, or too much alike, to have some '
                    f'on each side with val_ratio={val_ratio}{why}{advice}')


class TextFile:
    """train.txt or validation.txt while it is written; keeps its size and checksum."""

    def __init__(self, file):
        self.file = file
        self.n_bytes = 0
        self.crc32 = 0

    def write(self, line):
        self.file.write(line)
        self.n_bytes += len(line)
        self.crc32 = zlib.crc32(line, self.crc32)

    def meta(self, side):
        return {f'{side}_txt_bytes': self.n_bytes, f'{side}_txt_crc32': self.crc32}


# --- a folder of texts ---

RENAMES = 'renames.json'  # while files take their places: {where a file is: its name}


@contextmanager
def new_files(folder):
    """Write files that appear in a folder together or not at all: create(name) opens one.

    They are written beside their places, flushed to the disk, then renamed. meta.json goes first
    and comes last, so whoever finds it finds all that it speaks of. Ctrl-C waits for that; what
    kill -9 leaves undone, finish_renames() does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    names = []
    try:
        with ExitStack() as files:
            opened = []

            def create(name):
                names.append(name)  # before the file is there, so that Ctrl-C finds it
                opened.append(files.enter_context(open(part_of(folder / name), 'wb')))
                return opened[-1]

            yield create
            for file in opened:
                file.flush()
                os.fsync(file.fileno())  # the renames must not reach the disk before the bytes do
        with signals_postponed():
            in_order = sorted(names, key=lambda name: name == 'meta.json')
            plan = {part_of(folder / name).name: name for name in in_order}
            with atomic_write(folder / RENAMES, 'wb') as file:
                file.write(to_json(plan))
            (folder / 'meta.json').unlink(missing_ok=True)
            finish_renames(folder)
    finally:
        for name in names:
            part_of(folder / name).unlink(missing_ok=True)


def finish_renames(folder):
    """Do what is left of new_files()'s renames: after a kill in their midst, train.txt would be of
    one run and validation.txt of another.
    """
    path = folder / RENAMES
    if not path.exists():
        return
    plan = {part: str(name) for part, name in read_json(path).items()}
    # the folder may come from somebody else: nothing outside it is touched, nor what is not ours
    ours = [name and '/' not in name and re.fullmatch(rf'{re.escape(name)}\.[0-9]+\.part', part)
            for part, name in plan.items()]
    if not ours or not all(ours):
        raise UserError(f'{path} is not one of prepare.py; move it away')
    for part, name in plan.items():
        with suppress(FileNotFoundError):                     # it was done before
            os.replace(folder / part, folder / name)
    path.unlink(missing_ok=True)


@contextmanager
def signals_postponed():
    """Ctrl-C and SIGTERM come after this. A process that is started in here is deaf to them."""
    numbers = signal.SIGINT, signal.SIGTERM
    heard = []
    handlers = {number: signal.signal(number, lambda number, _: heard.append(number))
                for number in numbers}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in heard:
            signal.raise_signal(number)


def shortened(value):
    words = repr(value)
    return words if len(words) <= 60 else words[:60] + '…'


def read_texts_meta(folder):
    """What a data folder's meta.json says of its texts, {} where there is none. Raises UserError.

    Another person may have written it: only names that are known are taken, and only values of the
    kind that they must have.
    """
    path = folder / 'meta.json'
    if not path.exists():
        return {}
    kinds = {'sources': list, 'unit': str, 'floor_bits_per_char': float, 'files': dict}
    kinds |= {f'{side}_txt_{what}': int for side in SIDES for what in ('bytes', 'crc32')}
    content = read_json(path)
    meta = {name: content[name] for name in kinds if name in content}
    for name, value in meta.items():
        if type(value) is not kinds[name] or name == 'unit' and value not in UNITS:
            raise UserError(f'{path}: {name} cannot be {shortened(value)}')
    kinds = {'name': str, 'licence': str, 'train_reviews': int, 'val_reviews': int}
    for source in meta.get('sources', []):
        for name, kind in kinds.items():
            value = source.get(name) if isinstance(source, dict) else None
            # what is no text, or moves the cursor of a terminal, is not printed
            if type(value) is not kind or kind is str and not value.isprintable():
                raise UserError(f'{path}: {name} of a source cannot be {shortened(value)}')
    drop_other_floor(folder, meta)
    return meta


def file_crc32(path):
    crc32 = 0
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def texts_meta(folder):
    """The sizes and checksums of train.txt and validation.txt, for the meta.json of their bins."""
    meta = {}
    for side, name in SIDES.items():
        path = folder / name
        meta[f'{side}_txt_bytes'] = path.stat().st_size
        meta[f'{side}_txt_crc32'] = file_crc32(path)
    return meta


def check_texts(folder, meta):
    """Raise UserError where the texts in a folder are no longer those of the bins.

    meta: the meta.json of the bins.
    """
    if path := changed_text(folder, meta):
        flags = [f'--data_dir={folder}', f'--mode={meta.get("mode", "tokenizer")}',
                 str(meta.get('vocabulary_flag', ''))]
        raise UserError(f'{path} is no longer the text that the ids were made of; '
                        f'python prepare.py {shlex.join(filter(None, flags))} makes them anew')


COMPARED_BYTES = 2 ** 27  # a larger text is compared by its size: a start must not take longer


def changed_text(folder, meta):
    """The path of a text in a folder that is not what a meta.json says of it, None if none is."""
    for side, name in SIDES.items():
        path = folder / name
        if f'{side}_txt_bytes' not in meta or not path.exists():
            continue
        n_bytes = path.stat().st_size
        same = n_bytes == meta[f'{side}_txt_bytes']
        if same and n_bytes <= COMPARED_BYTES:
            same = file_crc32(path) == meta.get(f'{side}_txt_crc32')
        if not same:
            return path
    return None


def drop_other_floor(folder, meta):
    """Take the floor out of a meta.json that tells of another validation.txt than the folder's."""
    val = {name: value for name, value in meta.items() if name.startswith('val_')}
    if 'floor_bits_per_char' in meta and changed_text(folder, val):
        del meta['floor_bits_per_char']


# --- what is not ours ---

def text_names(sources):
    """The files that prepare.py writes for sources of these names."""
    own = [f'{name}_{side}.txt' for name in sources for side in SIDES]
    return [*SIDES.values(), 'meta.json', *own]


def refuse_to_overwrite(folder, names, sources):
    """Raise UserError where writing files of these names would lose what somebody else wrote.

    sources: files and folders that are read for them.
    """
    for source in sources:
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f'{folder} lies in {source}, and what is written there would be read '
                            f'as one of its texts the next time; name another --output_dir')
    ours = our_files(folder, names)
    for name in names:
        path = folder / name
        if not path.exists():
            continue
        if any(source.samefile(path) for source in sources):
            raise UserError(f'{path} would be written over while it is read; '
                            f'name another --output_dir')
        if name not in ours:
            raise UserError(f'{path} is there, and prepare.py did not write it as it is; move it '
                            f'away or name another --output_dir')


def our_files(folder, names):
    """Those of the names in a folder that prepare.py wrote, by the meta.json beside them."""
    if not (folder / 'meta.json').exists() or (folder / 'model.safetensors').exists():
        return []
    meta = read_json(folder / 'meta.json')
    if 'train_tokens' in meta:  # the meta.json of bins: it is of no text, and must stay theirs
        return [] if 'train.txt' in names else names
    meta = read_texts_meta(folder)
    if 'sources' not in meta or 'train_txt_crc32' not in meta:
        return []
    changed = changed_text(folder, meta)
    ours = [name for name in text_names([]) if folder / name != changed]
    files = meta.get('files', {})
    return ours + unchanged(folder, {name: files[name] for name in names if name in files})


def unchanged(folder, files):
    """The names in {name: checksum} that are there as they were written."""
    return [name for name, crc32 in files.items()
            if (folder / name).is_file() and file_crc32(folder / name) == crc32]


def other_files(folder, names):
    """{name: checksum} of what was written here for sources that are not among these now."""
    files = read_texts_meta(folder).get('files', {})
    files = {name: crc32 for name, crc32 in files.items()
             if name not in names and re.fullmatch(r'[^/\\]+_(train|val)\.txt', name)}
    return {name: files[name] for name in unchanged(folder, files)}


# --- texts that somebody split ---

def clean_rows(path, unit):
    """Yield (number, line, rating, clean text) of every line of a text file; the text is '' where
    nothing can be seen of it. Raises UserError.
    """
    clean_text = cleaner(unit)
    for n, line in read_lines(path):
        inner = line.removeprefix('\ufeff'.encode()).rstrip(b'\r\n')  # what Windows puts around it
        if not inner.strip():
            yield n, line, UNKNOWN, ''
            continue
        rating, text = parse_line(path, n, inner)
        if re.search(f'\r|({LINE_END.pattern})[-\\d]\t', text):
            raise UserError(f'{path}, line {n}: a carriage return or another line end stands in '
                            'it, as an old Mac ends a line; here a line ends with a line feed')
        if unit == 'line' and '\t' in text.strip():
            raise UserError(f'{path}, line {n}: it has more cells than two; a line is '
                            'rating<TAB>text, and --source= reads tables')
        if unit == 'line' and '\n' in text:
            raise UserError(f'{path}, line {n}: its text has line breaks ({BREAK}), which '
                            f'--unit=paragraph and --unit=file keep')
        text = clean_text(text)
        yield n, line, rating, text if visible(text) else ''


def check_clean(folder, unit):
    """Raise UserError where a line of a folder's texts is not as prepare.py would write it."""
    for name in SIDES.values():
        for n, line, rating, text in clean_rows(folder / name, unit):
            if not text or text_line(rating, text) != line:
                raise UserError(f'{folder / name}, line {n}: {shortened(text)} does not stand '
                                f'there as prepare.py would write it (letters in NFD, two spaces, '
                                f'a BOM, line ends of Windows, none at the end, an empty text); '
                                f'with --output_dir=ANOTHER a clean copy is made there')


def clean_copy(texts, folder, unit):
    """Write train.txt and validation.txt of the folder texts, clean, into another folder, with what
    its meta.json says of them. Returns [Report]. Raises UserError.
    """
    meta = read_texts_meta(texts)
    licences = {source['licence'] for source in meta.get('sources', [])}
    report = Report(source_name(texts), ', '.join(sorted(licences)) or OWN_LICENCE)
    with new_files(folder) as create:
        for side, name in SIDES.items():
            file = TextFile(create(name))
            for _, line, rating, text in clean_rows(texts / name, unit):
                report.n_rows += 1
                report.n_controls += bool(LATIN_CONTROL.search(line.decode()))
                if text:
                    report.ratings[rating] += 1
                    report.n_texts[side] += 1
                    file.write(text_line(rating, text))
                else:
                    report.left_out['empty'] += 1
            meta |= file.meta(side)
        drop_other_floor(texts, meta)
        meta.setdefault('sources', [report.meta()])
        files = other_files(folder, text_names([]))
        create('meta.json').write(to_json(meta | {'unit': unit, 'files': files}))
    return [report]


# --- reading it again ---

def read_split(path, step=1):
    """(rating, text) of every step-th line of train.txt or validation.txt. Raises UserError."""
    for n, line in read_lines(path, step):
        yield parse_line(path, n, line)


def read_lines(path, step=1):
    """Yield (number, line as bytes) of every step-th line. Raises UserError."""
    path = Path(path)
    try:
        with open(path, 'rb') as file:
            yield from zip(count(1, step), islice(file, 0, None, step))
    except FileNotFoundError:
        folder = path.parent
        raise UserError(f'{folder} has no {path.name}; '
                        f'run prepare.py with --output_dir={folder} first') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error}') from None


def parse_line(path, n, line):
    """(rating, text) of a line of train.txt or validation.txt. Raises UserError."""
    try:
        label, tab, text = line.decode().rstrip('\n').partition('\t')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}, line {n}: {error}; these two files are UTF-8 (iconv -f cp949 '
                        '-t UTF-8 converts an old Korean file)') from None
    rating = RATING_DIGITS.get(label)
    if not tab or rating is None:
        known = ', '.join(map(str, range(len(RATINGS))))
        raise UserError(f'{path}, line {n}: a line is rating<TAB>text, rating {known} or -; '
                        f'--source= reads other forms')
    return rating, unescape(text)


# --- the stream ---
#
# `</s>` closes a text and opens the next. So after the last word the model learns to say that the
# text is over, and after `</s>`, with nothing else in sight, to begin another: first its rating.


class StreamWriter:
    """Writes two files that grow together; also counts and keeps a checksum, for meta.json.

    train.bin           (N,) uint16: `</s> <rating> ids… </s> <rating> ids… </s>`
    train_offsets.bin   (R+1,) uint64: where the `</s>` of each of R texts is, and the last one
    """

    def __init__(self, bin_file, offsets_file):
        self.bin_file = bin_file
        self.offsets_file = offsets_file
        self.n_texts = 0
        self.n_ids = 0
        self.largest_id = 0
        self.crc32 = 0  # of train.bin

    def write(self, ids, lengths):
        """ids (N,): one text after the other. lengths (R,): of each of them."""
        content = ids.astype('<u2').tobytes()
        offsets = self.n_ids + np.cumsum(lengths) - lengths
        self.bin_file.write(content)
        self.offsets_file.write(offsets.astype('<u8').tobytes())
        self.n_ids += len(ids)
        self.largest_id = max(self.largest_id, int(ids.max()))
        self.crc32 = zlib.crc32(content, self.crc32)


def encode_file(vocab, path, stream, batch_size, chunk_size):
    """Encode train.txt or validation.txt into the stream, on all cores. Raises UserError.

    Returns (n_chars, n_unseen, n_fitting, n_unknown): the characters of all texts, how many of them
    the vocabulary does not have, how many texts fit whole into a row of chunk_size, and how many
    ids are <unk>.
    """
    from tqdm import tqdm
    n_chars = n_unseen = n_fitting = n_unknown = 0
    lines = ((line, n) for n, line in read_lines(path))
    encoded = map_ordered(encode_lines, batches(lines, batch_size), vocab, path)
    with (
        closing(encoded),
        tqdm(desc=f'encode {path.name}', unit=' texts', mininterval=0.5, disable=None) as bar,
    ):
        for ids, lengths, batch_chars, batch_unseen, batch_unknown in encoded:
            stream.write(ids, lengths)
            stream.n_texts += len(lengths)
            n_chars += batch_chars
            n_unseen += batch_unseen
            n_fitting += int((lengths <= chunk_size).sum())
            n_unknown += batch_unknown
            bar.update(len(lengths))
    if stream.n_texts == 0:
        raise UserError(f'{path} is empty')
    stream.write(np.array([vocab.eos]), np.array([1]))        # the </s> after the last text
    return n_chars, n_unseen, n_fitting, n_unknown


def encode_lines(vocab, path, lines):
    """R (line, number) → (ids of all (N,), lengths (R,), how many characters, how many of them the
    vocabulary does not have, how many of the ids are <unk>).

    In front of the ids of each text come `</s>` and the id of its rating. Raises UserError.
    """
    texts = [parse_line(path, n, line) for line, n in lines]
    if len(texts) == 1:  # perhaps a novel: as a Python list its ids would take gigabytes
        encoded, n_unseen = [array('H')], 0
        for piece in vocab.cut(texts[0][1], LONG_TEXT):
            ids = vocab.encode([piece])[0]
            encoded[0].extend(ids)
            n_unseen += vocab.n_unseen(piece, ids)
    else:
        encoded = vocab.encode([text for _, text in texts])
        n_unseen = sum(vocab.n_unseen(text, ids) for (_, text), ids in zip(texts, encoded))
    parts = []
    for (rating, _), ids in zip(texts, encoded):
        parts.append((vocab.eos, vocab.start_ids[rating]))
        parts.append(ids)
    lengths = np.array([2 + len(ids) for ids in encoded])
    ids = np.fromiter(chain.from_iterable(parts), np.uint16, count=lengths.sum())
    n_unknown = int(np.isin(ids, vocab.unknown_ids).sum())
    n_chars = sum(len(text) for _, text in texts)
    return ids, lengths, n_chars, n_unseen, n_unknown


# --- on all cores ---

def map_ordered(function, items, *first):
    """Yield function(*first, item) for every item, in order, computed by up to eight processes that
    are never far ahead. Raises UserError.

    Python's threads share one interpreter, so processes do the work. More than eight would wait for
    the one that reads the items and writes the results.
    """
    items = iter(items)
    begun = list(islice(items, 2))
    if len(begun) < 2:  # to begin a process would take longer than the work
        for item in begun:
            yield function(*first, item)
        return
    affinity = getattr(os, 'sched_getaffinity', None)  # fewer than all, in a container; no macOS
    n_processes = min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)
    pool = ProcessPoolExecutor(n_processes, initializer=begin_worker, initargs=(function, first))
    waiting = deque()
    try:
        for item in chain(begun, items):
            with signals_postponed():  # a process that begins now must not hear Ctrl-C
                waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * n_processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        sentence = 'a process ended before its work was done; is there enough memory?'
        raise UserError(sentence) from None
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker(function, first):
    """The first words of a process: it ends with the one that started it, and not by Ctrl-C, which
    a terminal sends to all of them.
    """
    global work_function
    work_function = partial(function, *first)
    gc.disable()  # a tenth of the time went into looking for cycles, and batches have none
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def work(item):
    return work_function(item)
