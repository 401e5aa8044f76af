"""prepare.py as a user runs it: what it reads, writes, refuses. Its vocabularies, on any text."""
import io
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from parts import grammar
from parts.corpus import clean, read_split
from parts.errors import UserError
from parts.vocabulary import (
    CONTROL_TOKENS,
    Characters,
    HubTokenizer,
    SentencePiece,
    load_vocabulary,
)

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'prepare.py'
GOOD = '맛있어요 또 올게요 ㅋㅋ'
WILD = [
    '😀', '👨‍👩‍👧', 'ㅋㅋㅋㅋ', 'ㅠㅠ', 'delicious', '2024', '龘', '\n', '  ', ' ', '</s>', '<pos>',
    '<unk>', '<0x41>', 'é', 'ᄒ', '<unused0>', '\u200f', '▲',
]
SIDES = {'train': 'train.txt', 'val': 'validation.txt'}


# --- helpers ---

def works(folder, *words):
    """Run the script in folder as a user does. Returns what it printed."""
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=folder,
                          capture_output=True, text=True, encoding='utf-8')
    # progress bars are for a terminal; here stderr stays empty
    assert (done.returncode, done.stderr) == (0, ''), done.stderr
    return done.stdout


def refused(folder, *words):
    """The one sentence of a refusal. The script runs in this process: there are many mistakes."""
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as end,
        chdir(folder),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, 'argv', [str(SCRIPT), *map(str, words)])
        for stream in ('stdin', 'stdout', 'stderr'):
            patch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding='utf-8'))
        stderr = sys.stderr
        runpy.run_path(str(SCRIPT), run_name='__main__')
    signal.signal(signal.SIGTERM, handler)
    sentence = stderr.buffer.getvalue().decode()
    assert end.value.code == 2, sentence
    assert sentence.startswith('prepare.py: '), sentence
    assert sentence.count('\n') == 1, sentence
    assert not list(Path(folder).rglob('*.part'))
    return sentence


def files_of(folder):
    """{path: content} of every file in folder, however deep."""
    return {file: file.read_bytes() for file in Path(folder).rglob('*') if file.is_file()}


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
    (tmp_path / 'r.txt').write_text('\n'.join(some), 'utf-8')
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


@pytest.mark.parametrize('mode', ['tokenizer', 'manual'])
def test_the_size_of_a_batch_changes_nothing(tmp_path, world, mode):
    words = [f'--data_dir={world}', f'--model_name={world / mode}', f'--mode={mode}']
    for batch_size in (1, 7, 100_000):
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
    (tmp_path / 'r.txt').write_text('\n'.join(f'{GOOD} {i}' for i in range(60)), 'utf-8')
    works(tmp_path, '--source=r.txt', '--vocab_size=300')
    meta, stream = streams(tmp_path / 'data/r/tokenizer')
    assert {start for start, _ in stream} == {meta['starts']['unknown']}
    assert meta['sources'][0]['licence'] == "the file's own"
    assert {rating for rating, _ in reviews(tmp_path / 'data/r')} == {-1}


# --- what it reads ---

RATED = [(i % 3, f'{GOOD} {i}, "정말" {i}') for i in range(60)]


