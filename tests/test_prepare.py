"""prepare.py as a user runs it: what it reads, writes, refuses. Its vocabularies, on any text."""
import gzip
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import zlib
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from conftest import ROOT, killed_before, run
from hypothesis import given, settings
from hypothesis import strategies as st

from parts import grammar
from parts.corpus import (
    PLAIN_FILES,
    Labels,
    batches,
    check_texts,
    clean,
    clean_lines,
    escape,
    map_ordered,
    read_split,
    signals_postponed,
    unescape,
    visible,
)
from parts.errors import UserError
from parts.vocabulary import (
    CONTROL_TOKENS,
    MOST_IDS,
    Characters,
    HubTokenizer,
    load_vocabulary,
)

SCRIPT = ROOT / 'prepare.py'
GOOD = '맛있어요 또 올게요 ㅋㅋ'
LINES = [f'{GOOD} {i}' for i in range(60)]
WILD = [
    '😀', '👨‍👩‍👧', 'ㅋㅋㅋㅋ', 'ㅠㅠ', 'delicious', '2024', '龘', '\n', '  ', ' ', '</s>', '<pos>',
    '<unk>', '<0x41>', 'é', 'ᄒ', '<unused0>', '\u200f', '▲', '␤', '␛', '\t',
]
SIDES = {'train': 'train.txt', 'val': 'validation.txt'}

# --- helpers ---

def works(folder, *words):
    """Run the script in folder as a user does. Returns what it printed."""
    done = run('prepare.py', *words, cwd=folder)
    assert done.stderr == ''  # progress bars are for a terminal
    return done.stdout


def refused(folder, *words):
    """The one sentence of a refusal; it leaves nothing half written."""
    sentence = run('prepare.py', *words, cwd=folder, ok=False).stderr
    assert not list(Path(folder).rglob('*.part'))
    return sentence


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def files_of(folder):
    """{path: content} of every file in folder, however deep, but for the lock."""
    files = [file for file in Path(folder).rglob('*') if file.is_file() and file.name != 'lock']
    return {file: file.read_bytes() for file in files}


def read_meta(folder):
    return json.loads((Path(folder) / 'meta.json').read_text('utf-8'))


def reviews(folder):
    """Every (rating, text) of a prepared folder, both sides."""
    folder = Path(folder)
    return [*read_split(folder / 'train.txt'), *read_split(folder / 'validation.txt')]


def streams(folder, side='train'):
    """(meta, [(rating id, ids)]): a bin, taken apart at </s> by hand."""
    meta = read_meta(folder)
    eos = meta['eos']
    ids = np.fromfile(folder / f'{side}.bin', dtype=np.uint16).tolist()
    assert ids[0] == ids[-1] == eos
    assert len(ids) == meta[f'{side}_tokens']
    assert max(ids) < meta['vocab_size']
    edges = [i for i, token in enumerate(ids) if token == eos]
    return meta, [(ids[a + 1], ids[a + 2:b]) for a, b in zip(edges, edges[1:])]


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A folder with a small demo corpus prepared in both modes."""
    folder = tmp_path_factory.mktemp('world')
    works(folder, '--source=demo', '--n_reviews=3000', '--vocab_size=1000')
    works(folder, '--data_dir', 'data/demo', '--mode', 'manual')
    return folder / 'data' / 'demo'


@pytest.fixture(scope='module')
def hub_file(tmp_path_factory):
    """A byte-level tokenizer as found on the Hub.

    It has unused ids, tokens of its own around every text, truncation and padding.
    """
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=['[CLS]', '</s>', '<unused0>', '<unused1>', '<unk>', '😀'],
        show_progress=False,
        initial_alphabet=byte_level.alphabet(),
    )
    tokenizer.train_from_iterator([text for _, text, _ in grammar.reviews(500, 1)], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='[CLS] $A </s>', special_tokens=[('[CLS]', 0), ('</s>', 1)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=12)
    path = tmp_path_factory.mktemp('hub') / 'tokenizer.json'
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope='module')
def vocabularies(world, hub_file):
    return (
        load_vocabulary(world / 'tokenizer'),
        HubTokenizer(hub_file.read_bytes()),
        load_vocabulary(world / 'manual'),
    )


# --- the walk of the data ---

def test_the_split_holds_every_review_once_and_no_text_on_both_sides(world):
    written = Counter((rating, text) for rating, text, _ in grammar.reviews(3000, 0))
    train, val = (list(read_split(world / file)) for file in SIDES.values())
    assert Counter(train + val) == written
    assert not {text for _, text in train} & {text for _, text in val}
    assert 0.07 < len(val) / 3000 < 0.13
    assert (world / 'demo_train.txt').read_bytes() == (world / 'train.txt').read_bytes()


def test_a_review_keeps_its_side_whatever_is_beside_it(tmp_path, world):
    texts = [text for _, text in reviews(world)]
    some = random.Random(0).sample(texts, 1000)
    write(tmp_path / 'r.txt', '\n'.join(some))
    works(tmp_path, '--source=r.txt,demo', '--n_reviews=50', '--mode=manual')
    folder = tmp_path / 'data/r+demo'
    validation = {text for _, text in read_split(world / 'validation.txt')}
    for side, file in SIDES.items():
        for _, text in read_split(folder / f'r_{side}.txt'):
            assert (text in validation) == (side == 'val')
        both = (folder / f'r_{side}.txt').read_bytes() + (folder / f'demo_{side}.txt').read_bytes()
        assert both == (folder / file).read_bytes()
    # of the file's reviews it is unknown
    assert 'floor_bits_per_char' not in read_meta(folder)


@pytest.mark.parametrize('mode', ['tokenizer', 'manual'])
def test_the_bins_are_the_texts(world, mode):
    vocab = load_vocabulary(world / mode)
    for side, file in SIDES.items():
        meta, stream = streams(world / mode, side)
        wanted = list(read_split(world / file))
        starts = [meta['starts'][str(rating)] for rating, _ in wanted]
        assert [start for start, _ in stream] == starts
        assert meta[f'{side}_reviews'] == len(wanted)
        assert meta[f'{side}_chars'] == sum(len(text) for _, text in wanted)
        decoded = [vocab.decode(ids) for _, ids in stream]
        n_wrong = sum(got != text for got, (_, text) in zip(decoded, wanted))
        assert n_wrong <= (2 if mode == 'manual' else 0)  # a rare character is <unk>
    assert (meta['mode'], meta['vocab_size'], meta['eos']) == (mode, vocab.size, vocab.eos)
    counts = {key: meta[key] for key in ('train_reviews', 'val_reviews')}
    assert meta['sources'] == [{'name': 'demo', 'licence': 'MIT', **counts}]
    assert set(meta['versions']) == {'numpy', 'sentencepiece', 'tokenizers'}


@pytest.mark.parametrize('mode', ['tokenizer', 'manual'])
def test_what_training_needs_to_know_of_the_bins_is_written_beside_them(world, mode):
    folder = world / mode
    meta = read_meta(folder)
    for side in SIDES:
        content = (folder / f'{side}.bin').read_bytes()
        ids = np.frombuffer(content, '<u2')
        offsets = np.fromfile(folder / f'{side}_offsets.bin', '<u8')
        assert offsets.tolist() == np.flatnonzero(ids == meta['eos']).tolist()
        assert len(offsets) == meta[f'{side}_reviews'] + 1
        assert meta[f'{side}_largest_id'] == ids.max()
        assert meta[f'{side}_crc32'] == zlib.crc32(content)
        text = (world / SIDES[side]).read_bytes()
        assert meta[f'{side}_txt_crc32'] == zlib.crc32(text)
        assert meta[f'{side}_txt_bytes'] == len(text)


def test_the_size_of_a_batch_changes_nothing(tmp_path, world):
    mode = 'tokenizer'
    words = [f'--data_dir={world}', f'--model_name={world / mode}', f'--mode={mode}']
    for batch_size in (7, 100_000):
        works(tmp_path, *words, '--output_dir=there', f'--batch_size={batch_size}')
        for name in ('train.bin', 'val.bin', 'train_offsets.bin', 'val_offsets.bin'):
            there = (tmp_path / 'there' / mode / name).read_bytes()
            assert there == (world / mode / name).read_bytes()


def test_the_floor_is_the_mean_of_the_bits_of_the_validation_reviews(world):
    bits_of = {(rating, text): bits for rating, text, bits in grammar.reviews(3000, 0)}
    validation = list(read_split(world / 'validation.txt'))
    n_bits = sum(bits_of[review] for review in validation)
    n_chars = sum(len(text) for _, text in validation)
    for folder in (world, world / 'tokenizer', world / 'manual'):
        assert read_meta(folder)['floor_bits_per_char'] == pytest.approx(n_bits / n_chars)


def test_a_rating_that_is_not_known_starts_with_s(tmp_path):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    out = works(tmp_path, '--source=r.txt', '--vocab_size=300')
    meta, stream = streams(tmp_path / 'data/r/tokenizer')
    assert {start for start, _ in stream} == {meta['starts']['unknown']}
    assert meta['sources'][0]['licence'] == "the file's own"
    assert {rating for rating, _ in reviews(tmp_path / 'data/r')} == {-1}
    assert 'rating' not in out and 'review' not in out


# --- what it reads ---

RATED = [(i % 3, f'{GOOD} {i}, "정말" {i}') for i in range(60)]


def parquet(path):
    columns = {
        'Rating': [rating for rating, _ in RATED],
        'Review': [text for _, text in RATED],
        '__index_level_0__': range(60),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def csv(path):
    """With quotes and line breaks in the reviews, and ratings like 1.0."""
    lines = ['id,Review,Rating\n']
    for i, (rating, text) in enumerate(RATED):
        quoted = text.replace('"', '""').replace(' ', '\n', 1)
        lines.append(f'{i},"{quoted}",{rating}.0\n')
    path.write_text(''.join(lines), 'utf-8')


def tsv(path):
    lines = ['id\tdocument\tlabel\r\n']
    lines += [f'{i}\t{text}\t{rating}\r\n' for i, (rating, text) in enumerate(RATED)]
    path.write_text(''.join(lines), 'utf-8-sig')


def jsonl(path):
    """With an escape \\ud800, half of a surrogate pair, and empty lines."""
    rows = [{'text': text + ' \ud800\u0000', 'label': rating} for rating, text in RATED]
    lines = [json.dumps(row) for row in rows]
    path.write_text('\n'.join(lines) + '\n\n', 'utf-8')


@pytest.mark.parametrize('writer', [parquet, csv, tsv, jsonl])
def test_every_type_of_file_is_read_packed_too(tmp_path, writer):
    path = tmp_path / f'R.{writer.__name__.upper()}'
    writer(path)
    write(tmp_path / f'{path.name}.gz', gzip.compress(path.read_bytes()))
    for name in (path.name, f'{path.name}.gz'):
        works(tmp_path, f'--source={name}', '--mode=manual')
        assert sorted(reviews(tmp_path / 'data/R')) == sorted(RATED)


@pytest.mark.parametrize('name, bom', [
    ('cp949', b''),
    ('utf-16', b''),
    ('utf-16-le', b''),
    ('utf-16-be', b''),
    ('utf-16-be', b'\xfe\xff'),
])
def test_an_old_file_is_named_and_then_read(tmp_path, name, bom):
    lines = ['Review\tRating\n', *(f'{text}\t{rating}\n' for rating, text in RATED)]
    (tmp_path / 'r.tsv').write_bytes(bom + ''.join(lines).encode(name))
    sentence = refused(tmp_path, '--source=r.tsv', '--mode=manual')
    advice = f'--encoding={"utf-16" if bom else name}'
    assert advice in sentence
    works(tmp_path, '--source=r.tsv', '--mode=manual', advice)
    assert sorted(reviews(tmp_path / 'data/r')) == sorted(RATED)


def test_a_novel_of_western_europe_is_told_what_to_try(tmp_path):
    text = 'Der Junge lief über die Straße, während die Großmutter schlief. À bientôt, dit-elle.\n'
    (tmp_path / 'novel.txt').write_bytes((text * 9).encode('cp1252'))
    words = ['--source=novel.txt', '--unit=file', '--mode=manual']
    assert '--encoding=cp1252' in refused(tmp_path, *words)
    works(tmp_path, *words, '--encoding=cp1252')
    assert 'Großmutter schlief. À bientôt' in (tmp_path / 'data/novel/train.txt').read_text('utf-8')


def test_strange_ratings_and_texts(tmp_path):
    rows = [
        (True, 'a'),
        (False, 'b'),
        (2.0, 'c'),
        (None, 'd'),
        (float('nan'), 'e'),
        ('', 'f'),
        ('1', 'g'),
        (1, None),
        (1, 5),
        (1, ' \x00\t'),
        (0, 'ᄒ\x00ᅡ\u2028▁'),
    ]
    lines = [json.dumps({'Review': text, 'Rating': rating}) for rating, text in rows]
    lines += [json.dumps({'Review': f'{GOOD} {i}'}) for i in range(40)]
    write(tmp_path / 'r.jsonl', '\n'.join(lines))
    out = works(tmp_path, '--source=r.jsonl', '--mode=manual')
    assert 'texts read: 51, kept: 48' in out
    assert '3 left out: 2 empty, 1 numbers in place of text' in out
    got = {text: rating for rating, text in reviews(tmp_path / 'data/r') if GOOD not in text}
    assert got == {'a': 1, 'b': 0, 'c': 2, 'd': -1, 'e': -1, 'f': -1, 'g': 1, '하 _': 0}


def table(name, delimiter, *columns, rows=60):
    """A table of RATED's first rows, parted by a delimiter."""
    lines = [delimiter.join(columns)]
    for i in range(rows):
        cells = {'id': str(i), 'document': f'{GOOD} {i}', 'text': f'{GOOD} {i}'}
        lines.append(delimiter.join(cells.get(column, str(i % 3)) for column in columns))
    return '\n'.join(lines) + '\n'


