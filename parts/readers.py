"""Texts as they stand in files, one row after the other.

    .parquet .csv .tsv   a table: one of its columns is the text, one may be the rating
    .jsonl               one JSON object a line, {"text": "…", "label": 1}
    .txt .md             plain text: a text is a line, a paragraph or the whole file

Each of them may be packed, as mine.csv.gz. A row is (text, label) as the file has it: cleaning and
counting come later, in corpus.py. What cannot be read is refused with the place where it stands.
"""
import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
from itertools import chain, dropwhile, groupby, islice

from parts.errors import UserError

PLAIN_TYPES = ('.txt', '.md')  # they have no columns
FILE_TYPES = ('.parquet', '.csv', '.tsv', '.jsonl', *PLAIN_TYPES)
UNITS = ('line', 'paragraph', 'file')
TEXT_COLUMNS = ('review', 'document', 'comment', 'text')
RATING_COLUMNS = ('rating', 'label', 'sentiment', 'score', 'star')  # the first that is there
KNOWN_COLUMNS = {*TEXT_COLUMNS, *RATING_COLUMNS, 'id'}
LABEL_WORDS = {  # what files call a rating: to see what a column means, not to read it
    'negative': 0, 'neg': 0, 'bad': 0, '부정': 0,
    'positive': 1, 'pos': 1, 'good': 1, '긍정': 1,
    'neutral': 2, 'neu': 2, 'ambiguous': 2, '중립': 2, '보통': 2,
}
MISSING = ('NA', 'NaN', 'nan', 'NULL', '<NA>', r'\N')  # what programs write where there is nothing


# characters that show nothing: Unicode's Default_Ignorable_Code_Point, what is no character, the
# marks of annotations, the empty Braille cell, the empty head of a note
INVISIBLE = re.compile(
    '[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f'
    '\u2800\u3164\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff'
    '\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff'
    + ''.join(chr(plane << 16 | last) for plane in range(1, 17) for last in (0xfffe, 0xffff)) + ']')


def visible(text):
    """What can be seen of a text, '' if nothing can. Texts that look the same have the same."""
    return unicodedata.normalize('NFC', ' '.join(INVISIBLE.sub('', text).split()))


class LeftOut(str):
    """Stands in a row where a text would stand, and says why there is none."""


KINDS = {dict: 'objects', list: 'lists', int: 'numbers', float: 'numbers', bool: 'true or false'}


def file_type(path):
    """'.csv' of mine.csv, Mine.CSV and mine.csv.gz; '' of a file that cannot be read."""
    name = path.name.lower().removesuffix('.gz')
    for suffix in FILE_TYPES:
        if name.endswith(suffix):
            return suffix
    return ''


def opener(path):
    """What opens a file, packed or not."""
    return gzip.open if path.name.lower().endswith('.gz') else open