def write_parquet(path):
    columns = {
        'Rating': [rating for rating, _ in RATED],
        'Review': [text for _, text in RATED],
        '__index_level_0__': range(60),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def write_csv(path):
    """With quotes and line breaks in the reviews, and ratings like 1.0."""
    lines = ['id,Review,Rating\n']
    for i, (rating, text) in enumerate(RATED):
        quoted = text.replace('"', '""').replace(' ', '\n', 1)
        lines.append(f'{i},"{quoted}",{rating}.0\n')
    path.write_text(''.join(lines), 'utf-8')


def write_tsv(path):
    lines = ['id\tdocument\tlabel\r\n']
    lines += [f'{i}\t{text}\t{rating}\r\n' for i, (rating, text) in enumerate(RATED)]
    path.write_text(''.join(lines), 'utf-8-sig')


def write_jsonl(path):
    """With an escape \\ud800, half of a surrogate pair, and empty lines."""
    rows = [{'text': text + ' \ud800\u0000', 'label': rating} for rating, text in RATED]
    lines = [json.dumps(row) for row in rows]
    path.write_text('\n'.join(lines) + '\n\n', 'utf-8')


@pytest.mark.parametrize('write', [write_parquet, write_csv, write_tsv, write_jsonl])
def test_every_type_of_file_is_read(tmp_path, write):
    name = write.__name__.replace('write_', 'r.')
    write(tmp_path / name)
    works(tmp_path, f'--source={name}', '--mode=manual', '--batch_size=7')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted(RATED)


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
    (tmp_path / 'r.jsonl').write_text('\n'.join(lines), 'utf-8')
    works(tmp_path, '--source=r.jsonl', '--mode=manual')
    got = {text: rating for rating, text in reviews(tmp_path / 'data/r') if GOOD not in text}
    assert got == {'a': 1, 'b': 0, 'c': 2, 'd': -1, 'e': -1, 'f': -1, 'g': 1, '하 _': 0}


def test_a_review_of_a_million_characters(tmp_path):
    long = ' '.join(text for _, text, _ in grammar.reviews(13000, 3))[:1_000_000].strip()
    short = [f'{GOOD} {i}' for i in range(30)]
    (tmp_path / 'r.txt').write_text('\n'.join([long, *short]), 'utf-8')
    works(tmp_path, '--source=r.txt', '--vocab_size=600', '--val_ratio=0.2')
    folder = tmp_path / 'data/r/tokenizer'
    vocab = load_vocabulary(folder)
    lengths = [len(vocab.decode(ids)) for side in SIDES for _, ids in streams(folder, side)[1]]
    assert max(lengths) == len(long)
    assert len(lengths) == 31


def test_pieces_are_learned_from_one_long_review_too(tmp_path):
    path = tmp_path / 'train.txt'
    path.write_text('1\t' + '국수가 맛있고 국물이 진하다 ' * 4000 + '\n', 'utf-8')
    vocab = SentencePiece.train(path, vocab_size=8000)
    assert len(vocab.encode(['국수가 맛있고 국물이 진하다'])[0]) < 6


def test_it_ends_with_the_words_that_train(tmp_path):
    lines = [f'{GOOD} {i}\n' for i in range(80)]
    (tmp_path / 'mine.txt').write_text(''.join(lines), 'utf-8')
    words = ['--source=mine.txt', '--vocab_size=300']
    flags = '--data_dir=data/mine --out_dir=out/mine'
    assert works(tmp_path, *words).endswith(f'\nready: python train.py {flags}\n')
    manual = works(tmp_path, *words, '--mode=manual')
    assert manual.endswith(f'\nready: python train.py {flags} --mode=manual\n')
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config/mine.py').touch()  # as config/demo.py is there for data/demo
    assert works(tmp_path, *words).endswith('\nready: python train.py config/mine.py\n')


def test_a_fourth_rating_is_one_more_line(tmp_path):
    """In a copy of the project: the token, the names, the labels and the ids all follow."""
    shutil.copytree(ROOT / 'parts', tmp_path / 'parts')
    for name in ('prepare.py', 'configurator.py'):
        shutil.copy(ROOT / name, tmp_path)
    corpus = tmp_path / 'parts/corpus.py'
    ambiguous = "    ('<amb>', 'ambiguous', '보통'),\n"
    changed = corpus.read_text('utf-8').replace(
        ambiguous, ambiguous + "    ('<iro>', 'ironic', '반어'),\n")
    corpus.write_text(changed, 'utf-8')

    lines = [json.dumps({'text': f'{GOOD} {i}', 'label': i % 4}) for i in range(80)]
    (tmp_path / 'r.jsonl').write_text('\n'.join(lines), 'utf-8')
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

def write_parquet_cut_short(path):
    write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])