@pytest.mark.parametrize('column', ['labels', ' Rating', 'Label', 'sentiment', 'score', 'STARS'])
def test_ratings_are_found_under_their_usual_names(tmp_path, column):
    """The first column is without a name, as pandas writes its numbers."""
    write(tmp_path / 'r.csv', table('r', ',', 'id', 'text', column).replace('id', '', 1))
    out = works(tmp_path, '--source=r.csv', '--mode=manual')
    assert 'r: 20 negative, 20 positive, 20 ambiguous, 0 without a rating' in out
    assert Counter(rating for rating, _ in reviews(tmp_path / 'data/r')) == {0: 20, 1: 20, 2: 20}


def test_columns_of_other_names_are_named(tmp_path):
    write(tmp_path / 'r.csv', table('r', ';', 'id', 'text', 'mood').replace('text', 'what', 1))
    assert "'id', 'what', 'mood'; --text_column=" in refused(tmp_path, '--source=r.csv')
    words = ['--source=r.csv', '--mode=manual', '--text_column=what']
    out = works(tmp_path, *words)
    assert "no ratings; its columns are 'id', 'what', 'mood'" in out
    assert "r: the text is the column 'what'\n" in out
    assert {rating for rating, _ in reviews(tmp_path / 'data/r')} == {-1}
    works(tmp_path, *words, '--rating_column=mood')
    assert Counter(rating for rating, _ in reviews(tmp_path / 'data/r')) == {0: 20, 1: 20, 2: 20}
    assert "no column 'nowhere'" in refused(tmp_path, *words, '--rating_column=nowhere')


@pytest.mark.parametrize('labels, flag, wanted', [
    ('12345', '--ratings=1:0,2:0,3:2,4:1,5:1', [0, 0, 2, 1, 1]),
    (['bad', 'GOOD '], '--ratings=Bad:0,good:1', [0, 1]),
    (['-1', '1'], '--ratings=-1:0,1:1', [0, 1]),
    ('012', '--ratings=0:0,1:1,2:-', [0, 1, -1]),
    (['1.00', '2,0', 0.0], '--ratings=1.0:1,2:2,0:0', [1, 2, 0]),  # of a database, of Excel
    (['부정', '보통'], '', [0, 2]),
])
def test_ratings_says_what_labels_mean(tmp_path, labels, flag, wanted):
    lines = [json.dumps({'text': text, 'label': labels[i % len(labels)]})
             for i, text in enumerate(LINES)]
    write(tmp_path / 'r.jsonl', '\n'.join(lines))
    works(tmp_path, '--source=r.jsonl', '--mode=manual', *([flag] if flag else []))
    for rating, text in reviews(tmp_path / 'data/r'):
        assert rating == wanted[int(text.split()[-1]) % len(wanted)]


def test_quotes_are_read_where_the_file_quotes(tmp_path):
    """As pandas writes it: quoted where needed. And as NSMC is: a quote is a quote."""
    texts = [f'그가 "최고"래요 {i}' if i % 2 else f'첫 줄\n둘째\t줄 {i}' for i in range(40)]
    cells = ['"' + text.replace('"', '""') + '"' for text in texts]
    lines = [f'{cell}\t{i % 3}\n' for i, cell in enumerate(cells)]
    write(tmp_path / 'pandas.tsv', 'document\tlabel\n' + ''.join(lines))
    works(tmp_path, '--source=pandas.tsv', '--mode=manual')
    read = sorted(text for _, text in reviews(tmp_path / 'data/pandas'))
    assert read == sorted(clean(text) for text in texts)

    raw = [f'"좋다 {i}' if i % 2 else f'"정말" {i}"' for i in range(40)]
    lines = [f'{text}\t{i % 3}\n' for i, text in enumerate(raw)]
    write(tmp_path / 'nsmc.tsv', 'document\tlabel\n' + ''.join(lines))
    works(tmp_path, '--source=nsmc.tsv', '--mode=manual')
    assert sorted(text for _, text in reviews(tmp_path / 'data/nsmc')) == sorted(raw)


@pytest.mark.parametrize('table, wanted', [
    # one column: a cell of several lines, an empty one
    ('text\n"첫 줄\n둘째"\n""\n"""좋다"" 해서"\n', ['첫 줄 둘째', '"좋다" 해서']),
    ('id\ttext\r\n1\t"첫\r둘째"\r\n2\t"""좋다"""\r\n', ['첫 둘째', '"좋다"']),
    ('sep=\t\n\nid\ttext\n1\t"그냥 ""또"" 와"\n', ['그냥 "또" 와']),
    ('id\ttext\n1\t""\n2\t"그냥"\n3\t"""좋다"""\n', ['그냥', '"좋다"']),
    ('id\ttext\n1\t"그냥 ""또"" 와"\n  \n', ['그냥 "또" 와']),
    ('text\n그냥, 또, "와"\n', ['그냥, 또, "와"']),             # one column
])
def test_doubled_quotes_are_those_of_a_table(tmp_path, table, wanted):
    number = '9\t' if '\t' in table else ''
    write(tmp_path / 'r.tsv', table + ''.join(f'{number}{text}\n' for text in LINES))
    works(tmp_path, '--source=r.tsv', '--mode=manual')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(wanted + LINES)


def test_the_mark_that_excel_names_may_be_any(tmp_path):
    write(tmp_path / 'r.csv', 'sep==\ntext=label\n' + ''.join(f'{text}=1\n' for text in LINES))
    works(tmp_path, '--source=r.csv', '--mode=manual')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((1, text) for text in LINES)


def test_sources_with_commas_and_links_are_found_by_their_names(tmp_path):
    write(tmp_path / 'Poe, Tales, 1845.txt', '\n'.join(LINES))
    write(tmp_path / 'blobs/3f9a', '\n'.join(f'{text} 또' for text in LINES))
    (tmp_path / 'train.txt').symlink_to('blobs/3f9a')
    write(tmp_path / 'İçki.TXT', '\n'.join(f'{text} 더' for text in LINES))  # İ is two in lower case
    works(tmp_path, '--source=Poe, Tales, 1845.txt,train.txt,İçki.TXT', '--mode=manual',
          '--output_dir=out')
    for name in ('Poe, Tales, 1845_train.txt', 'train_train.txt', 'İçki_train.txt'):
        assert (tmp_path / 'out' / name).exists()


@pytest.mark.parametrize('table', [
    'text\tlabel\n' + ''.join(f'"{text}"\t{i % 3}\n' for i, text in enumerate(LINES)),
    'text,label\n' + ''.join(f'"{text}", {i % 3}\n' for i, text in enumerate(LINES)),
    'label,text\n' + ''.join(f'{i % 3}, "{text}"\n' for i, text in enumerate(LINES)),
])
def test_quotes_around_all_texts_are_no_part_of_them(tmp_path, table):
    write(tmp_path / 'r.tsv', table)
    works(tmp_path, '--source=r.tsv', '--mode=manual')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 3, t) for i, t in enumerate(LINES))


def test_a_person_may_say_that_a_line_is_a_text_whatever_it_looks_like(tmp_path):
    lines = [f'{i}, 그리고 우리는 갔다' for i in range(40)]
    write(tmp_path / 'r.txt', '\n'.join(lines))
    assert '--unit=line reads it' in refused(tmp_path, '--source=r.txt', '--mode=manual')
    works(tmp_path, '--source=r.txt', '--mode=manual', '--unit=line')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(lines)


def test_labels_with_commas_zeros_and_what_cannot_be_seen():
    labels = Labels('4,5:1,1,5:0,ok:2')
    assert [labels.rating(label) for label in ('4,5', '1,5', ' OK\u200b')] == [1, 0, 2]
    assert [Labels().rating(label) for label in ('1.000', '\ufeff0', '2,0')] == [1, 0, 2]


def test_the_labels_of_each_file_of_a_folder_are_asked_about(tmp_path):
    for name, shift in (('a', 0), ('b', 1)):
        rows = ''.join(f'{text} {name},{i % 2 + shift}\n' for i, text in enumerate(LINES))
        write(tmp_path / f'f/{name}.csv', 'text,label\n' + rows)
    assert 'b.csv: its labels are 1 and 2' in refused(tmp_path, '--source=f', '--mode=manual')
    works(tmp_path, '--source=f', '--mode=manual', '--ratings=0:0,1:1,2:2')


def test_a_space_after_a_comma_is_no_part_of_a_cell(tmp_path):
    rows = [f'{i % 3}, "{text}, ""또"""\n' for i, text in enumerate(LINES)]
    write(tmp_path / 'r.csv', '\n\nlabel, text\n' + ''.join(rows))  # blank lines before
    works(tmp_path, '--source=r.csv', '--mode=manual')
    wanted = sorted((i % 3, f'{text}, "또"') for i, text in enumerate(LINES))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


def test_a_known_source_keeps_its_labels_beside_stars(tmp_path):
    write(tmp_path / 'r.csv', 'text,label\n' + ''.join(f'{t},{i % 5 + 1}\n'
                                                       for i, t in enumerate(LINES)))
    out = works(tmp_path, '--source=demo,r.csv', '--n_reviews=100', '--mode=manual',
                '--ratings=1: 0, 2: 0, 3: 2, 4: 1, 5: 1')     # spaces are no part of a label
    assert 'demo: 22 negative, 59 positive, 19 ambiguous' in out
    assert 'r: 24 negative, 24 positive, 12 ambiguous' in out


def test_the_demo_has_no_floor_where_its_ratings_are_not_its_own(tmp_path):
    for flags in (['--rating_column=none'], ['--ratings=0:1,1:0,2:2']):
        works(tmp_path, '--source=demo', '--n_reviews=100', '--mode=manual', *flags)
        meta = json.loads((tmp_path / 'data/demo/meta.json').read_text())
        assert 'floor_bits_per_char' not in meta
        known = {rating for rating, _ in reviews(tmp_path / 'data/demo')} != {-1}
        assert known == (flags[0] != '--rating_column=none')


@pytest.mark.parametrize('first', ['"Hello, world"', 'Hello'])
def test_a_comma_and_a_space_in_one_text_take_no_spaces_from_others(tmp_path, first):
    rows = ''.join(f'{i},    return {i}\n' for i in range(60))
    write(tmp_path / 'r.csv', f'id,text\n0,{first}\n{rows}')
    works(tmp_path, '--source=r.csv', '--unit=paragraph', '--mode=manual', '--min_count=1')
    texts = {text for _, text in reviews(tmp_path / 'data/r')}
    assert {f'    return {i}' for i in range(60)} < texts


def test_a_comma_and_a_space_in_a_cell_of_several_lines_take_no_spaces_from_others(tmp_path):
    rows = ''.join(f'{i},    들여쓴 시 {i}\n' for i in range(60))
    quoted = '"그가 물었다, ""왜?""\n그리고, ""또?""' + '"'
    write(tmp_path / 'r.csv', f'id,text\n0,{quoted}\n{rows}')
    works(tmp_path, '--source=r.csv', '--unit=paragraph', '--mode=manual', '--min_count=1')
    texts = {text for _, text in reviews(tmp_path / 'data/r')}
    assert {f'    들여쓴 시 {i}' for i in range(60)} | {'그가 물었다, "왜?"\n그리고, "또?"'} == texts


@pytest.mark.parametrize('name, content', [
    ('r.csv', 'text,mood\n' + ''.join(f'{text},good\n' for text in LINES)),
    ('r.txt', '\n'.join(LINES)),
])
def test_what_ratings_mean_is_not_said_where_there_are_none(tmp_path, name, content):
    write(tmp_path / name, content)
    words = [f'--source={name}', '--mode=manual', '--ratings=bad:0,good:1']
    assert 'no text has one' in refused(tmp_path, *words)
    assert not files_of(tmp_path / 'data')
    if name == 'r.csv':
        works(tmp_path, *words, '--rating_column=mood')
        assert {rating for rating, _ in reviews(tmp_path / 'data/r')} == {1}


def test_what_the_hub_calls_its_labels_is_mapped(tmp_path):
    parquet_of_the_hub(tmp_path / 'r.parquet')
    works(tmp_path, '--source=r.parquet', '--mode=manual', '--ratings=0:0,1:2,2:1')
    wanted = sorted(((0, 2, 1)[i % 3], text) for i, text in enumerate(LINES))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


@pytest.mark.parametrize('table, n', [('text,\n{},', 0), ('text\n{}', 1), ('text,,\n{},,x', 0)])
def test_columns_without_a_name_and_texts_that_are_numbers(tmp_path, table, n):
    texts = [LINES, [str(i) for i in range(60)]][n]
    names, row = table.split('\n')
    write(tmp_path / 'r.csv', f'{names}\n' + ''.join(row.format(t) + '\n' for t in texts))
    works(tmp_path, '--source=r.csv', '--mode=manual', '--min_count=1')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(texts)