class Reader:
    """Reads the files of one source as a person asked for it, and remembers the columns it took.

    encoding        of all types but .parquet
    unit            what one text of a .txt is: 'line', 'paragraph' or 'file'
    text_column     the name of a column; '': one of TEXT_COLUMNS
    rating_column   likewise; '': the first of RATING_COLUMNS; 'none': there are no ratings
    labels_meant    a person said what the labels mean
    lines_meant     a person said that a .txt is lines, so one that looks like a table is lines, too
    """

    def __init__(self, encoding='utf-8-sig', unit='line', text_column='', rating_column='',
                 labels_meant=False, lines_meant=False):
        self.encoding = encoding
        self.unit = unit
        self.labels_meant = labels_meant
        self.lines_meant = lines_meant
        self.text_column = text_column
        self.rating_column = rating_column
        self.chosen = {}  # arguments of choose_columns → (text column, rating column or None)
        self.read = {}    # those pairs that were read → names of all columns

    def rows(self, path):
        """Yield (text, label) of every row; label is None where the file has none.

        A LeftOut in place of a text, or None, is to be counted and left out. Raises UserError,
        UnicodeError, and what gzip and pyarrow raise for a damaged file.
        """
        suffix = file_type(path)
        if suffix != '.parquet':
            self.look_at_encoding(path)
        if suffix == '.parquet':
            yield from self.parquet_rows(path)
        elif suffix == '.jsonl':
            yield from self.json_rows(path)
        elif suffix in ('.csv', '.tsv'):
            yield from self.table_rows(path, suffix)
        else:
            yield from self.plain_rows(path)

    def open(self, path, newline=None):
        """Open a file for reading text, packed or not."""
        return opener(path)(path, 'rt', encoding=self.encoding, newline=newline)

    def look_at_encoding(self, path):
        """Raise UnicodeError where a file is in UTF-16 and nobody said so, since as UTF-8 much of
        that is valid; and where it is UTF-8 and should be cp1252, which nearly anything is, or
        cp949, which short texts are.
        """
        name = codecs.lookup(self.encoding).name
        if name == 'iso8859-1':  # Windows's, as in browsers: quotes and dashes, not controls
            self.encoding = name = 'cp1252'
        if name == 'euc_kr':  # likewise: Windows's has all syllables
            self.encoding = name = 'cp949'
        size = 1 << 12 if name.startswith('utf') else 1 << 20
        with opener(path)(path, 'rb') as file:
            head = file.read(size)
        unsaid = has_zeros(head[:1 << 12]) and not re.search('16|32', name)
        whole = len(head) < size
        wrong = not name.startswith('utf') and not head.isascii() and decodes(head, 'utf-8', whole)
        if name == 'cp949':  # a syllable or two of it may be UTF-8, but Latin or Greek there
            wrong = wrong and re.search('[가-힣]', head.decode(errors='ignore'))
        if unsaid or wrong:
            raise UnicodeError

    # --- columns ---

    def choose_columns(self, names, first=(None, None), sparse=False):
        """(text column, rating column or None) among the names of all columns. Raises UserError.

        first: those that stand, where they are among the names. sparse: whether a rating column
        that a person named may be missing.
        """
        names = tuple(names)
        asked = names, first, sparse
        if asked not in self.chosen:
            there = [name for name in names if plain(name) in TEXT_COLUMNS]
            if len(there) > 1 and not self.text_column and not first[0]:
                raise UserError(f'each of its columns {listed(there)} could be the text; '
                                '--text_column= names it')
            text = find_column(names, self.text_column, TEXT_COLUMNS, '--text_column')
            if text is None:
                raise UserError(f'its columns are {listed(names)}; --text_column= says which one '
                                f'is the text (if these are no names of columns, the line with '
                                f'the names is missing)')
            rating = None
            missing = sparse and self.rating_column and not any(
                plain(name) == plain(self.rating_column) for name in names)
            if self.rating_column != 'none' and not missing:
                rating = find_column(names, self.rating_column, RATING_COLUMNS, '--rating_column')
            self.chosen[asked] = (text, rating)
        pair = tuple(old if old in names else new for old, new in zip(first, self.chosen[asked]))
        self.read.setdefault(pair, names)
        return pair

    def compare_columns(self, row, rating):
        """Raise UserError where another column contradicts the rating of a row, {column: cell}, as
        a sentiment of 'neutral' beside a label of 1.
        """
        if rating is None or self.labels_meant or self.rating_column:
            return
        digit = re.sub(r'\.0$', '', str(row.get(rating)).strip())
        for other in row if digit.isdigit() else ():
            meaning = LABEL_WORDS.get(visible(str(row[other])).lower())
            if plain(other) in RATING_COLUMNS and str(meaning) not in (digit, 'None'):
                raise UserError(f'its {rating!r} is {digit} where {other!r} is {row[other]!r}; '
                                '--rating_column= says which of them is the rating, and --ratings= '
                                'which labels are 0 (negative), 1 (positive) and 2 (ambiguous)')

    # --- plain text ---

    def plain_rows(self, path):
        by_lines = self.unit == 'line' and not self.lines_meant
        if by_lines or self.text_column:
            refuse_tables(self.open(path), self.text_column, by_lines)
        if self.unit == 'file':
            with self.open(path, newline='') as file:
                yield re.sub('(?<!\r)\r+\n|\r', '\n', file.read()), None  # \r\r\n is a slip
            return
        newline = '\n' if self.unit == 'paragraph' else None
        with self.open(path, newline=newline) as file:
            if self.unit == 'paragraph':                      # the lines between blank ones
                # (a form feed ends a line, too, and so does the \r of an old Mac)
                lines = chain.from_iterable(
                    re.sub('(?<!\r)\r+\n', '\n', line).splitlines() for line in file)
                for blank, some in groupby(lines, lambda line: not visible(line)):
                    if not blank:
                        yield '\n'.join(some), None
            else:
                for line in file:
                    yield line, None

    # --- one JSON object a line ---

    def json_rows(self, path):
        first = (None, None)  # the columns of the first row stand, where there are more
        known = set()         # all keys so far
        usual = [plain(self.text_column)] if self.text_column else TEXT_COLUMNS
        row = {}
        with self.open(path) as file:
            for n, line in enumerate(file, 1):
                line = line.replace('\ufeff', '').strip()
                if not line:
                    yield None, None
                    continue
                try:
                    row = json.loads(line, object_pairs_hook=unique_keys)
                except UserError as error:
                    raise UserError(f'line {n}: {error}') from None
                except (ValueError, RecursionError) as error:
                    raise UserError(f'line {n} is no JSON object ({error}); each line of a .jsonl '
                                    f'is one, an array or a wrapped object is not') from None
                if not isinstance(row, dict):
                    raise UserError(f'line {n} is no JSON object; each line of a .jsonl is one, '
                                    f'as {{"text": "…", "label": 1}}')
                lacks = first[0] not in row and not any(plain(key) in usual for key in row)
                if lacks and (self.text_column or first[0] and known.issuperset(row)):
                    yield LeftOut(f'without the key {self.text_column or first[0]!r}'), None
                    continue
                known.update(row)
                text, rating = self.choose_columns(row, first, sparse=True)
                first = first[0] or text, first[1] or rating
                if n <= 100:
                    self.compare_columns(row, rating)
                value = row[text]
                if not isinstance(value, str | None):
                    value = LeftOut(f'{KINDS[type(value)]} in place of text')
                yield present(value), row.get(rating)
        if row and not first[0]:
            raise UserError(f'no object has the key {self.text_column!r} (--text_column=); the '
                            f'last one has {listed(row)}')
        if first[0] and not first[1] and self.rating_column not in ('', 'none'):
            raise UserError(f'no object has the key {self.rating_column!r} (--rating_column=)')

    # --- tables ---

    def parquet_rows(self, path):
        import pyarrow.parquet  # slow to load, and most readers of this file never need it
        packed = path.name.lower().endswith('.gz')
        source = io.BytesIO(gzip.open(path).read()) if packed else path
        with pyarrow.parquet.ParquetFile(source) as table:
            text, rating = self.choose_columns(table.schema_arrow.names)
            field = table.schema_arrow.field(text)
            is_dictionary = pyarrow.types.is_dictionary(field.type)
            kind = field.type.value_type if is_dictionary else field.type
            if str(kind) not in ('string', 'large_string', 'string_view'):
                raise UserError(f'its column {text!r} holds {field.type}, not text')
            if not self.labels_meant:
                check_label_names(table.schema_arrow.metadata, rating)
            wanted = [text] if rating is None else [text, rating]
            if rating is not None:
                rated = [name for name in table.schema_arrow.names if plain(name) in RATING_COLUMNS]
                for some in islice(table.iter_batches(100, columns=rated), 1):
                    for row in some.to_pylist():
                        self.compare_columns(row, rating)
            for batch in table.iter_batches(5000, columns=wanted):
                labels = [None] * len(batch)
                if rating is not None:
                    labels = batch.column(rating).to_pylist()
                yield from zip(map(present, batch.column(text).to_pylist()), labels)

    def table_rows(self, path, suffix):
        csv.field_size_limit(1 << 30)  # a text may be long
        with self.open(path) as file:
            head = [line for line in islice(file, 100) if line.strip()] or ['']
        first = head[0]
        # a first line that Excel writes
        excel = re.fullmatch(r'"?sep=(.)"?', first.strip('\ufeff\r\n '))
        delimiter = excel[1] if excel else find_delimiter(first, suffix)
        quoted = delimiter != '\t' or self.is_quoted(path)
        # label, text; where a text keeps its spaces, only the names tell
        bare_lines = outside_quotes(''.join(head), rf'(^|{re.escape(delimiter)} ?)').split('\n')
        spaced = any(f'{delimiter} ' in line
                     for line in bare_lines[:2 if self.unit == 'line' else 1])
        spaced = spaced or any(f'{delimiter} "' in line for line in bare_lines)
        lines = numbered_cells(self, path, delimiter, quoted, spaced)
        for _ in range(2 if excel else 1):
            lines = dropwhile(lambda line: not any(map(str.strip, line[1])), lines)
            _, names = next(lines, (0, []))
        header = bare(names)
        if not header:
            return
        n, second = next(lines, (0, []))
        lines = chain([(n, second)], lines) if n else []      # 0 where there is no second line
        n_known = [sum(plain(name) in KNOWN_COLUMNS for name in line) for line in (header, second)]
        title = len(header) > 1 and not any(header[1:]) and n_known[1] > 0
        named = self.text_column and plain(self.text_column) in map(plain, header)
        if (title or n_known[1] > max(1, n_known[0])) and not named:
            raise UserError(f'line {n} looks like the names of the columns; delete what stands '
                            'above it')
        text, rating = self.choose_columns(header)
        text_cell = header.index(text)
        rating_cell = None if rating is None else header.index(rating)
        some = list(islice(lines, 100))
        lines = chain(some, lines)
        full = [cells[text_cell] for _, cells in some
                if len(cells) == len(header) and cells[text_cell].strip()]
        if full and all(map(NUMBER.fullmatch, full)) and len(header) > 1 and not self.text_column:
            raise UserError(f'its column {text!r} holds numbers; --text_column= names the one with '
                            f'the texts, of {listed(header)}')
        for _, cells in some:
            if len(cells) == len(header):
                self.compare_columns(dict(zip(header, cells)), rating)
        usual = {plain(name[-100:]) for name in header}
        for n, cells in lines:
            if not any(cells) or len(cells) == 1 < len(header) and not cells[0].strip():
                yield None, None
            elif len(cells) != len(header):
                mark, *_ = DELIMITERS.get(delimiter, ['mark'])
                unnamed = (', or the numbers of the rows have no name (in R: row.names=FALSE)'
                           if len(cells) == len(header) + 1 and NUMBER.fullmatch(cells[0])
                           and rating_cell != 0 else '')
                raise UserError(f'line {n} has {len(cells)} cells and the first line has '
                                f'{len(header)}; a text with a {mark} or a line break in it must '
                                f'stand in quotes{unnamed}')
            # (the shortest cell is looked at first: a text takes longer)
            elif plain(min(cells, key=len)[-100:]) in usual and is_header(cells, header, n):
                yield LeftOut('the names of the columns again'), None
            else:
                refuse_rows_inside(n, cells, delimiter, text_cell, rating_cell, some)
                yield present(cells[text_cell]), None if rating is None else cells[rating_cell]

    def is_quoted(self, path):
        '''Whether the cells of a table parted by tabs are quoted, as pandas and Excel do it where
        needed: "he said ""good""". In other files a quote is a quote, as in NSMC.

        It is quoted if read so every row has the cells of the first, and besides
        - read raw not every one has,
        - or a quoted cell has doubled quotes in it,
        - or below the names all cells of a column are quoted,
        - or no cell stands in quotes that it does not need, and no row takes several lines.
        '''
        n_lines = n_rows = n_cells = 0
        ragged = quotes = doubled = needless = False
        always = set()  # columns whose cells are all quoted, but for the name

        def rows(quoted):
            for _, cells in numbered_cells(self, path, '\t', quoted):
                if any(map(str.strip, cells)) and cells[0].strip('\ufeff"') != 'sep=':  # of Excel
                    yield cells

        for cells in rows(quoted=False):
            n_lines += 1
            n_cells = n_cells or len(cells)
            ragged = ragged or len(cells) != n_cells
            now = set()
            for k, cell in enumerate(cells):
                if cell.startswith('"'):
                    quotes = True
                    if re.fullmatch(r'"(?:[^"\\]|""|\\.)*"', cell):           # \" is refused below
                        now.add(k)
                    inside = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
                    if inside:
                        doubled = doubled or '""' in inside[1]
                        needless = needless or bool(re.fullmatch('[^",\r]+', inside[1]))  # Excel: ,
            always = now if n_lines < 3 else always & now
            if n_lines == 1:
                header_is_quoted = quotes
        if not quotes:
            return False
        try:
            for cells in rows(quoted=True):
                n_rows += 1
                if len(cells) != n_cells:
                    return False
        except UserError:
            if header_is_quoted or always and n_lines > 2:    # with quotes as no CSV has them
                raise
            return False
        if n_cells == 1 and not doubled and n_rows != n_lines:
            raise UserError('a quote at the beginning of a line closes in a later one: is it one '
                            'cell? If so, write every text in quotes (in pandas: quoting=1) and '
                            'name it .csv; and if a quote is a quote, .txt')
        fits = header_is_quoted or always and n_lines > 2 or not needless
        return bool(ragged or doubled or n_rows == n_lines and fits)