BAD_FILES = {  # what is wrong: file, its content, words of the sentence
    'no column': ('r.csv', 'name,stars\n굿,1\n', ['name, stars', 'Review']),
    'rating 3': ('r.csv', 'Review,Rating\n굿,1\n별로,3\n', ['review 2', "'3'", '0 (negative)']),
    'rating 1.5': ('r.jsonl', '{"text": "굿", "label": 1.5}', ['review 1', '1.5']),
    'open quote': ('r.csv', 'Review,Rating\n"굿,1\n별로,0\n', ['r.csv']),
    'not JSON': ('r.jsonl', '{"text": "굿"}\n{"text"', ['review 1']),
    'JSON, no row': ('r.jsonl', '[1]', ['r.jsonl cannot be read: ', 'none']),
    'a row that is none': ('r.jsonl', '{"text": "굿"}\n[]\n', ['after review 1', 'none']),
    'rating [1]': ('r.jsonl', '{"text": "굿", "label": [1]}', ['review 1', '[1]']),
    'deep JSON': ('r.jsonl', '[' * 100_000, ['r.jsonl']),
    'empty': ('r.txt', '', ['0 reviews']),
    'empty table': ('r.csv', '', ['0 reviews']),
    'blank': ('r.txt', '\n \n\x00\n', ['0 reviews']),
    'one review': ('r.txt', GOOD, ['1 reviews', 'val_ratio']),
    'neither UTF-8 nor anything': ('r.txt', b'\x80\xff\xfe\x81\x20' * 50, ['iconv']),
    'parquet cut short': ('r.parquet', write_parquet_cut_short, ['r.parquet']),
    'no parquet': ('r.parquet', '<html>', ['r.parquet']),
}


@pytest.mark.parametrize('case', BAD_FILES)
def test_a_bad_file_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, case):
    name, content, told = BAD_FILES[case]
    path = tmp_path / name
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes(content.encode())
    sentence = refused(tmp_path, f'--source={name}', '--mode=manual')
    assert all(word in sentence for word in told), sentence
    assert not files_of(tmp_path / 'data')


@pytest.mark.parametrize('words, told', [
    (['--source=nowhere.csv'], 'nowhere.csv'),
    (['--source='], "source ''"),
    (['--mode=letters'], "'manual'"),
    (['--val_ratio=1'], 'val_ratio'),
    (['--vocab_size=70000'], '65536'),
    (['--batch_size=0'], 'batch_size'),
    (['--data_dir=nowhere'], 'train.txt'),
    (['--source=demo,demo'], 'demo_train.txt'),
    (['--source=a.csv,b/a.txt'], 'a_train.txt'),
    (['--model_name=b'], 'model_name'),
    (['--model_name=a.csv', '--source=demo'], 'tokenizer.json'),
    (['--model_name=no where'], 'no where'),
    (['--source=a.csv', '--encoding=klingon'], 'klingon'),
    (['--source=demo', '--output_dir=a.csv'], 'a.csv'),
    (['--source=demo', '--vocab_size=300', '--n_reviews=300'], 'vocab_size='),
])
def test_a_mistake_is_a_sentence(tmp_path, words, told):
    (tmp_path / 'b').mkdir()
    (tmp_path / 'a.csv').write_text('Review\n굿\n', 'utf-8')
    (tmp_path / 'b/a.txt').write_text('굿\n', 'utf-8')
    assert told in refused(tmp_path, *words)


def test_a_mistake_is_a_sentence_to_the_shell_too(tmp_path):
    words = ['--source', 'demo', '--vocab_size', '300', '--n_reviews', '300']
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=tmp_path,
                          capture_output=True, text=True, encoding='utf-8')
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert 'vocab_size=' in done.stderr


@pytest.mark.parametrize('train, told', [
    (b'', 'empty'),
    (b'no tab\n', 'line 1'),
    ('1\t굿\n5\t별로\n'.encode(), 'line 2'),
    (b'1\t\xff\n', 'utf-8'),
])
def test_a_data_dir_that_is_not_ours_is_refused(tmp_path, train, told):
    (tmp_path / 'train.txt').write_bytes(train)
    (tmp_path / 'validation.txt').write_text('1\t굿\n', 'utf-8')
    assert told in refused(tmp_path, '--data_dir=.', '--mode=manual')


def test_a_damaged_meta_json_of_the_texts_is_a_sentence(tmp_path):
    for file in SIDES.values():
        (tmp_path / file).write_text('1\t굿 굿\n', 'utf-8')
    for content in ('{', '[1]', '\udcff'):
        (tmp_path / 'meta.json').write_bytes(content.encode('utf-8', 'surrogateescape'))
        assert 'meta.json' in refused(tmp_path, '--data_dir=.', '--mode=manual')


def test_a_failing_run_leaves_the_files_of_the_last_good_one(tmp_path):
    works(tmp_path, '--source=demo', '--n_reviews=500', '--mode=manual')
    before = files_of(tmp_path)
    assert len(before) == 13
    bad = tmp_path / 'r.csv'
    bad.write_text('Review,Rating\n' + '굿,1\n' * 20_000 + '굿,7\n', 'utf-8')
    refused(tmp_path, '--source=r.csv', '--mode=manual', '--output_dir=data/demo')
    bad.unlink()
    assert files_of(tmp_path) == before