def test_missing_texts_are_counted(tmp_path):
    rows = ''.join(f'{text},{i % 2}\n{missing},1\n' for i, (text, missing) in enumerate(
        zip(LINES, ['NA', 'nan', 'NULL', r'\N'] * 15)))
    write(tmp_path / 'r.csv', f'text,label\n{rows}')
    out = works(tmp_path, '--source=r.csv', '--mode=manual')
    assert '60 left out: 60 missing (NA, nan, NULL)' in out
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 2, t) for i, t in enumerate(LINES))


def test_line_ends_that_windows_wrote_twice_are_no_old_mac(tmp_path):
    rows = ''.join(f'"{text}, ""또""' f'"\t{i % 2}\r\r\n' for i, text in enumerate(LINES))
    write(tmp_path / 'r.tsv', f'text\tlabel\r\r\n{rows}')
    works(tmp_path, '--source=r.tsv', '--mode=manual')
    wanted = sorted((i % 2, f'{text}, "또"') for i, text in enumerate(LINES))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


def test_many_files_have_a_name_that_no_file_can_have(tmp_path):
    names = [f'리뷰모음의 {n:02} 번째 권.txt' for n in range(12)]
    for n, name in enumerate(names):
        write(tmp_path / name, '\n'.join(f'{text} {n}' for text in LINES))
    works(tmp_path, f'--source={",".join(names)}', '--output_dir=o', '--mode=manual')
    assert len(reviews(tmp_path / 'o')) == 12 * len(LINES)


@pytest.mark.parametrize('encoding', ['cp1251', 'koi8-r', 'iso8859-15', 'mac-roman'])
def test_utf_8_is_not_read_in_an_encoding_in_which_anything_goes(tmp_path, encoding):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    said = refused(tmp_path, '--source=r.txt', f'--encoding={encoding}')
    assert 'it is UTF-8: leave --encoding= out' in said


def test_a_zero_in_each_line_is_no_utf_16(tmp_path):
    rows = ''.join(f'good f\0ood {i},{i % 2}\n' for i in range(60))
    write(tmp_path / 'r.csv', f'text,label\n{rows}')
    works(tmp_path, '--source=r.csv', '--mode=manual')
    wanted = sorted((i % 2, f'good food {i}') for i in range(60))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


def test_utf_8_is_not_read_as_cp949_which_short_texts_are(tmp_path):
    write(tmp_path / 'r.txt', '추천 맛집\n'.encode())
    assert '추천 맛집'.encode().decode('cp949')
    said = refused(tmp_path, '--source=r.txt', '--encoding=cp949')
    assert 'it is UTF-8: leave --encoding= out' in said
    texts = [f'Korean 치킨 {n}' for n in range(60)]
    content = '\n'.join(texts).encode('cp949')
    assert content.decode() != '\n'.join(texts), 'Latin letters, read as UTF-8'
    write(tmp_path / 'r.txt', content)
    works(tmp_path, '--source=r.txt', '--encoding=cp949', '--mode=manual')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(texts)


def test_a_vocabulary_in_a_folder_whose_name_is_not_utf_8(tmp_path):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    works(tmp_path, '--source=r.txt', '--mode=manual')
    folder = os.fsdecode('어휘'.encode('cp949'))
    shutil.copytree(tmp_path / 'data/r/manual', tmp_path / folder)
    works(tmp_path, '--data_dir=data/r', '--mode=manual', f'--model_name={folder}')
    assert read_meta(tmp_path / 'data/r/manual')['model_name'] == folder


def test_lines_that_windows_ended_twice_are_no_paragraphs(tmp_path):
    write(tmp_path / 'r.txt', '\r\r\n\r\r\n'.join(f'시 {i}\r\r\n둘째 줄' for i in range(60)))
    wanted = [f'시 {i}\n둘째 줄' for i in range(60)]
    works(tmp_path, '--source=r.txt', '--unit=paragraph', '--mode=manual', '--min_count=1')
    assert {text for _, text in reviews(tmp_path / 'data/r')} == set(wanted)
    works(tmp_path, '--source=r.txt', '--unit=file', '--mode=manual', '--min_count=1',
          '--output_dir=whole')
    assert ''.join(text for _, text in reviews(tmp_path / 'whole')) == '\n\n'.join(wanted)


@pytest.mark.parametrize('page', ['\n\f', '\f\n', '\u2029\u2029'])
def test_a_page_ends_a_paragraph(tmp_path, page):
    write(tmp_path / 'r.txt', page.join(f'시 {i}\n둘째 줄' for i in range(60)))
    works(tmp_path, '--source=r.txt', '--unit=paragraph', '--mode=manual', '--min_count=1')
    wanted = {f'시 {i}\n둘째 줄' for i in range(60)}
    assert {text for _, text in reviews(tmp_path / 'data/r')} == wanted


def test_bars_part_cells_where_nothing_else_does(tmp_path):
    rows = ''.join(f'{i}|{t}|{i % 3}\n' for i, t in enumerate(LINES))
    write(tmp_path / 'r.csv', f'id|text|label\n{rows}')
    works(tmp_path, '--source=r.csv', '--mode=manual')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 3, t) for i, t in enumerate(LINES))


def test_commas_within_quoted_names_part_nothing(tmp_path):
    rows = ''.join(f'"{t}";{i % 3}\n' for i, t in enumerate(LINES))
    write(tmp_path / 'r.csv', f'"text";"label, 0=neg, 1=pos, 2=amb"\n{rows}')
    works(tmp_path, '--source=r.csv', '--mode=manual', '--rating_column=label, 0=neg, 1=pos, 2=amb')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 3, t) for i, t in enumerate(LINES))


def test_what_only_looks_like_a_file_in_the_making_stays(tmp_path):
    for name in ('book.1.part', 'video.2024.part', 'backup.7z.001.part'):
        write(tmp_path / f'o/{name}', 'mine')
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    works(tmp_path, '--source=r.txt', '--output_dir=o', '--mode=manual')
    assert len(list((tmp_path / 'o').glob('*.part'))) == 3


def test_texts_are_not_written_over_the_meta_of_bins(tmp_path):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    works(tmp_path, '--source=r.txt', '--output_dir=o', '--mode=manual')
    said = refused(tmp_path, '--source=r.txt', '--output_dir=o/manual', '--mode=manual')
    assert 'o/manual/meta.json is there' in said


@pytest.mark.parametrize('beginning, told', [
    (b'PK\x03\x04\x82\xff', 'a zip archive'), (b'PAR1\x82\xff', 'its name must end with')])
def test_a_file_that_is_no_text_is_called_what_it_is(tmp_path, beginning, told):
    (tmp_path / 'r.csv').write_bytes(beginning * 9)
    assert told in refused(tmp_path, '--source=r.csv')


def test_a_blank_line_below_the_names_ends_nothing(tmp_path):
    rows = ''.join(f'{text},{i % 3}\n' for i, text in enumerate(LINES))
    write(tmp_path / 'r.csv', f'text,label\n\n{rows}')
    works(tmp_path, '--source=r.csv', '--mode=manual')
    assert len(reviews(tmp_path / 'data/r')) == len(LINES)


def test_the_columns_of_the_first_object_stand(tmp_path):
    rows = [{'text': text, 'label': 1} for text in LINES]
    rows[7] |= {'comment': '확인함', 'rating': 0}              # neither of them is read
    write(tmp_path / 'r.jsonl', '\n\ufeff'.join(map(json.dumps, rows)))           # files, joined
    out = works(tmp_path, '--source=r.jsonl', '--mode=manual')
    assert "the text is the column 'text', the rating 'label'" in out
    assert 'comment' not in out
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((1, text) for text in LINES)


def test_an_object_may_lack_its_rating(tmp_path):
    rows = [{'text': text, 'stars': i % 2} for i, text in enumerate(LINES)]
    del rows[0]['stars'], rows[7]['stars']
    write(tmp_path / 'r.jsonl', '\n'.join(map(json.dumps, rows)))
    works(tmp_path, '--source=r.jsonl', '--mode=manual', '--rating_column=stars')
    assert Counter(rating for rating, _ in reviews(tmp_path / 'data/r')) == {0: 29, 1: 29, -1: 2}
    write(tmp_path / 'r.jsonl', '{"text": "굿"}\n' * 9)
    words = ['--source=r.jsonl', '--rating_column=stars']
    assert "no object has the key 'stars'" in refused(tmp_path, *words)


def test_a_tsv_whose_names_have_commas_is_parted_at_its_tabs(tmp_path):
    write(tmp_path / 'r.tsv', table('r', '\t', 'text', 'a, b, c, and d', 'label'))
    works(tmp_path, '--source=r.tsv', '--mode=manual')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 3, t) for i, t in enumerate(LINES))


def test_latin_1_is_that_of_windows(tmp_path):
    texts = [f'“Schön” – it’s {i} €' for i in range(40)]
    write(tmp_path / 'r.txt', '\n'.join(texts).encode('cp1252'))
    works(tmp_path, '--source=r.txt', '--mode=manual', '--encoding=ISO-8859-1')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(texts)


def test_euc_kr_is_that_of_windows(tmp_path):
    texts = [f'똠양꿍 {i} 뷁' for i in range(40)]
    write(tmp_path / 'r.txt', '\n'.join(texts).encode('cp949'))
    works(tmp_path, '--source=r.txt', '--mode=manual', '--encoding=EUC-KR')
    assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(texts)


def test_labels_and_names_in_nfd_are_the_same_words(tmp_path):
    rows = ''.join(f'{text},{"부정" if i % 2 else "긍정"}\n' for i, text in enumerate(LINES))
    write(tmp_path / 'r.csv', unicodedata.normalize('NFD', '본문,label\n' + rows))
    works(tmp_path, '--source=r.csv', '--mode=manual', '--text_column=본문')
    wanted = sorted((1 - i % 2, text) for i, text in enumerate(LINES))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


def test_a_carriage_return_in_a_raw_table_is_a_space(tmp_path):
    lines = [f'{text}\r둘째 줄\t{i % 3}\r\n' for i, text in enumerate(LINES)]
    write(tmp_path / 'r.tsv', 'document\tlabel\r\n' + ''.join(lines))
    works(tmp_path, '--source=r.tsv', '--mode=manual')
    wanted = sorted((i % 3, f'{text} 둘째 줄') for i, text in enumerate(LINES))
    assert sorted(reviews(tmp_path / 'data/r')) == wanted


@pytest.mark.parametrize('suffix', ['csv', 'tsv'])
def test_the_lines_of_an_old_mac_are_lines(suffix, tmp_path):
    mark = {'csv': ',', 'tsv': '\t'}[suffix]
    write(tmp_path / f'r.{suffix}', table('r', mark, 'text', 'label').replace('\n', '\r'))
    works(tmp_path, f'--source=r.{suffix}', '--mode=manual')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted((i % 3, t) for i, t in enumerate(LINES))


def test_tables_that_were_joined_are_read_as_one(tmp_path):
    """The names of the columns stand twice, each time with a BOM. Excel wrote a first line, too."""
    part = '\ufeff' + table('r', ';', 'text', 'label')
    write(tmp_path / 'r.csv', part + part.replace('올게요', '갈게요'))
    out = works(tmp_path, '--source=r.csv', '--mode=manual')
    assert 'texts read: 121, kept: 120' in out
    assert '1 left out: 1 the names of the columns again' in out
    write(tmp_path / 'excel.csv', 'sep=;\r\n' + part[1:].replace('\n', '\r\n'))
    assert 'kept: 60' in works(tmp_path, '--source=excel.csv', '--mode=manual')


def test_what_is_missing_or_removed_is_counted(tmp_path):
    rows = [f'{{"body": "{text}", "overall": {n % 2}}}\n' for n, text in enumerate(LINES)]
    rows += ['{"overall": 1}\n', '{"body": "nan", "overall": "NA"}\n',
             '{"body": "don\\u0092t", "overall": "NA"}\n']
    write(tmp_path / 'r.jsonl', ''.join(rows))
    out = works(tmp_path, '--source=r.jsonl', '--mode=manual', '--text_column=body',
                '--rating_column=overall')
    assert 'texts read: 63, kept: 61' in out
    assert "1 without the key 'body'" in out and '1 missing (NA, nan, NULL)' in out
    assert '30 negative, 30 positive, 0 ambiguous, 1 without a rating' in out
    assert 'U+0080 to U+009F, which were removed: 1 ' in out


@pytest.mark.parametrize('lines', [
    ''.join(f'1:{n % 4 + 1}{n} 태초에 {n}\n' for n in range(200)),           # verses
    ''.join(f'{n % 3}:{n:02} 안녕하세요 {n}\n' for n in range(200)),           # times
    ''.join(f'맨유 첼시 {n}회 {n % 3}:1\n' for n in range(200)),
    ''.join(f'옛 연못 {n}, 개구리 뛰는, 물 소리 {n}\n' for n in range(200)),
    ''.join(f'{n}. 물 {n}컵\n' for n in range(200)),
    ''.join(f'({n % 4}) 물 {n}컵\n' for n in range(200)),
    ''.join(f'+{n % 3} 검 {n}\n' for n in range(200)),
])
def test_lines_that_are_no_table_are_lines(tmp_path, lines):
    write(tmp_path / 'r.txt', lines)
    works(tmp_path, '--source=r.txt', '--mode=manual')
    assert len(reviews(tmp_path / 'data/r')) == 200