DELIMITERS = {  # what parts the cells of a table → its name, what to call such a file
    '\t': ('tab', '.tsv'),
    ',': ('comma', '.csv'),
    ';': ('semicolon', '.csv'),
    '|': ('bar', '.csv'),
}
NUMBER = re.compile(r'\s*"?-?\d+([.,]\d+)?"?\s*')


def find_delimiter(names, suffix):
    """What parts the cells of the line with the names: in a .tsv tabs, if there are any."""
    if suffix == '.tsv' and '\t' in names:
        return '\t'
    marks = '\t,;|' if suffix == '.tsv' else ',;\t|'
    return max(marks, key=outside_quotes(names).count)         # of equals the first


def numbered_cells(reader, path, delimiter, quoted, spaced=False):
    """Yield (number of the line, its cells) of a table. spaced: whether a space after a delimiter
    is no part of the cell. Raises UserError.
    """
    if quoted:
        with reader.open(path, newline='') as file:  # a quoted cell may hold line breaks
            rows = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=spaced)
            end = 0                                            # of the last row that was right
            try:
                for cells in rows:
                    end = rows.line_num
                    yield end, cells
            except csv.Error as error:
                several = f's {end + 1} to' if rows.line_num > end + 1 else ''
                raise UserError(f'line{several} {rows.line_num}: {error}; a text with quotes '
                                f'stands in quotes, its own doubled') from None
        return
    with reader.open(path, newline='') as file:  # an old Mac ends its lines so; else it is text
        first, second = file.readline(), file.readline()
    newline = '\r' if first.endswith('\r') and second != '\r\n' else '\n'  # \r\r\n is a slip
    with reader.open(path, newline=newline) as file:
        for n, line in enumerate(file, 1):
            yield n, line.rstrip('\r\n').split(delimiter)


