"""Rows of a .parquet .csv .tsv .jsonl .txt file, streamed; and what a file may be that cannot be read."""
import codecs
import csv
import json


def rows(path, columns, encoding, batch_size):
    """Every row of a file as {column: value}; of parquet only these columns, batch_size rows at a time. Raises what csv, json and pyarrow raise."""
    kind = path.suffix.lower()
    if kind == '.parquet':
        import pyarrow.parquet  # here, for whoever imports this file for its vocabularies need not wait for it
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size, columns=[n for n in table.schema_arrow.names if n in columns] or None):
                yield from batch.to_pylist()
        return
    with open(path, encoding=encoding, newline='' if kind == '.csv' else None) as f:
        if kind == '.txt':
            yield from ({'text': line} for line in f)
        elif kind == '.jsonl':
            yield from (json.loads(line) for line in f if line.strip())
        else:
            csv.field_size_limit(1 << 30)  # a review may be long
            dialect = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE} if kind == '.tsv' else {'strict': True}
            yield from csv.DictReader(f, **dialect)  # strict, or an unclosed quote swallows the rest; in .tsv a quote is a quote


def guess(path):
    """What a text file that is not in the given encoding may be, and what to do."""
    with open(path, 'rb') as f:
        head = f.read(100_000)
    zeros = [head[side::2].count(0) > len(head) // 100 for side in (0, 1)]  # of UTF-16's spaces, digits and line ends
    likely = 'utf-16' if head[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-16-be' if zeros[0] else 'utf-16-le' if zeros[1] else 'cp949'
    try:
        codecs.getincrementaldecoder(likely)().decode(head)  # incremental: head may end within a character
        return f'it looks like {likely}: say --encoding={likely}'
    except UnicodeError:
        return 'convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or say --encoding='