def test_two_kinds_of_objects_are_both_read(tmp_path):
    rows = [f'{{"{"comment" if n else "review"}": "{text}"}}' for n, text in enumerate(LINES)]
    write(tmp_path / 'r.jsonl', '\n'.join(rows))
    works(tmp_path, '--source=r.jsonl', '--mode=manual')
    assert len(reviews(tmp_path / 'data/r')) == 60


def test_a_second_file_is_asked_about_as_the_first_would_be(tmp_path):
    write(tmp_path / 'f/a.jsonl', '{"text": "굿", "label": 1}\n'
          '{"text": "별로", "label": 0, "comment": "확인"}\n')
    write(tmp_path / 'f/b.jsonl', '{"text": "느림", "label": 0, "comment": "확인"}\n')
    sentence = refused(tmp_path, '--source=f', '--mode=manual')
    assert 'b.jsonl' in sentence and "'text', 'comment' could be the text" in sentence


def test_folders_that_are_ratings_are_told(tmp_path):
    for n, text in enumerate(LINES):
        write(tmp_path / 'm' / ('pos' if n % 2 else 'neg') / f'{n}.txt', text)
    said = 'no ratings are read from the names of folders and files (neg, pos)'
    assert said in works(tmp_path, '--source=m', '--mode=manual')
    write(tmp_path / 'pos.txt', '\n'.join(LINES[:30]))
    write(tmp_path / 'neg.csv', 'text\n' + '\n'.join(LINES[30:]))
    assert said in works(tmp_path, '--source=pos.txt,neg.csv', '--mode=manual')
    write(tmp_path / 'neg.csv', 'text,label\n' + '\n'.join(f'{text},0' for text in LINES[30:]))
    assert 'names of folders' not in works(tmp_path, '--source=neg.csv', '--mode=manual')


def test_texts_that_look_alike_are_on_one_side():
    alike = ['맛집 추천', '맛집 \u200b추천', '맛집\u200b  추천', '맛집\n추천',
             unicodedata.normalize('NFD', '맛집 추천').replace('ᆸ', '\u200bᆸ')]
    assert {visible(text) for text in alike} == {'맛집 추천'}
    for unseen in ('\ufff9\ufffb', '\x80\x81', '\uffff', '\U0001d159', '\u2028\x85'):
        assert not visible(clean_lines(unseen))


def test_a_text_of_several_lines_has_no_control_characters_but_line_breaks():
    strange = 'a\x1fb\x1cc\x85d\x9b31me\x0cf\x0bg\u2028h\u2029i\r\nj\rk\tl\x00m'
    assert clean_lines(strange) == 'a\nb\nc\nd31me\nf\ng\nh\ni\nj\nk\tlm'


def test_what_cannot_be_seen_is_no_text_and_moves_none(tmp_path):
    hidden = ['\u200b', '\u200d\ufeff', '\u3164', '\xad', '\u2800', '\ufe0f']
    with_space = [text.replace('요', '요\u200b', 1) for text in LINES]
    both = with_space + [f'\ufeff{text}' for text in LINES]  # a BOM is no text
    write(tmp_path / 'r.txt', '\n'.join([*hidden, *both, '']))
    out = works(tmp_path, '--source=r.txt', '--mode=manual')
    assert 'texts read: 126, kept: 120' in out
    assert '6 left out: 6 empty' in out
    train, val = ({text.replace('\u200b', '') for _, text in read_split(tmp_path / 'data/r' / file)}
                  for file in SIDES.values())
    assert not train & val
    assert len(train | val) == 60


def test_names_of_files_with_commas_in_nfd_and_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path / 'a,b c.txt', '\n'.join(LINES))
    write(tmp_path / unicodedata.normalize('NFD', '한글.txt'), '\n'.join(LINES))
    out = run('prepare.py', '--source=~/a,b c.txt,한글.txt', '--mode=manual', cwd=tmp_path,
              env={'HOME': str(tmp_path)}).stdout
    folder = 'data/a,b c+한글'
    assert out.endswith(f"ready: python train.py '--data_dir={folder}' "
                        f"'--out_dir=out/a,b c+한글' --mode=manual --minutes=10\n")
    assert len(reviews(tmp_path / folder)) == 120
    assert (tmp_path / folder / '한글_val.txt').exists()


def test_a_folder_is_read_in_order_and_what_is_not_read_is_said(tmp_path):
    write(tmp_path / 'notes/b.txt', '\n'.join(LINES[:30]))
    write(tmp_path / 'notes/a/z.md', '\n'.join(LINES[30:]))
    write(tmp_path / 'notes/photo.jpg', b'\xff\xd8')
    write(tmp_path / 'notes/.hidden.txt', 'no')
    out = works(tmp_path, '--source=notes', '--mode=manual')
    assert 'other files, not read: 2' in out
    assert 'notes: files read: 1 .md, 1 .txt' in out
    train = [text for _, text in read_split(tmp_path / 'data/notes/train.txt')]
    order = [LINES.index(text) for text in train]
    in_a = sum(i >= 30 for i in order)
    assert order[:in_a] == sorted(i for i in order if i >= 30)
    assert order[in_a:] == sorted(i for i in order if i < 30)
    assert 'holds no file' in refused(tmp_path, '--source=data/notes/manual')


def test_links_and_files_without_a_text_are_said(tmp_path):
    write(tmp_path / 'notes/a.txt', '\n'.join(LINES))
    write(tmp_path / 'notes/empty.txt', '')
    write(tmp_path / 'elsewhere/b.txt', GOOD)
    (tmp_path / 'notes/link').symlink_to('../elsewhere')
    (tmp_path / 'notes/nowhere').symlink_to('nowhere')
    out = works(tmp_path, '--source=notes', '--mode=manual')
    assert "files without a text: 1, as ['empty.txt']" in out
    assert "other files, not read: 2, as ['link', 'nowhere']" in out


@pytest.mark.parametrize('texts', [['짜장면\n5,000원'], ['May 5, 2020\nGreat', '별로'],
                                   ['맛, 굿\n양, 0\n또 올게요', '별로']])
def test_a_text_of_several_lines_with_commas_is_one(tmp_path, texts):
    rows = [(n % 2, f'{text} {n}') for n, text in enumerate(texts * 30)]
    for header, row in (('label,text', '{0},"{1}"'), ('text,label', '"{1}",{0}'),
                        ('id,label,text', '7,{0},"{1}"')):
        write(tmp_path / 'r.csv', '\n'.join([header, *(row.format(*one) for one in rows)]))
        works(tmp_path, '--source=r.csv', '--unit=paragraph', '--mode=manual')
        assert sorted(reviews(tmp_path / 'data/r')) == sorted(rows)


def test_no_file_is_read_twice(tmp_path):
    write(tmp_path / 'notes/a.txt', '\n'.join(LINES))
    for words in ('notes,notes/a.txt', 'notes/a.txt,notes/a.txt', 'notes,notes'):
        assert 'a.txt again' in refused(tmp_path, f'--source={words}', '--mode=manual')
    (tmp_path / 'notes/b.txt').symlink_to('a.txt')
    assert 'a.txt again' in refused(tmp_path, '--source=notes', '--mode=manual')


# --- texts with line breaks ---

STORY = '첫 줄\n\n  들여쓴 줄\t끝 \n␤ 와 ␛␤ 와 \\n\n' + unicodedata.normalize('NFD', '한글 é')
STORY += ' 👨‍👩‍👧\n'


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('a␤␛\n\\')))
def test_an_escaped_text_is_one_line_and_comes_back(text):
    assert '\n' not in escape(text)
    assert unescape(escape(text)) == text


@pytest.mark.parametrize('vocabulary', [
    ['--vocab_size=400'], ['--mode=manual', '--min_count=1'], ['--model_name=hub.json'],
])
def test_a_file_comes_back_to_the_last_character(tmp_path, hub_file, vocabulary):
    """Its last tenth is validation. Exact means: letters in NFC, and a line ends with \\n."""
    text = STORY * 40
    shutil.copy(hub_file, tmp_path / 'hub.json')
    write(tmp_path / 'novel.txt', text.replace('\n', '\r\n'))
    out = works(tmp_path, '--source=novel.txt', '--unit=file', *vocabulary)
    assert 'texts read: 1, kept: 1, to train on: 1, to validate: 1' in out
    text = unicodedata.normalize('NFC', text)
    cut = int(len(text) * 0.9)
    folder = tmp_path / 'data/novel'
    mode = 'manual' if '--mode=manual' in vocabulary else 'tokenizer'
    vocab = load_vocabulary(folder / mode)
    for side, part in (('train', text[:cut]), ('val', text[cut:])):
        assert list(read_split(folder / SIDES[side])) == [(-1, part)]
        _, stream = streams(folder / mode, side)
        assert [vocab.decode(ids) for _, ids in stream] == [part]


@pytest.mark.parametrize('text, cut', [
    ('abcd ' * 25 + '\n' * 20, 111), ('a' + '\u200b' * 20, 21), ('\u200b' * 20 + 'a', 0)])
def test_a_file_whose_end_cannot_be_seen_loses_nothing(tmp_path, text, cut):
    write(tmp_path / 'notes/a.txt', text)
    write(tmp_path / 'notes/b.txt', GOOD * 9)
    works(tmp_path, '--source=notes', '--unit=file', '--mode=manual')
    train, val = ([text for _, text in read_split(tmp_path / 'data/notes' / name)]
                  for name in SIDES.values())
    other, its_cut = GOOD * 9, int(len(GOOD * 9) * 0.9)
    assert train == [*filter(None, [text[:cut]]), other[:its_cut]]
    assert val == [*filter(None, [text[cut:]]), other[its_cut:]]


@pytest.mark.parametrize('blank', ['', ' ', '\u200b', '\u3164'])
def test_a_line_that_shows_nothing_ends_a_paragraph(tmp_path, blank):
    write(tmp_path / 'poems.txt', f'\n{blank}\n'.join(f'시 {i}\n둘째 줄' for i in range(40)))
    works(tmp_path, '--source=poems.txt', '--unit=paragraph', '--mode=manual')
    assert len(reviews(tmp_path / 'data/poems')) == 40


def test_a_blank_line_ends_a_paragraph(tmp_path):
    paragraphs = [f'  {i}째 연\n둘째 줄  {GOOD}' for i in range(40)]
    write(tmp_path / 'poems.txt', '\n\n' + '\n \t\n\n'.join(paragraphs) + '\n')
    works(tmp_path, '--source=poems.txt', '--unit=paragraph', '--mode=manual')
    read = [text for _, text in reviews(tmp_path / 'data/poems')]
    assert sorted(read) == sorted(paragraphs)


def test_the_text_of_a_table_keeps_its_lines_where_asked(tmp_path):
    texts = [f'첫  줄\n\n둘째 {i}' for i in range(40)]
    lines = [json.dumps({'text': text, 'label': i % 3}) for i, text in enumerate(texts)]
    write(tmp_path / 'r.jsonl', '\n'.join(lines))
    for unit, wanted in (('file', texts), ('line', [clean(text) for text in texts])):
        works(tmp_path, '--source=r.jsonl', f'--unit={unit}', '--mode=manual')
        assert sorted(text for _, text in reviews(tmp_path / 'data/r')) == sorted(wanted)


def test_a_long_text_is_encoded_in_pieces_as_it_is_whole(tmp_path):
    long = '\n'.join(text for _, text, _ in grammar.reviews(4000, 3)) + '  끝 '
    write(tmp_path / 'r.txt', long)
    works(tmp_path, '--source=r.txt', '--unit=file', '--vocab_size=600')
    folder = tmp_path / 'data/r/tokenizer'
    vocab = load_vocabulary(folder)
    (_, text), = read_split(tmp_path / 'data/r/train.txt')
    assert len(text) > 200_000
    _, ((_, ids),) = streams(folder)
    assert ids == vocab.encode([text])[0]


def copy_of_the_project(folder, file, old, new):
    """A copy in which one file has something else in one place."""
    shutil.copytree(ROOT / 'parts', folder / 'parts')
    for name in ('prepare.py', 'configurator.py'):
        shutil.copy(ROOT / name, folder)
    before = (folder / file).read_text('utf-8')
    assert before.count(old) == 1
    write(folder / file, before.replace(old, new))


def test_shakespeare_is_prepared_as_everybody_does_with_nothing_else_said(tmp_path):
    rng = random.Random(0)
    lines = [' '.join(''.join(rng.choices('abcdefgh', k=5)) for _ in range(8)) for _ in range(400)]
    play = 'First Citizen:\n' + '\n\n'.join(lines)
    (_, name, digest), = PLAIN_FILES['shakespeare']
    copy_of_the_project(tmp_path, 'parts/corpus.py', digest, sha256(play.encode()).hexdigest())
    write(tmp_path / 'data/download' / name, play)
    for name in ('shakespeare', 'shakespeare_manual'):
        write(tmp_path / f'config/{name}.py', '')
    words = [sys.executable, 'prepare.py', '--source=shakespeare']
    said = subprocess.check_output(words, cwd=tmp_path, text=True)
    assert said.endswith('ready: python train.py config/shakespeare.py\n'
                         'ready: python train.py config/shakespeare_manual.py\n')
    meta, ((_, ids),) = streams(tmp_path / 'data/shakespeare/manual')
    assert len(ids) == int(len(play) * 0.9)
    assert meta['vocab_size'] == len(set(play)) + len(CONTROL_TOKENS) + 1
    meta = read_meta(tmp_path / 'data/shakespeare/tokenizer')
    assert (meta['train_chars'], meta['vocab_size']) == (len(ids), 1000)