def bare(names):
    """The names of the columns without BOMs and spaces around them."""
    return [name.replace('\ufeff', '').strip() for name in names]


def plain(name):
    """A column's name without case, quotes, spaces and plural: ' Labels' is 'label'."""
    return visible(str(name)).strip('" ').lower().removesuffix('s')


def refuse_rows_inside(n, cells, delimiter, text_cell, rating_cell, some):
    """Raise UserError where all lines of a text are rows with a label that other rows have, but for
    those that other cells begin or end: a quote that is none opened in one row, and another closed
    in a later one. some: other rows, [(number of the line, cells)]
    """
    lines = cells[text_cell].split('\n')
    inside = lines[text_cell > 0:len(lines) - (text_cell < len(cells) - 1)]
    if rating_cell is None or not inside:
        return
    labels = {row[rating_cell] for _, row in some if len(row) == len(cells)} - {''}
    for line in inside:
        line = re.sub(r'(?<=\d),(?=\d{3}(?!\d))', '', line.rstrip('\r'))  # 5,000 is one number
        row = line.split(delimiter)
        if len(row) != len(cells) or row[rating_cell] not in labels:
            return
    raise UserError(f'the row that ends in line {n} holds other rows, as {inside[0][:60]!r}: a '
                    'quote opens in one and closes in another; a text with quotes stands in '
                    'quotes, its own doubled')