def interrupt(folder, words, when, signal_number, everyone=False):
    """Run the script in folder; when the file `when` appears send a signal, to it or to everyone.

    Ctrl-C in a terminal goes to everyone: to the script and to the processes that it has started.
    """
    run = subprocess.Popen([sys.executable, SCRIPT, *words], cwd=folder, start_new_session=True,
                           stderr=subprocess.PIPE, text=True)
    while not list(folder.rglob(when)):
        time.sleep(0.01)
        assert run.poll() is None
    if everyone:
        time.sleep(0.1)  # until they work
        os.killpg(run.pid, signal_number)
    else:
        run.send_signal(signal_number)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 2
    assert err.count('\n') == 1
    assert 'interrupted' in err


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, signal_number):
    words = ['--source=demo', '--n_reviews=100000000']
    for everyone in (False, True):
        interrupt(tmp_path, words, 'train.txt.part', signal_number, everyone)
        assert not files_of(tmp_path)


@pytest.mark.parametrize('signal_number', [signal.SIGINT, signal.SIGTERM])
def test_a_run_interrupted_while_it_encodes_leaves_the_texts(tmp_path, signal_number):
    for name in SIDES.values():
        (tmp_path / name).write_text(f'1\t{GOOD} {GOOD}\n' * 300_000, 'utf-8')
    before = files_of(tmp_path)
    words = ['--data_dir=.', '--mode=manual']
    interrupt(tmp_path, words, 'train.bin.part', signal_number)
    assert files_of(tmp_path) == before


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


def test_a_vocabulary_no_larger_than_the_text_can_fill(tmp_path):
    (tmp_path / 'r.txt').write_text('\n'.join(f'굿 {i}' for i in range(30)), 'utf-8')
    out = works(tmp_path, '--source=r.txt', '--vocab_size=65536')
    size = read_meta(tmp_path / 'data/r/tokenizer')['vocab_size']
    assert f'{size:,} ids, all that the text can fill' in out
    assert 262 < size < 400


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
    again = HubTokenizer(vocab.content)  # as load_vocabulary reads it
    assert (again.eos, again.start_ids) == (vocab.eos, vocab.start_ids)
    assert (again.size, again.content) == (vocab.size, vocab.content)


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


def test_texts_follow_their_tokens_to_another_folder(tmp_path, world, hub_file):
    works(tmp_path, f'--data_dir={world}', '--output_dir=there', f'--model_name={hub_file}')
    there = tmp_path / 'there'
    assert (there / 'validation.txt').read_bytes() == (world / 'validation.txt').read_bytes()
    meta, stream = streams(there / 'tokenizer')
    vocab = load_vocabulary(there / 'tokenizer')
    decoded = [vocab.decode(ids) for _, ids in stream]
    assert decoded == [text for _, text in read_split(world / 'train.txt')]
    assert meta['floor_bits_per_char'] == read_meta(world)['floor_bits_per_char']


@pytest.mark.parametrize('name, content', [
    ('tokenizer.model', b''),
    ('tokenizer.model', b'junk'),
    ('tokenizer.json', b'{}'),
    ('characters.json', b'7'),
    ('characters.json', b'["a"]'),
    ('characters.json', None),
    ('../up', b''),
    (['x'], None),
])
def test_a_damaged_vocabulary_is_a_sentence(tmp_path, name, content):
    (tmp_path / 'meta.json').write_text(json.dumps({'vocabulary': name}))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match='no vocabulary that can be read'):
        load_vocabulary(tmp_path)


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
    for folder in (world / 'tokenizer', world / 'manual', tmp_path / 'hub/tokenizer'):
        ours = load_vocabulary(folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        encoded = ours.encode(texts)
        assert theirs(texts)['input_ids'] == encoded
        assert theirs.eos_token_id == theirs.pad_token_id == ours.eos
        assert theirs.bos_token_id == ours.start_ids[-1]
        unknown = ours.unk if isinstance(ours, Characters) else -1
        for text, ids in zip(texts, encoded):
            if unknown not in ids:
                framed = [ours.eos, ours.rating_ids[1], *ids]
                assert theirs.decode(framed, skip_special_tokens=True) == ours.decode(ids) == text