def test_both_vocabularies_at_once_are_those_of_two_calls(tmp_path):
    write(tmp_path / 'mine.txt', '\n'.join(LINES))
    words = ['--source=mine.txt', '--vocab_size=300']
    said = works(tmp_path, *words, '--output_dir=one', '--mode=manual,tokenizer')
    flags = '--data_dir=one --out_dir=out/one_'
    assert said.endswith(f'ready: python train.py {flags}manual --mode=manual --minutes=10\n'
                         f'ready: python train.py {flags}tokenizer --minutes=10\n')
    for mode in ('tokenizer', 'manual'):
        works(tmp_path, *words, '--output_dir=two', f'--mode={mode}')
    one, two = ({path.relative_to(tmp_path / folder): content
                 for path, content in files_of(tmp_path / folder).items()}
                for folder in ('one', 'two'))
    assert one == two
    said = refused(tmp_path, *words, '--mode=tokenizer,manual', '--model_name=one/manual')
    assert said.endswith('say --mode=manual\n')


# --- how it ends ---

def test_it_ends_with_the_words_that_train(tmp_path):
    write(tmp_path / 'mine.txt', '\n'.join(LINES))
    words = ['--source=mine.txt', '--vocab_size=300']
    flags = '--data_dir=data/mine --out_dir=out/mine'
    assert works(tmp_path, *words).endswith(f'\nready: python train.py {flags} --minutes=10\n')
    manual = works(tmp_path, *words, '--mode=manual')
    assert manual.endswith(f'\nready: python train.py {flags} --mode=manual --minutes=10\n')
    write(tmp_path / 'config/mine.py', '')  # as config/demo.py is there for data/demo
    assert works(tmp_path, *words).endswith('\nready: python train.py config/mine.py\n')
    write(tmp_path / 'config/demo.py', '')  # a person's demo.txt is not the demo
    write(tmp_path / 'demo.txt', '\n'.join(LINES))
    flags = '--data_dir=data/demo --out_dir=out/demo --minutes=10'
    assert works(tmp_path, '--source=demo.txt', '--vocab_size=300').endswith(f' {flags}\n')


def test_the_vocabulary_of_a_model_is_to_tune_it(songs, tmp_path):
    write(tmp_path / 'mine.txt', '\n'.join(LINES))
    said = works(tmp_path, '--source=mine.txt', f'--model_name={songs}')
    assert said.endswith(f'--out_dir=out/mine --init_from={songs} --minutes=10\n')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine').symlink_to(songs)  # a run of its own all the same
    said = works(tmp_path, '--source=mine.txt', '--model_name=out/mine')
    assert said.endswith('--out_dir=out/mine_tuned --init_from=out/mine --minutes=10\n')


def test_what_takes_the_place_of_other_texts_is_said(tmp_path):
    write(tmp_path / 'a/mine.txt', '\n'.join(LINES))
    write(tmp_path / 'b/mine.txt', '\n'.join(LINES[:40]))
    words = ['--mode=manual', '--source']
    first, again, other = (works(tmp_path, *words, f'{folder}/mine.txt') for folder in 'aab')
    assert 'taken its place' not in first + again
    assert '\ndata/mine held another train.txt; this one has taken its place\n' in other


def test_three_digits_are_said_to_be_read_as_in_kr3(tmp_path):
    write(tmp_path / 'r.csv', 'text,label\n' + ''.join(
        f'{text},{i % 3}\n' for i, text in enumerate(LINES)))
    said = works(tmp_path, '--source=r.csv', '--mode=manual')
    assert 'labels 0, 1 and 2 are read as negative, positive and ambiguous' in said
    said = works(tmp_path, '--source=r.csv', '--mode=manual', '--ratings=0:0,1:2,2:1')
    assert 'labels 0, 1 and 2' not in said


def test_a_fourth_rating_is_one_more_line(tmp_path):
    """In a copy of the project: the token, the names, the labels and the ids all follow."""
    ambiguous = "    ('<amb>', 'ambiguous', '보통'),\n"
    copy_of_the_project(tmp_path, 'parts/corpus.py', ambiguous,
                        ambiguous + "    ('<iro>', 'ironic', '반어'),\n")
    lines = [json.dumps({'text': f'{GOOD} {i}', 'label': i % 4}) for i in range(80)]
    write(tmp_path / 'r.jsonl', '\n'.join(lines))
    for mode in ('tokenizer', 'manual'):
        words = ['--source=r.jsonl', '--vocab_size=300', f'--mode={mode}']
        subprocess.run([sys.executable, 'prepare.py', *words], cwd=tmp_path, check=True)
        meta, stream = streams(tmp_path / 'data/r' / mode)
        assert list(meta['starts']) == ['0', '1', '2', '3', 'unknown']
        assert len(set(meta['starts'].values())) == 5
        labels = [int(line.split('\t')[0]) for line in open(tmp_path / 'data/r/train.txt')]
        assert [start for start, _ in stream] == [meta['starts'][str(label)] for label in labels]
        assert set(labels) == {0, 1, 2, 3}


# --- what it refuses ---

def parquet_cut_short(path):
    parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


def parquet_of_lists(path):
    pyarrow.parquet.write_table(pyarrow.table({'text': [['굿'], ['별로']]}), path)


def parquet_of_the_hub(path):
    names = {'names': ['negative', 'neutral', 'positive'], '_type': 'ClassLabel'}
    told = {'huggingface': json.dumps({'info': {'features': {'label': names}}})}
    table = pyarrow.table({'text': LINES, 'label': [0, 1, 2] * 20}).replace_schema_metadata(told)
    pyarrow.parquet.write_table(table, path)


def parquet_of_korean_labels(path):
    told = {'huggingface': json.dumps({'info': {'features': {'label': {'names': ['긍정', '부정']}}}})}
    table = pyarrow.table({'text': LINES, 'label': [0, 1] * 30}).replace_schema_metadata(told)
    pyarrow.parquet.write_table(table, path)


def parquet_of_stars(path):
    names = {'names': ['1 star', '2 stars']}
    told = {'huggingface': json.dumps({'info': {'features': {'label': names}}})}
    table = pyarrow.table({'text': LINES, 'label': [0, 1] * 30}).replace_schema_metadata(told)
    pyarrow.parquet.write_table(table, path)


def parquet_of_two_ratings(path):
    table = {'text': LINES, 'label': [0, 1, 2] * 20, 'sentiment': ['neg', 'neutral', 'pos'] * 20}
    pyarrow.parquet.write_table(pyarrow.table(table), path)


def parquet_of_bytes(path):
    pyarrow.parquet.write_table(pyarrow.table({'text': ['굿'.encode()]}), path)