def is_header(cells, header, n):
    """Whether line n is that of the names again: two files were joined. In a table of one column it
    must be the very name, for a text may be a word. Raises UserError where their order is another.
    """
    if len(header) == 1:
        return bare(cells)[0].strip('"') == header[0]
    again, names = [[plain(name) for name in line] for line in (cells, header)]
    if again != names and sorted(again) == sorted(names):
        raise UserError(f'line {n} has the names of the columns in another order than the first '
                        f'line; make two files of it')
    return again == names


def present(text):
    """A text, or a LeftOut where a program wrote that there is none."""
    if text and len(text) < 9 and text.strip() in MISSING:
        return LeftOut('missing (NA, nan, NULL)')
    return text


def unique_keys(pairs):
    """A JSON object as a dict. Raises UserError where a key is there twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise UserError(f'the key {twice!r} is there twice')
    return row


def check_label_names(metadata, column):
    """Raise UserError where a .parquet of the Hub says what its labels are called, and 0 is not
    negative, 1 positive or 2 neither. metadata: of its schema.
    """
    try:
        told = json.loads(metadata[b'huggingface'])
        names = [str(name).strip().lower() for name in told['info']['features'][column]['names']]
    except (KeyError, TypeError, ValueError):                 # it does not say it
        return
    known = LABEL_WORDS | {'false': 0, 'true': 1}
    if any(known.get(name) != n and not re.fullmatch(rf'(\D*[_ ])?{n}(\.0)?', name)  # label_1
           for n, name in enumerate(names)):
        said = ', '.join(f'{n} is {name}' for n, name in enumerate(names))
        raise UserError(f'its column {column!r} says that {said[:200]}; --ratings= says which are '
                        '0 (negative), 1 (positive) and 2 (ambiguous)')


def find_column(names, wanted, usual, flag):
    """The column that a person wants or, where nothing is said, the first of the usual ones that is
    there; None if there is none. Raises UserError.
    """
    if wanted and names.count(wanted) == 1:
        return wanted
    usual = [plain(wanted)] if wanted else usual
    for name in usual:
        found = [column for column in names if plain(column) == name]
        if len(found) > 1:
            raise UserError(f'each of its columns {listed(found)} could be meant; {flag}= names '
                            f'one, and if they have one name rename one')
        if found:
            return found[0]
    if wanted:
        raise UserError(f'it has no column {wanted!r}; its columns are {listed(names)}, of which '
                        f'{flag}= takes one')
    return None


def listed(names):
    """The names of columns in words: whatever is in them stays on one line and harms no terminal.
    """
    return ', '.join(repr(name)[:60] for name in names[:20]) or 'none'


# --- plain text ---

def refuse_tables(file, wanted, by_lines):
    """Raise UserError where a plain text is a table, or JSON, by the looks of its first lines.

    wanted: the column of the texts, where a person named it. by_lines: whether a line is a text and
    nobody said so; else only a table with that column is refused.
    """
    with file:
        head = [line.strip('\ufeff\n') for line in islice(file, 100)]
    lines = [line.lstrip() for line in head if line.strip()]  # a cell at the end may be empty
    advice = ' (if it is plain text, --unit=line reads it)' * by_lines
    for header in lines[:2]:                                  # a title may stand above it
        for delimiter, (_, suffix) in DELIMITERS.items():
            names = [plain(cell) for cell in header.split(delimiter)]
            named = wanted and plain(wanted) in names
            has_text = any(name in names for name in TEXT_COLUMNS)
            has_more = any(name in names for name in (*RATING_COLUMNS, 'id'))
            counts = {outside_quotes(line).count(delimiter) for line in lines}
            even = len(lines) > 1 and len(counts) == 1
            likely = has_text and (has_more or even or delimiter in '\t|') or has_more and even
            if (named or by_lines and likely) and len(names) > 1:
                raise UserError(f'this is a table with the columns {header!r}; name it '
                                f'{suffix}{advice}')
    if not by_lines:
        return
    if re.match(r'\s*(\{\s*"|\[\s*[\["{])', '\n'.join(lines)):
        raise UserError(f'this is JSON; name it .jsonl{advice}')
    for delimiter, (sign, suffix) in DELIMITERS.items():
        rows = [cells for line in lines if len(cells := line.split(delimiter)) > 1]
        # labels at one end: numbers, or a few words again and again
        labels = max(sum(bool(NUMBER.fullmatch(cells[n])) for cells in rows) for n in (0, -1))
        kinds = min(len({cells[n] for cells in rows}) for n in (0, -1))
        words = len(rows) > 19 and kinds < 6
        n_likely = len(rows) if delimiter in '\t|' or words else labels
        bare_rows = [outside_quotes(line).split(delimiter) for line in lines]
        n_likely = max(n_likely, sum(len(c) > 1 and set(c) == {'""'} for c in bare_rows))
        if len(lines) > 9 and len(set(map(len, bare_rows))) == 1 and len(bare_rows[0]) > 2:
            # two commas in each line, say, and in one place no spaces: dates, names
            if any(all(cell.strip('" ') and ' ' not in cell.strip() for cell in column)
                   for column in zip(*bare_rows)):
                n_likely = len(lines)
        if delimiter == '\t':                                 # a quoted cell may have several lines
            whole_rows = outside_quotes('\n'.join(lines), r'(^|\t)').split('\n')
            if sum('\t' in row for row in whole_rows) > 0.9 * len(whole_rows):
                n_likely = len(lines)
        if len(lines) > 1 and n_likely > 0.9 * len(lines):    # a few may be broken
            n_cells = ' or '.join(map(str, sorted({len(cells) for cells in rows})))
            raise UserError(f'this is a table: its lines have {n_cells} cells, parted by {sign}s; '
                            f'name it {suffix}, and if its first line does not name the columns, '
                            f'write their names above it{advice}')
    refuse_labels(lines, advice)


def refuse_labels(lines, advice):
    """Raise UserError where lines begin or end with a label, and only a space parts it from the
    text: as R's write.table and fastText write them, and many a set of sentences.
    """
    few = 0.1 * len(lines)                                    # may be broken
    cells = r'"[^"]*"( ("[^"]*"|NA|-?[\d.]+))+|__label__.*'
    if len(lines) > 1 and sum(not re.fullmatch(cells, line) for line in lines) < few:
        raise UserError('this is a table with spaces between its cells; write tabs, and the names '
                        f'above (label, text), and name it .tsv{advice}')
    # (1:1 may be a verse, a time or a score)
    lines = [re.sub(r'[\[(]([^\W\d]+)[\])]', r'\1', line) for line in lines]     # [positive]
    for place, pattern in (('begins', r'([+\w-]+)(?:[\s@,]|:(?!\d)).*'),
                           ('ends', r'.*(?:[\s@,]|(?<!\d):)([\w-]+)\s*')):
        labels = [match[1].lower() for line in lines if (match := re.fullmatch(pattern, line))]
        kinds = set(labels)
        enough = 10 if kinds <= LABEL_WORDS.keys() - {'good', 'bad', '보통'} else 20
        sure = {*LABEL_WORDS, '+1'} if '-1' in kinds else set(LABEL_WORDS)
        if (len(lines) >= enough and len(lines) - len(labels) < few and 1 < len(kinds) < 6
                and all(re.fullmatch(r'-?\d', kind) or kind in sure for kind in kinds)):
            raise UserError(f'each line {place} with one of {listed(sorted(kinds))}, as if with a '
                            'rating; write a tab between it and the text, and the names above '
                            f'(label, text), and name it .tsv{advice}')


def outside_quotes(lines, before='()'):
    """Lines of a table with "" in place of what stands in quotes. before: a pattern, in brackets,
    of what must stand in front.
    """
    return re.sub(rf'{before}"(?:[^"]|"")*"', r'\1""', lines, flags=re.MULTILINE)


# --- encodings ---

NO_TEXTS = {
    b'PK\x03\x04': 'a zip archive, as Excel files are; save it as CSV UTF-8, or unpack it',
    b'\xd0\xcf\x11\xe0': 'an old Excel or Word file; save it as CSV UTF-8 or as plain text',
    b'\x1f\x8b': 'packed by gzip; its name must end with .gz',
    b'PAR1': 'parquet; its name must end with .parquet',
    b'%PDF': 'a PDF; save its text as .txt',
}


def explain_encoding(path, encoding):
    """What is wrong with a text file that is not in this encoding, and what to do, in words."""
    named = codecs.lookup(encoding).name.removesuffix('-sig')
    with opener(path)(path, 'rb') as file:
        head = file.read(1 << 20)
    for beginning, what in NO_TEXTS.items():
        if head.startswith(beginning):
            return f'{path} is no text, but {what}'
    foreign = re.sub(r'[\x00-\x7f]', '', head.decode(named, errors='replace'))
    n_bad = foreign.count('\ufffd')
    few_are_bad = n_bad * 10 < len(foreign) or n_bad <= 1
    only_bad = n_bad == len(foreign)
    likely, advice = guess_encoding(head)
    is_utf8 = likely == 'utf-8' != named and not head.isascii()
    first_tells = few_are_bad or not likely and '\ufffd' not in foreign[:20]
    if first_tells and not is_utf8 and not has_zeros(head) and '16' not in named:
        with opener(path)(path, 'rb') as file:
            return f'{path}{first_bad_byte(file, named, only_bad)}'
    if likely == named:
        return f'{path} is not {named} throughout; is it whole?'
    return f'{path} is not {named}; {advice}'


def has_zeros(head):
    """Whether the beginning of a file has the zeros of UTF-16: one byte of every space, digit and
    line end, the first in big-endian. (Of 가 it is the other.)
    """
    fewer, more = sorted((head[0::2].count(0), head[1::2].count(0)))
    at_line_ends = re.search(b'\n\0|\0\n', head) or b'\n' not in head
    many = more > 1 + len(head) // (100 if at_line_ends else 8)
    return many and more > 2 * fewer


def first_bad_byte(file, encoding, western):
    """Where the first byte stands that the encoding cannot have, and what is before it. western:
    whether it may be cp1252, which has one byte for é.
    """
    offset = 0
    for n, line in enumerate(file, 1):
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            before = line[:error.start].decode(encoding, errors='replace')[-20:]
            if error.end == len(line) and re.search('end of data|incomplete', error.reason):
                return f', line {n}: it ends within a character, after {before!r}; is it whole?'
            byte = line[error.start]
            other = ' (--encoding=cp1252, perhaps)' if western and encoding != 'cp1252' else ''
            return (f', line {n}: after {before!r} stands the byte 0x{byte:02x} (byte '
                    f'{offset + error.start:,} of the file), which is not {encoding}; mend it, say '
                    f'in which encoding it is{other}, or drop all such bytes '
                    f'(iconv -c -f {encoding} -t {encoding})')
        offset += len(line)
    return f' is not {encoding}'


def guess_encoding(head):
    """(encoding that the beginning of a file may be in, what to do, in words)"""
    # in Korean bytes of 128 and more come in pairs, in Western European languages one by one
    runs = [len(run) for run in re.findall(rb'[\x80-\xff]+', head)]
    western = 2 * runs.count(1) > len(runs)
    if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        likely = 'utf-32'
    elif head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        likely = 'utf-16'
    elif has_zeros(head):
        likely = 'utf-16-be' if head[0::2].count(0) > head[1::2].count(0) else 'utf-16-le'
    elif decodes(head, 'utf-8'):
        return 'utf-8', ('it is UTF-8: leave --encoding= out, and convert other files that '
                         'are not (iconv -f ENCODING -t UTF-8)')
    elif western:
        return 'cp1252', ('it may be in a Western European encoding: say --encoding=cp1252, and '
                          'look whether accents and quotes are right')
    else:
        likely = 'cp949'
    fits = decodes(head, likely)
    if likely == 'cp949':  # Chinese and Japanese fit, too: with few or rare syllables
        letters = re.findall(r'[^\W\d_a-zA-Zㄱ-ㅣ]|\ufffd', head.decode('euc_kr', errors='replace'))
        fits = 5 * sum('가' <= letter <= '힣' for letter in letters) > 4 * len(letters)
    if fits:
        return likely, (f'it looks like {likely}: say --encoding={likely}, and look whether the '
                        'text comes out right')
    return '', 'convert it to UTF-8 (iconv -f ENCODING -t UTF-8) or say --encoding='


def decodes(head, encoding, whole=False):
    """Whether the beginning of a file, or a whole one, is in an encoding. A beginning may end
    within a character.
    """
    try:
        codecs.getincrementaldecoder(encoding)().decode(head, final=whole)
    except UnicodeError:
        return False
    return True
