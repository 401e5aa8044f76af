"""Reviews as they stand in a .parquet .csv .tsv .jsonl .txt file, streamed.

    .parquet .csv .tsv   a table     one of its columns is the text, one may be the rating
    .jsonl               one JSON object a line, {"text": "…", "label": 1}
    .txt                 one review a line, no ratings
"""
import codecs
import csv
import json
from itertools import repeat

from parts.errors import UserError

FILE_TYPES = ('.parquet', '.csv', '.tsv', '.jsonl', '.txt')
TEXT_COLUMNS = ('Review', 'review', 'document', 'comments', 'text')  # the first that is there
RATING_COLUMNS = ('Rating', 'rating', 'label')


def read_rows(path, encoding):
    """Yield (text, rating) of every row, as they stand in the file; rating None if it has none.

    For all types but .parquet. Raises UserError, and what csv and json raise for a damaged file.
    """
    file_type = path.suffix.lower()
    newline = '' if file_type == '.csv' else None  # csv: a quoted review may hold line breaks
    with open(path, encoding=encoding, newline=newline) as file:
        if file_type == '.txt':
            yield from zip(file, repeat(None))
        elif file_type == '.jsonl':
            yield from read_json_lines(file)
        else:
            yield from read_table(file, file_type)


def read_parquet(path, batch_size):
    """Yield the rows of a .parquet file as ParquetRows of batch_size each.

    Raises UserError, and what pyarrow raises for a damaged file.
    """
    import pyarrow.parquet  # slow to load, and most readers of this file never need it
    with pyarrow.parquet.ParquetFile(path) as table:
        text, rating = choose_columns(table.schema_arrow.names)
        wanted = [text] if rating is None else [text, rating]
        for batch in table.iter_batches(batch_size, columns=wanted):
            ratings = None if rating is None else batch.column(rating)
            yield ParquetRows(batch.column(text), ratings)


class ParquetRows:
    """Rows (text, rating) that become Python's strings only where somebody iterates over them.

    That may be another process, which is good: it takes longer than all the rest of the reading.
    """

    def __init__(self, texts, ratings):
        self.texts = texts      # pyarrow arrays; ratings may be None
        self.ratings = ratings

    def __len__(self):
        return len(self.texts)

    def __iter__(self):
        ratings = repeat(None) if self.ratings is None else self.ratings.to_pylist()
        return zip(self.texts.to_pylist(), ratings)


def read_table(file, file_type):
    csv.field_size_limit(1 << 30)  # a review may be long
    if file_type == '.tsv':
        rows = csv.DictReader(file, delimiter='\t', quoting=csv.QUOTE_NONE)  # a quote is a quote
    else:
        rows = csv.DictReader(file, strict=True)  # or an unclosed quote swallows the rest
    if rows.fieldnames is None:  # an empty file
        return
    text, rating = choose_columns(rows.fieldnames)
    for row in rows:
        yield row[text], row.get(rating)


def read_json_lines(file):
    for line in file:
        if not line.strip():
            continue
        row = json.loads(line)
        text, rating = choose_columns(row if isinstance(row, dict) else ())
        yield row[text], row.get(rating)


def choose_columns(names):
    """(text column, rating column or None) among the names of all columns. Raises UserError."""
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    rating = next((name for name in RATING_COLUMNS if name in names), None)
    if text is None:
        there = ', '.join(map(str, names)) or 'none'
        raise UserError(f'its columns are {there}; one of {", ".join(TEXT_COLUMNS)} is needed')
    return text, rating


def guess_encoding(path):
    """What a text file that is not in the expected encoding may be in, and what to do, in words."""
    with open(path, 'rb') as file:
        head = file.read(100_000)
    # in UTF-16 one byte of every space, digit and line end is zero: in big-endian the first
    many = len(head) // 100
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        likely = 'utf-16'
    elif head[0::2].count(0) > many:
        likely = 'utf-16-be'
    elif head[1::2].count(0) > many:
        likely = 'utf-16-le'
    else:
        likely = 'cp949'
    try:
        codecs.getincrementaldecoder(likely)().decode(head)  # it may end within a character
    except UnicodeError:
        return 'convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or say --encoding='
    return f'it looks like {likely}: say --encoding={likely}'