COMMAS = 'Rating,Review\n1,"굿, 정말"\n2,맛은, 그냥, 그래요\n'
BAD_FILES = {  # what is wrong: file, its content, words of the sentence
    'no column': ('r.csv', 'name,stars\n굿,1\n', ["'name', 'stars'", '--text_column=']),
    'two columns': ('r.csv', 'text,Text\n굿,1\n', ["'text', 'Text'"]),
    'two texts': ('r.csv', 'text,label,comment\n굿,1,\n', ["'text', 'comment'", '--text_column=']),
    'how many comments': ('r.csv', 'Message,Comments\n메뉴,3\n또,7\n', ["'Comments' holds numbers"]),
    'a title above one name': ('r.csv', 'Comments,,\nDate,By,Comment\n1월,Kim,굿\n',
                               ['line 2 looks']),
    'quotes of Kaggle': ('r.tsv', 'id\tsentiment\treview\n"1"\t1\t"굿"\n"2"\t0\t"\\"또\\" 왔다"\n',
                         ['line 3', 'doubled']),
    'Unicode text of Excel': ('r.txt', '별점\t내용\n5\t"굿\n또"\n1\t"별로\n다신"\n', ['a table', '.tsv']),
    'fastText': ('r.txt', '__label__2 굿: 또\n__label__1 별로\n', ['a table', '.tsv']),
    'a label in front': ('r.txt', '1 맛있다\n0 별로 또\n' * 20, ["begins with one of '0', '1'", '.tsv']),
    'a label behind': ('r.txt', '굿 또.@positive\n별로@neutral\n' * 20, ['ends with one of', '.tsv']),
    'a date in front': ('r.txt', 'when,who,body\n' + ''.join(f'2021-01-{n},a{n},굿 {n}\n'
                                                            for n in range(10, 30)),
                        ['3 cells', 'commas']),
    'R': ('r.txt', '"text" "label"\n"1" "굿, 또" 1\n"2" "별로" NA\n', ['spaces between its cells']),
    'numbers of rows': ('r.tsv', '"text"\t"label"\n"1"\t"굿"\t1\n', ['row.names=FALSE']),
    'no names': ('r.csv', '굿,1\n별로,0\n', ['the line with the names is missing']),
    'rating 3': ('r.csv', 'Review,Rating\n굿,1\n별로,3\n', ['row 2', "'3'", '0 (negative)',
                                                        '--ratings=1:0,2:0,3:2,4:1,5:1']),
    'two ratings': ('r.csv', 'text,label,sentiment\n별로,0,negative\n굿,2,Positive\n',
                    ["'label' is 2 where 'sentiment' is 'Positive'", '--rating_column=']),
    'two of JSON': ('r.jsonl', '{"text": "그냥", "label": 1, "sentiment": "neutral"}\n',
                    ["'label' is 1 where 'sentiment' is 'neutral'"]),
    'two of parquet': ('r.parquet', parquet_of_two_ratings, ["'label' is 1"]),
    'stars of the Hub': ('r.parquet', parquet_of_stars, ['0 is 1 star', '--ratings=']),
    'rows in a quote': ('r.csv', 'text,label\n' + '"굿,1\n' + '또,0\n' * 9 + '별로",0\n또,1\n',
                        ['line 12', "'굿,1'", 'a quote opens in one']),
    'rows in a quote, the label first': (
        'r.csv', 'label,text\n1,"굿\n0,또\n1,별로"\n0,또\n', ['line 4', "'0,또'"]),
    'rows in a quote, between': ('r.csv', 'id,text,label\n1,"굿,1\n2,또,0\n3,별로",0\n',
                                 ['line 4', "'2,또,0'"]),
    'escaped quotes': ('r.tsv', 'label\ttext\n' + '1\t"굿"\n' * 9 + '0\t"\\"또\\" 왔다"\n',
                       ['line 11', 'doubled']),
    'a few label words': ('r.txt', '굿 또,positive\n별로 또,negative\n' * 6, ['ends with one of']),
    'labels in brackets': ('r.txt', '[pos] 굿\n[neg] 별로\n' * 6, ['begins with one of']),
    'labels with a sign': ('r.txt', '+1 굿\n-1 별로\n' * 10, ["begins with one of '+1', '-1'"]),
    'Korean labels of the Hub': ('r.parquet', parquet_of_korean_labels, ['0 is 긍정']),
    'rating 1.5': ('r.jsonl', '{"text": "굿", "label": 1.5}', ['row 1', '1.5']),
    'ratings 1 and 2': ('r.csv', 'text,label\n굿,2\n별로,1\n', ['1 and 2', '--ratings=1:0,2:1']),
    'commas': ('r.csv', COMMAS, ['line 3 has 4 cells', '2;', 'comma']),
    'too few cells': ('r.csv', 'text,label\n굿,1\n별로\n', ['line 3 has 1 cells']),
    'a tab': ('r.tsv', 'label\ttext\n1\t굿\t탭\n', ['line 2 has 3 cells', 'tab']),
    'a line break': ('r.tsv', 'text\tlabel\n굿\n정말\t1\n', ['line 2 has 1 cells']),
    'open quote': ('r.csv', 'Review,Rating\n"굿,1\n별로,0\n', ['lines 2 to 3']),
    'quotes': ('r.csv', 'Review,Rating\n"굿" 정말,1\n', ['line 2', 'doubled']),
    'not JSON': ('r.jsonl', '{"text": "굿"}\n{"text"', ['line 2 is no JSON object']),
    'an array': ('r.jsonl', '[{"text": "굿"}]', ['line 1 is no JSON object']),
    'wrapped': ('r.jsonl', '{\n"text": "굿"\n}', ['line 1 is no JSON object']),
    'other keys': ('r.jsonl', '{"text": "굿"}\n{"body": "굿"}\n', ['after row 1', "'body'"]),
    'rating [1]': ('r.jsonl', '{"text": "굿", "label": [1]}', ['row 1', '[1]']),
    'deep JSON': ('r.jsonl', '[' * 100_000, ['r.jsonl']),
    'no text at all': ('r.jsonl', '{"text": 7}', ['0 texts', '1 numbers in place of text']),
    'JSON by another name': ('r.json', '[]', ['name it .jsonl']),
    'no such key': ('r.jsonl', '{"body": 1}\n{"text": "굿"}\n', ["'body'", '--text_column=']),
    'packed JSON': ('r.json.gz', '', ['name it .jsonl']),
    'JSON of another name': ('r.ndjson', '{}', ['name it .jsonl']),
    'an archive': ('r.csv.zip', 'PK', ['unpack it']),
    'a sheet of Excel': ('r.XLSX', 'PK', ['save the table as CSV']),
    'a table called .txt': ('r.txt', 'id\tdocument\tlabel\n1\t굿\t1\n', ['a table', '.tsv']),
    'a CSV called .txt': ('r.txt', 'text,label\n굿,1\n', ['a table', '.csv']),
    'no ratings, called .txt': ('r.txt', 'id,review\n1,굿\n2,별로\n', ['a table', '.csv']),
    'commas in quotes': ('r.txt', 'review,date\n' + '"굿, 또",2024-01-02\n' * 9, ['a table']),
    'all in quotes': ('r.txt', '"내용","날짜"\n' + '"굿, 또","1월"\n' * 30, ['a table']),
    'a table without names': ('r.txt', '1\t굿\n0\t별로\n', ['a table', '2 cells', '.tsv']),
    'an empty cell': ('r.txt', '1\t굿\n0\t별로\n1\t\n', ['a table', '2 cells', '.tsv']),
    'a broken line': ('r.txt', '1\t굿\n' * 20 + '별로\n', ['a table', '2 cells', '.tsv']),
    'float labels': ('r.txt', '굿, 또,1.0\n별로,0.0\n', ['a table', '.csv']),
    'word labels': ('r.txt', '굿 1,pos\n별로 2,neg\n' * 10, ['a table', '2 cells', 'commas']),
    'bars': ('r.md', '0|굿|1\n1|별로|0\n', ['a table', 'parted by bars']),
    'a rating alone': ('r.txt', '본문,sentiment\n굿,positive\n', ['a table', '.csv']),
    'a title above, called .txt': ('r.txt', '\n표 1\ntext;label\n굿;1\n', ['a table', '.csv']),
    'an array of strings': ('r.txt', '["굿",\n"별로"]\n', ['JSON', '.jsonl']),
    'JSON with a BOM': ('r.txt', '\ufeff{"text": "굿"}\n', ['JSON']),
    'a title above': ('r.csv', 'Reviews,,\nid,text,label\n1,굿,1\n', ['line 2 looks like']),
    'half of it cp949': ('r.txt', '맛있어요\n'.encode() * 60 + '맛있어요\n'.encode('cp949') * 60,
                         ['line 61']),
    'UTF-32': ('r.txt', ('굿\n' * 9).encode('utf-32'), ['--encoding=utf-32']),
    'no names, commas': ('r.txt', '굿, 또,1\n별로,0\n', ['a table', '2 or 3 cells', '.csv']),
    'JSON called .txt': ('r.txt', '{"text": "굿"}\n', ['JSON', '.jsonl']),
    'a quoted CSV called .txt': ('r.txt', '"text","label"\n"굿","1"\n', ['a table', '.csv']),
    'a ragged table': ('r.txt', '1\t굿\n0\t별로\t2\n', ['a table', '2 or 3 cells', '.tsv']),
    'an array called .txt': ('r.txt', '[\n {"text": "굿"}\n]', ['JSON', '.jsonl']),
    'other quotes': ('r.tsv', '"text"\t"label"\n"그가 \\"또\\" 왔다"\t1\n', ['line 2', 'doubled']),
    'one cell or two': ('r.tsv', 'text\n"첫 줄\n둘째"\n굿\n', ['a quote', '.csv', '.txt']),
    'a key twice': ('r.jsonl', '{"text": "굿", "text": "또"}', ['line 1', "'text' is there twice"]),
    'other order': ('r.csv', 'text,label\n굿,1\nlabel,text\n0,별로\n', ['line 3', 'another order']),
    'empty': ('r.txt', '', ['0 texts']),
    'empty table': ('r.csv', '', ['0 texts']),
    'only names': ('r.csv', 'text,label\n', ['0 texts']),
    'blank': ('r.txt', '\n \n\x00\n', ['0 texts', '3 empty']),
    'one text': ('r.txt', GOOD, ['1 texts', 'val_ratio', '--unit=file']),
    'one text again and again': ('r.txt', f'{GOOD}\n' * 30, ['30 texts', 'too much alike']),
    'two rows alike': ('r.csv', f'text\n{GOOD}\n{GOOD}\n', ['a larger --val_ratio= may help']),
    'cp949 by its name': ('r.txt', '맛있어요\n'.encode('cp949') * 9, ['say --encoding=cp949']),
    'cp949 with a broken letter': ('r.csv', ('text\n' + '맛있어요\n' * 9).encode('cp949') + b'\xbe,\n',
                                   ['say --encoding=cp949']),
    'neither UTF-8 nor anything': ('r.txt', b'\x80\xff\xfe\x81\x20' * 50, ['iconv']),
    'one bad byte': ('r.txt', f'굿\n{GOOD} '.encode() + b'\xff\n', ['line 2', '0xff', 'ㅋㅋ']),
    'cut within a character': ('r.txt', '굿\n별로'.encode()[:-1], ['line 2', 'ends within']),
    'cut within the last one': ('r.txt', 'un café'.encode()[:-1], ['line 1', 'ends within']),
    'UTF-16': ('r.txt', ('привет мир 1\n' * 9).encode('utf-16-le'), ['--encoding=utf-16-le']),
    'Korean UTF-16': ('r.csv', ('맛이 가끔 좋아요\n' * 9).encode('utf-16-be'), ['--encoding=utf-16-be']),
    'curly quotes': ('r.txt', 'I don’t … it’s\n'.encode('cp1252') * 9, ['--encoding=cp1252']),
    'stars in cp949': ('r.txt', '★★★☆☆ “그래요?” → 별로 ♥♥\n'.encode('cp949') * 9,
                       ['say --encoding=cp949']),
    'Shift-JIS is not said to be Korean': ('r.txt', '吾輩は猫である。\n'.encode('shift_jis') * 9,
                                           ['convert it to UTF-8']),
    'EUC-JP is not said to be Korean': ('r.txt', '吾輩は猫である。\n'.encode('euc_jp') * 9,
                                        ['convert it to UTF-8']),
    'cp949 cut short': ('r.txt.gz', gzip.compress('굿\n'.encode('cp949') * 999)[:-9], ['r.txt']),
    'gzip cut short': ('r.txt.gz', gzip.compress('굿\n'.encode() * 99)[:-9], ['r.txt.gz']),
    'parquet cut short': ('r.parquet', parquet_cut_short, ['r.parquet']),
    'parquet of lists': ('r.parquet', parquet_of_lists, ["'text' holds list<", 'not text']),
    'labels of the Hub': ('r.parquet', parquet_of_the_hub, ['1 is neutral, 2 is positive']),
    'parquet of bytes': ('r.parquet', parquet_of_bytes, ["'text' holds binary", 'not text']),
    'no parquet': ('r.parquet', '<html>', ['r.parquet']),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_a_bad_file_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, case):
    name, content, words = BAD_FILES[case]
    if callable(content):
        content(tmp_path / name)
    else:
        write(tmp_path / name, content)
    sentence = refused(tmp_path, f'--source={name}', '--mode=manual')
    assert all(word in sentence for word in words), sentence
    assert not files_of(tmp_path / 'data')


@pytest.mark.parametrize('words, word', [
    (['--source=nowhere.csv'], 'nowhere.csv'),
    (['--source='], "source ''"),
    (['--source=a.csv', '--source', 'b'], '--source=a.txt,b.txt'),
    (['--mode=letters'], "'manual'"),
    (['--unit=page'], 'paragraph'),
    (['--val_ratio=1'], 'val_ratio'),
    (['--vocab_size=70000'], '65536'),
    (['--batch_size=0'], 'batch_size'),
    (['--ratings=1:7', '--source=a.csv'], 'LABEL:RATING'),
    (['--ratings=bad:0,good:1,2', '--source=a.csv'], 'LABEL:RATING'),
    (['--ratings=bad:0,Bad:1', '--source=a.csv'], "'bad' two ratings"),
    (['--source=~nobody-of-this-name/a.csv'], '~nobody'),
    (['--source=demo', '--text_column=body'], 'text_column is for files of your own'),
    (['--data_dir=nowhere'], 'train.txt'),
    (['--source=demo,demo'], 'demo_train.txt'),
    (['--source=a.csv,b/a.txt'], 'a_train.txt'),
    (['--model_name=b'], 'model_name'),
    (['--model_name=a.csv', '--source=demo'], 'tokenizer.json'),
    (['--model_name=no where'], 'no where'),
    (['--source=a.csv', '--encoding=klingon'], 'klingon'),
    (['--source=demo', '--output_dir=a.csv'], 'a.csv'),
    (['--source=b', '--output_dir=b/out'], 'lies in b'),
    (['--source=a.csv', '--data_dir=b'], 'leave one of the two out'),
    (['--source=c.txt', '--text_column=was'], 'a table with the columns'),
    (['--source=c.txt', '--text_column=was', '--unit=file'], 'a table with the columns'),
    (['--source=b', '--text_column=was'], 'plain text, which has no columns'),
    (['--source=b/a.txt', '--rating_column=was'], 'rating_column=was'),
    (['a.csv'], 'a.csv: a word without -- names a config file'),
    (['--data_dir=d', '--revision=main'], 'leave one of the two out'),
    (['--data_dir=e', '--unit=paragraph'], 'made with --unit=line'),
    (['--source=c.txt', '--encoding=UTF-16'], 'it is UTF-8: leave --encoding= out'),
    (['--source=c.txt', '--encoding=cp1252'], 'it is UTF-8: leave --encoding= out'),
    (['--source=demo', '--vocab_size=300', '--n_reviews=300'], 'vocab_size='),
])
def test_a_mistake_is_a_sentence(tmp_path, words, word):
    write(tmp_path / 'a.csv', 'Review\n굿\n')
    write(tmp_path / 'b/a.txt', '굿\n')
    write(tmp_path / 'c.txt', 'was;wann\nschön, naja;heute\n')
    for name, text in (('train.txt', '-\t굿\n'), ('validation.txt', '-\t굿\n'),
                       ('meta.json', '{"unit": "line"}')):
        write(tmp_path / 'e' / name, text)
    assert word in refused(tmp_path, *words)


# --- texts that somebody split ---

SPLIT = [f'{i % 3}\t{text}\n' for i, text in enumerate(LINES)]


@pytest.mark.parametrize('line, wanted', [
    ('1\t굿 굿\r\n', '굿 굿'),
    ('\ufeff1\t굿 굿\n', '굿 굿'),
    ('1\t굿  굿\n', '굿 굿'),
    ('1\t 굿 굿\n', '굿 굿'),
    ('1\t굿▁굿\n', '굿_굿'),
    ('1\t' + unicodedata.normalize('NFD', '굿 굿') + '\n', '굿 굿'),
    ('1\t \u200b\n', None),
    ('\n', None),
])
def test_a_split_that_is_not_clean_is_refused_and_copied_clean(tmp_path, line, wanted):
    write(tmp_path / 'own/train.txt', ''.join([line, *SPLIT]))
    write(tmp_path / 'own/validation.txt', ''.join(SPLIT))
    before = files_of(tmp_path)
    assert 'train.txt, line 1' in refused(tmp_path, '--data_dir=own', '--mode=manual')
    assert files_of(tmp_path) == before
    works(tmp_path, '--data_dir=own', '--mode=manual', '--output_dir=clean')
    train = list(read_split(tmp_path / 'clean/train.txt'))
    assert train[:-60] == ([(1, wanted)] if wanted else [])
    assert train[-60:] == [(i % 3, text) for i, text in enumerate(LINES)]
    assert all(files_of(tmp_path)[path] == content for path, content in before.items())


@pytest.mark.parametrize('train, word', [
    (b'', 'empty'),
    (b'no tab\n', 'line 1'),
    ('1\t굿\n5\t별로\n'.encode(), 'line 2'),
    ('1\t별로\n'.encode('cp949'), 'these two files are UTF-8'),
    ('7\t굿\t1\n'.encode(), 'line 1'),
    ('1\t굿\t또\n'.encode(), 'line 1: it has more cells than two'),
])
def test_a_data_dir_that_is_not_ours_is_refused(tmp_path, train, word):
    write(tmp_path / 'train.txt', train)
    write(tmp_path / 'validation.txt', '1\t굿\n')
    assert word in refused(tmp_path, '--data_dir=.', '--mode=manual')


@pytest.mark.parametrize('meta', [
    '{', '[1]', b'\xff', '{"sources": 7}', '{"sources": [{"name": 1}]}', '{"unit": "page"}',
    '{"floor_bits_per_char": "0.7"}', '{"train_txt_crc32": "1"}',
    '{"sources": [{"name": "\\u001b[2J", "licence": "", "train_reviews": 1, "val_reviews": 1}]}',
])
def test_a_damaged_meta_json_of_the_texts_is_a_sentence(tmp_path, meta):
    for file in SIDES.values():
        write(tmp_path / file, ''.join(SPLIT))
    write(tmp_path / 'meta.json', meta)
    sentence = refused(tmp_path, '--data_dir=.', '--mode=manual')
    assert 'meta.json' in sentence
    assert '\x1b' not in sentence


def test_a_meta_json_of_somebody_else_changes_nothing_but_what_it_may(tmp_path):
    for file in SIDES.values():
        write(tmp_path / file, ''.join(SPLIT))
    write(tmp_path / 'meta.json', '{"vocabulary": "../../bashrc", "eos": "7", "vocab_size": -1}')
    works(tmp_path, '--data_dir=.', '--mode=manual')
    write(tmp_path / 'secret_train.txt', 'mine')
    files = {'../secret_train.txt': zlib.crc32(b'mine')}
    write(tmp_path / 'copy/meta.json', json.dumps({'sources': [], 'train_txt_crc32': 0,
                                                   'files': files}))
    works(tmp_path, '--data_dir=.', '--output_dir=copy', '--mode=manual')
    assert read_meta(tmp_path / 'copy')['files'] == {}
    meta = read_meta(tmp_path / 'manual')
    assert (meta['vocabulary'], meta['eos']) == ('characters.json', 0)


# --- nothing that was there is lost ---

@pytest.mark.parametrize('there, words', [
    ('x/train.txt', ['--source=x/train.txt', '--output_dir=x']),
    ('x/validation.txt', ['--source=mine.txt', '--output_dir=x']),
    ('x/mine_train.txt', ['--source=mine.txt', '--output_dir=x']),
    ('x/manual/tokenizer.json', ['--source=mine.txt', '--output_dir=x']),
    ('x/manual/model.safetensors', ['--source=mine.txt', '--output_dir=x']),
    ('x/train.txt', ['--data_dir=data/mine', '--output_dir=x']),
])
def test_what_is_not_ours_is_never_written_over(tmp_path, there, words):
    write(tmp_path / 'mine.txt', '\n'.join(LINES))
    works(tmp_path, '--source=mine.txt', '--mode=manual')
    write(tmp_path / there, '\n'.join(LINES))
    if there.endswith('safetensors'):
        write(tmp_path / 'x/manual/meta.json', '{"train_tokens": 1}')
    before = files_of(tmp_path)
    assert 'another --output_dir' in refused(tmp_path, *words, '--mode=manual')
    assert files_of(tmp_path) == before


def test_a_text_beside_the_meta_json_of_bins_is_not_ours(tmp_path):
    write(tmp_path / 'a.txt', '\n'.join(LINES))
    works(tmp_path, '--source=a.txt', '--output_dir=x', '--mode=manual')
    shutil.copytree(tmp_path / 'x/manual', tmp_path / 'flat')
    write(tmp_path / 'flat/train.txt', '1\tmine\n')
    assert 'train.txt' in refused(tmp_path, '--source=a.txt', '--output_dir=flat', '--mode=manual')
    assert (tmp_path / 'flat/train.txt').read_text('utf-8') == '1\tmine\n'


def test_a_text_that_was_edited_is_not_written_over_and_its_ids_are_stale(tmp_path):
    write(tmp_path / 'mine.txt', '\n'.join(LINES))
    words = ['--source=mine.txt', '--mode=manual']
    works(tmp_path, *words)
    works(tmp_path, *words)  # its own files it writes again
    folder = tmp_path / 'data/mine'
    check_texts(folder, read_meta(folder / 'manual'))
    text = (folder / 'train.txt').read_text('utf-8')
    write(folder / 'train.txt', text.replace('맛', '멋', 1))  # no byte longer
    with pytest.raises(UserError, match='no longer the text'):
        check_texts(folder, read_meta(folder / 'manual'))
    assert 'train.txt is there' in refused(tmp_path, *words)
    works(tmp_path, '--data_dir=data/mine', '--mode=manual')
    check_texts(folder, read_meta(folder / 'manual'))


def test_of_the_files_of_a_source_too_only_ours_are_written_over(tmp_path):
    for name in ('a', 'b'):
        write(tmp_path / f'{name}.txt', '\n'.join(f'{name} {text}' for text in LINES))
    words = ['--mode=manual', '--output_dir=out']
    works(tmp_path, '--source=a.txt,b.txt', *words)
    works(tmp_path, '--source=a.txt', *words)
    works(tmp_path, '--source=a.txt,b.txt', *words)           # b_train.txt is still ours
    with open(tmp_path / 'out/b_train.txt', 'a') as file:
        file.write('-\tmy own line\n')
    assert 'b_train.txt' in refused(tmp_path, '--source=b.txt', *words)
    for meta in ('{"sources": []}', '{"sources": [], "author": "me"}'):
        write(tmp_path / 'mine/meta.json', meta)
        write(tmp_path / 'mine/train.txt', 'precious')
        words = ['--source=a.txt', '--mode=manual', '--output_dir=mine']
        assert 'is there' in refused(tmp_path, *words)
        assert (tmp_path / 'mine/train.txt').read_text() == 'precious'


def test_the_floor_is_that_of_these_texts_and_no_others(tmp_path):
    words = ['--mode=manual', '--output_dir=demo']
    works(tmp_path, '--source=demo', '--n_reviews=300', *words)
    assert 'floor_bits_per_char' in read_meta(tmp_path / 'demo/manual')
    path = tmp_path / 'demo/validation.txt'
    path.write_text(''.join(path.read_text('utf-8').splitlines(keepends=True)[:9]), 'utf-8')
    works(tmp_path, '--data_dir=demo', '--mode=manual')
    assert 'floor_bits_per_char' not in read_meta(tmp_path / 'demo/manual')
    works(tmp_path, '--data_dir=demo', '--output_dir=copy', '--mode=manual')
    assert 'floor_bits_per_char' not in read_meta(tmp_path / 'copy')


def test_a_split_with_the_lines_of_an_old_mac_is_refused(tmp_path):
    for name in SIDES.values():
        write(tmp_path / 'own' / name, ''.join(SPLIT).replace('\n', '\r'))
    words = ['--data_dir=own', '--output_dir=copy', '--mode=manual']
    assert 'a carriage return' in refused(tmp_path, *words)


@pytest.mark.parametrize('end', ['\x85', '\u2028', '\v'])
def test_a_split_with_other_line_ends_is_refused(tmp_path, end):
    for name in SIDES.values():
        write(tmp_path / 'own' / name, ''.join(SPLIT).replace('\n', end))
    words = ['--data_dir=own', '--output_dir=copy', '--mode=manual']
    assert 'another line end' in refused(tmp_path, *words)


def test_line_breaks_of_a_split_without_its_meta_json_are_asked_about(tmp_path):
    for name in SIDES.values():
        write(tmp_path / 'own' / name, ''.join(f'-\t{text}␤  또\n' for text in LINES))
    words = ['--data_dir=own', '--output_dir=copy', '--mode=manual']
    assert 'line 1: its text has line breaks' in refused(tmp_path, *words)
    works(tmp_path, *words, '--unit=paragraph')
    assert reviews(tmp_path / 'copy') == [(-1, f'{text}\n  또') for text in LINES] * 2
    works(tmp_path, '--data_dir=own', '--mode=manual', '--unit=paragraph')
    assert read_meta(tmp_path / 'own/manual')['unit'] == 'paragraph'


def test_a_split_of_somebody_has_a_name_and_the_licence_of_its_file(tmp_path):
    for name in SIDES.values():
        write(tmp_path / 'own' / name, ''.join(SPLIT))
    works(tmp_path, '--data_dir=own', '--mode=manual')
    meta = read_meta(tmp_path / 'own/manual')
    assert meta['sources'] == [{'name': 'own', 'licence': "the file's own",
                                'train_reviews': 60, 'val_reviews': 60}]


def test_the_card_counts_what_a_person_left_of_the_texts(tmp_path):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    works(tmp_path, '--source=r.txt', '--mode=manual')
    left = (tmp_path / 'data/r/train.txt').read_text('utf-8').splitlines(keepends=True)[:20]
    write(tmp_path / 'data/r/train.txt', ''.join(left))
    works(tmp_path, '--data_dir=data/r', '--mode=manual')
    assert read_meta(tmp_path / 'data/r/manual')['sources'][0]['train_reviews'] == 20


def test_ids_of_the_text_before_are_stale(tmp_path):
    write(tmp_path / 'a.txt', '\n'.join(LINES))
    write(tmp_path / 'b.txt', '\n'.join(f'{text} b' for text in LINES))
    works(tmp_path, '--source=a.txt', '--output_dir=x', '--vocab_size=300')
    works(tmp_path, '--source=b.txt', '--output_dir=x', '--mode=manual')
    check_texts(tmp_path / 'x', read_meta(tmp_path / 'x/manual'))
    with pytest.raises(UserError, match='--mode=tokenizer --vocab_size=300 makes them anew'):
        check_texts(tmp_path / 'x', read_meta(tmp_path / 'x/tokenizer'))


def test_a_failing_run_leaves_the_files_of_the_last_good_one(tmp_path):
    works(tmp_path, '--source=demo', '--n_reviews=500', '--mode=manual')
    before = files_of(tmp_path)
    assert len(before) == 13
    bad = tmp_path / 'r.csv'
    write(bad, 'Review,Rating\n' + '굿,1\n' * 20_000 + '굿,7\n')
    refused(tmp_path, '--source=r.csv', '--mode=manual', '--output_dir=data/demo')
    bad.unlink()
    assert files_of(tmp_path) == before


def test_two_at_once_in_one_folder(tmp_path):
    words = [sys.executable, SCRIPT, '--source=demo', '--n_reviews=100000000']
    first = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        while not list(tmp_path.rglob('train.txt.*.part')):
            time.sleep(0.01)
        second = run('prepare.py', '--source=demo', '--n_reviews=50', cwd=tmp_path, ok=False)
        assert 'another' in second.stderr
    finally:
        first.kill()
        first.wait()
    works(tmp_path, '--source=demo', '--n_reviews=500', '--mode=manual')
    assert not list(tmp_path.rglob('*.part'))  # what the first left was cleared away


def interrupt(folder, words, when, signal_number, everyone=False):
    """Run the script in folder; when the file `when` appears send a signal, to it or to everyone.

    Ctrl-C in a terminal goes to everyone: to the script and to the processes that it has started.
    """
    # behind nohup a process is deaf to SIGINT, and so is what it starts: this one hears it
    run = subprocess.Popen([sys.executable, SCRIPT, *words], cwd=folder, start_new_session=True,
                           stderr=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        while not list(folder.glob(f'**/{when}')):
            time.sleep(0.01)
            assert run.poll() is None
        if everyone:
            time.sleep(0.1)  # until they work
            os.killpg(run.pid, signal_number)
        else:
            run.send_signal(signal_number)
        _, err = run.communicate(timeout=20)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 2
    assert err.count('\n') == 1
    assert 'interrupted' in err


def test_a_signal_while_files_take_their_places_is_heard_after():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with signals_postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, signal_number):
    words = ['--source=demo', '--n_reviews=100000000']
    for everyone in (False, True):
        interrupt(tmp_path, words, 'train.txt.*.part', signal_number, everyone)
        assert not files_of(tmp_path)


@pytest.mark.parametrize('signal_number', [
    signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_run_interrupted_while_it_encodes_leaves_the_texts(tmp_path, signal_number):
    for name in SIDES.values():
        write(tmp_path / name, f'1\t{GOOD} {GOOD}\n' * 300_000)
    before = files_of(tmp_path)
    words = ['--data_dir=.', '--mode=manual']
    interrupt(tmp_path, words, 'train.bin.*.part', signal_number)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize('last', ['validation.txt', 'val.bin'])
def test_killed_as_its_files_appear_the_next_one_brings_the_rest(tmp_path, last):
    write(tmp_path / 'r.txt', '\n'.join(LINES))
    works(tmp_path, '--source=r.txt', '--mode=manual')
    write(tmp_path / 'r.txt', '\n'.join(f'{text} 다시' for text in LINES))
    (tmp_path / 'kill').mkdir()
    words = ['--source=r.txt', '--mode=manual']
    run('prepare.py', *words, cwd=tmp_path, status=-signal.SIGKILL,
        env=killed_before(last, tmp_path / 'kill'))
    works(tmp_path, '--data_dir=data/r', '--mode=manual')
    assert {text for _, text in reviews(tmp_path / 'data/r')} == {f'{text} 다시' for text in LINES}
    works(tmp_path, *words)
    assert not list(tmp_path.rglob('*.part')) + list(tmp_path.rglob('renames.json'))


def test_a_plan_of_somebody_else_moves_nothing_out_of_its_folder(tmp_path):
    for name in SIDES.values():
        write(tmp_path / 'own' / name, ''.join(SPLIT))
    write(tmp_path / 'bashrc', 'mine')
    write(tmp_path / 'own/x', 'harm')
    for part, name in (('x', '../bashrc'), ('../bashrc.1.part', 'x'), ('7.part', '../bashrc'),
                       ('../bashrc.7.part', '../bashrc'), ('old.jpg', 'new.jpg')):
        plan = json.dumps({part: name})
        write(tmp_path / 'own/renames.json', plan)
        write(tmp_path / 'own/7.part', 'harm')
        done = run('prepare.py', '--data_dir=own', '--mode=manual', cwd=tmp_path, ok=False)
        assert 'renames.json is not one of' in done.stderr
        assert (tmp_path / 'bashrc').read_text() == 'mine'
        assert (tmp_path / 'own/renames.json').read_text() == plan


PEAK_MEMORY = """
import atexit, os, resource, runpy, sys

def print_peak():
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print('peak', own, largest_child)

sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
atexit.register(print_peak)
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_text(tmp_path):
    pytest.importorskip('resource', reason='this system does not tell how much memory was used')
    unit = 1 if sys.platform == 'darwin' else 1024  # bytes
    peak = {}
    for n in (20_000, 400_000):
        with open(tmp_path / 'r.txt', 'w', encoding='utf-8') as file:
            for i in range(n):
                file.write(f'{GOOD} {i}\n')
        words = ['--source=r.txt', '--mode=manual', f'--output_dir={n}']
        done = subprocess.run([sys.executable, '-c', PEAK_MEMORY, SCRIPT, *words], cwd=tmp_path,
                              capture_output=True, text=True, encoding='utf-8', check=True)
        own, largest_child = map(int, done.stdout.split()[-2:])
        peak[n] = unit * (own + largest_child)
    n_bytes = (tmp_path / 'r.txt').stat().st_size
    assert n_bytes > 15e6
    assert peak[400_000] - peak[20_000] < n_bytes / 2


# --- on all cores ---

def square(base, x):
    """Even numbers take longer, so that the results are ready in another order."""
    time.sleep(0.02 if x % 2 == 0 else 0)
    if x == base:
        raise UserError('the base is not welcome')
    return x * x


def test_long_texts_come_in_smaller_batches():
    lengths = [90_000] * 200 + [200_000, 5, 5] + [3] * 6000
    seen = list(batches([('x' * n, 1) for n in lengths], 5000))
    assert [len(text) for batch in seen for text, _ in batch] == lengths
    assert max(sum(len(text) for text, _ in batch) for batch in seen) < 5_100_000
    assert [('x' * 200_000, 1)] in seen
    assert max(map(len, seen)) == 5000


def test_items_are_taken_only_as_they_are_needed():
    taken = []

    def numbers():
        for x in range(1000):
            taken.append(x)
            yield x

    results = map_ordered(square, numbers(), -1)
    for n_results in range(1, 20):
        next(results)
        assert len(taken) <= n_results + 16  # twice as many as there are processes
    results.close()


def test_a_mistake_in_a_process_stays_one_sentence():
    with pytest.raises(UserError, match='^the base is not welcome$'):
        list(map_ordered(square, range(10), 3))


def die_at_3(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that is out of memory
    return x


def test_a_process_that_was_killed_is_missed():
    with pytest.raises(UserError, match='memory'):
        list(map_ordered(die_at_3, range(100)))


NEVER_READY = r"""
import os, time
from parts.corpus import map_ordered

def report(x):
    os.write(1, f'{os.getpid()}\n'.encode())  # at once, not between the halves of another
    time.sleep(0.01)

for _ in map_ordered(report, range(10 ** 9)):
    pass
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f'/proc/{pid}/stat')
    return not stat.exists() or stat.read_text().split()[2] != 'Z'  # Z: ended, not yet reaped


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(NEVER_READY)
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True,
                           env={**os.environ, 'PYTHONPATH': str(ROOT)})
    workers = {int(run.stdout.readline()) for _ in range(40)}
    run.kill()
    run.wait()
    end = time.time() + 10
    while any(is_running(pid) for pid in workers) and time.time() < end:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


# --- the vocabularies ---

TEXTS = st.lists(
    st.one_of(st.characters(), st.text(max_size=9), st.sampled_from(WILD)),
    max_size=20,
).map(''.join)
TYPED = [*CONTROL_TOKENS, '<unused0>', '<unused1>', '<unk>', '[CLS]']


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_clean_text_comes_back(vocabularies, text):
    text = clean(text)
    assert clean(text) == text
    pieces, hub, characters = vocabularies
    assert pieces.decode(pieces.encode([text])[0]) == text
    assert hub.decode(hub.encode([text])[0]) == text
    known = ''.join(character if character in characters.ids else '�' for character in text)
    assert characters.decode(characters.encode([text])[0]) == known


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.sampled_from(TYPED))
def test_typed_control_tokens_are_text(vocabularies, text, control):
    for vocab in vocabularies:
        ids = vocab.encode([clean(text + control + text)])[0]
        assert not {vocab.eos, *vocab.start_ids} & set(ids)
        assert isinstance(vocab, Characters) or control in vocab.decode(ids)


def test_what_a_control_id_means(vocabularies):
    for vocab in vocabularies:
        control_ids = {vocab.eos, *vocab.start_ids}
        assert len(control_ids) == len(CONTROL_TOKENS) == 5
        assert max(control_ids) < vocab.size
        assert set(vocab.start_ids) < set(vocab.banned)
        assert vocab.eos not in vocab.banned
        ids = vocab.encode([GOOD])[0]
        framed = [vocab.eos, vocab.rating_ids[1], *ids, vocab.eos]
        assert vocab.decode(framed) == vocab.decode(ids)


def test_characters_are_counted(tmp_path):
    path = tmp_path / 'train.txt'
    path.write_text('1\t가가가 나나다\n', 'utf-8')
    vocab = Characters.train(path, min_count=2)
    assert vocab.characters == [*CONTROL_TOKENS, '<unk>', '가', '나']
    assert vocab.encode(['나다가']) == [[7, 5, 6]]
    assert vocab.decode([7, 5, 6]) == '나�가'
    write(tmp_path / 'r.txt', '\n'.join([*LINES, '龍']))
    out = works(tmp_path, '--source=r.txt', '--mode=manual')
    assert out.count('1 of the tokens are <unk>') == 1


def test_a_vocabulary_no_larger_than_the_text_can_fill(tmp_path):
    write(tmp_path / 'r.txt', '\n'.join(f'굿 {i}' for i in range(30)))
    out = works(tmp_path, '--source=r.txt', '--vocab_size=65536')
    size = read_meta(tmp_path / 'data/r/tokenizer')['vocab_size']
    assert f'{size:,} ids, all that the text can fill' in out
    assert 262 < size < 400


def test_the_block_that_sentencepiece_keeps_for_itself_does_not_hide_a_text(tmp_path):
    text = ''.join(f'맛 ▅ {i} 점이고 다시 갈게요\n' for i in range(400))
    write(tmp_path / 'r.txt', text)
    works(tmp_path, '--source=r.txt', '--unit=file', '--vocab_size=400')
    vocab = load_vocabulary(tmp_path / 'data/r/tokenizer')
    assert any('다시' in vocab.processor.id_to_piece(i) for i in range(vocab.size))
    assert vocab.decode(vocab.encode(['맛 ▅ 점'])[0]) == '맛 ▅ 점'


def test_more_characters_than_ids_leaves_out_the_rarest(tmp_path):
    common = ''.join(map(chr, range(0x10000, 0x10000 + MOST_IDS)))
    (tmp_path / 'train.txt').write_text(f'-\t{common}굿굿\n', 'utf-8')
    vocab = Characters.train(tmp_path / 'train.txt', min_count=1)
    assert vocab.size == MOST_IDS and '굿' in vocab.ids


def word_level(ids):
    """A tokenizer.json of whole words."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='<unk>'))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str().encode()


def test_a_hub_tokenizer_whose_text_could_become_a_control_id_gets_new_ones():
    ids = {'<unk>': 0, '</s>': 1, '<pos>': 2, '굿': 3, '<unused0>': 4}
    vocab = HubTokenizer(word_level(ids))
    assert vocab.encode(['</s> 굿 <pos> <unused0>']) == [[1, 3, 2, 4]]
    assert not {1, 2, 3, 4} & {vocab.eos, *vocab.start_ids}
    assert vocab.size == 10
    # as load_vocabulary reads it, and as a process that encodes gets it
    for again in (HubTokenizer(vocab.content), pickle.loads(pickle.dumps(vocab))):
        assert (again.eos, again.start_ids) == (vocab.eos, vocab.start_ids)
        assert (again.size, again.content) == (vocab.size, vocab.content)
    kogpt2 = HubTokenizer(word_level({'<unk>': 0, '굿': 1}))
    typed = ['굿</s>굿 <pos>']
    assert pickle.loads(pickle.dumps(kogpt2)).encode(typed) == kogpt2.encode(typed)


def test_too_many_ids_are_refused_before_any_work(tmp_path):
    path = tmp_path / 'tokenizer.json'

    def write_words(n):
        path.write_bytes(word_level({f'w{i}': i for i in range(n)} | {'<unk>': n}))

    write_words(65_530)  # with <unk> and five control tokens 65,536
    works(tmp_path, '--model_name=tokenizer.json', '--source=demo', '--n_reviews=50')
    ids = np.fromfile(tmp_path / 'data/demo/tokenizer/train.bin', np.uint16)
    assert ids.max() == 65_535

    write_words(65_532)
    sentence = refused(
        tmp_path, '--model_name=tokenizer.json', '--source=demo', '--output_dir=x')
    assert '65,538 ids do not fit' in sentence
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('mode, other', [('tokenizer', 'manual'), ('manual', 'tokenizer')])
def test_the_vocabulary_of_a_folder_is_used_again(tmp_path, world, mode, other):
    words = ['--source=demo', '--n_reviews=200', '--seed=5', f'--model_name={world / mode}']
    works(tmp_path, *words, f'--mode={mode}')
    a = load_vocabulary(tmp_path / 'data/demo' / mode)
    b = load_vocabulary(world / mode)
    assert a.content == b.content
    assert (a.eos, a.start_ids, a.size) == (b.eos, b.start_ids, b.size)
    sentence = refused(
        tmp_path, '--source=demo', f'--model_name={world / mode}', f'--mode={other}')
    assert f'--mode={mode}' in sentence


def test_the_licence_of_a_vocabulary_goes_with_it(tmp_path, hub_file):
    """That of a Hub repository at a commit, and from there that of a folder."""
    (tmp_path / 'demo').symlink_to(hub_file)                  # a file, and no source
    works(tmp_path, '--source=demo', '--n_reviews=200', '--model_name=demo')
    folder = tmp_path / 'data/demo/tokenizer'
    assert 'vocabulary_licence' not in read_meta(folder)
    stand_in = (
        'import pathlib, runpy, sys, parts.vocabulary\n'
        'path = pathlib.Path(sys.argv.pop())\n'
        'parts.vocabulary.hub_file = lambda *words: path\n'
        "runpy.run_path('prepare.py', run_name='__main__')")
    words = ['--source=demo', '--n_reviews=200', '--model_name=skt/kogpt2-base-v2@d0c0df4',
             f'--output_dir={tmp_path}/a', hub_file]
    subprocess.run([sys.executable, '-c', stand_in, *words], cwd=ROOT, check=True)
    assert read_meta(tmp_path / 'a/tokenizer')['vocabulary_licence'] == 'CC BY-NC-SA 4.0'
    works(tmp_path, '--source=demo', '--n_reviews=200', '--model_name=a/tokenizer',
          '--output_dir=b')
    assert read_meta(tmp_path / 'b/tokenizer')['vocabulary_licence'] == 'CC BY-NC-SA 4.0'


def test_texts_follow_their_tokens_to_another_folder(tmp_path, world, hub_file):
    works(tmp_path, f'--data_dir={world}', '--output_dir=there', f'--model_name={hub_file}')
    there = tmp_path / 'there'
    assert (there / 'validation.txt').read_bytes() == (world / 'validation.txt').read_bytes()
    meta, stream = streams(there / 'tokenizer')
    vocab = load_vocabulary(there / 'tokenizer')
    decoded = [vocab.decode(ids) for _, ids in stream]
    assert decoded == [text for _, text in read_split(world / 'train.txt')]
    assert meta['floor_bits_per_char'] == read_meta(world)['floor_bits_per_char']


def strange_reviews(n):
    """n reviews, plain and with strange things in them."""
    dice = random.Random(7)
    for i, (_, text, _) in enumerate(grammar.reviews(n, 11)):
        for _ in range(i % 4):
            place = dice.randrange(len(text) + 1)
            text = text[:place] + dice.choice(WILD) * dice.choice([1, 1, 2, 7]) + text[place:]
        yield text


def test_transformers_reads_the_same_ids(tmp_path, world, hub_file):
    transformers = pytest.importorskip('transformers')
    works(tmp_path, f'--data_dir={world}', '--output_dir=hub', f'--model_name={hub_file}')
    texts = [*strange_reviews(2500), *WILD, ' 앞뒤 빈칸  ', *CONTROL_TOKENS]
    decomposed = unicodedata.normalize('NFD', '김치찌개')      # as macOS writes it
    for folder in (world / 'tokenizer', world / 'manual', tmp_path / 'hub/tokenizer'):
        ours = load_vocabulary(folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        if folder.parent == world:                            # those that are learned here
            assert theirs(decomposed)['input_ids'] == ours.encode(['김치찌개'])[0]
        encoded = ours.encode(texts)
        assert theirs(texts)['input_ids'] == encoded
        assert theirs.eos_token_id == theirs.pad_token_id == ours.eos
        assert theirs.bos_token_id == ours.start_ids[-1]
        unknown = ours.unk if isinstance(ours, Characters) else -1
        for text, ids in zip(texts, encoded):
            if unknown not in ids:
                framed = [ours.eos, ours.rating_ids[1], *ids]
                assert theirs.decode(framed, skip_special_tokens=True) == ours.decode(ids) == text
