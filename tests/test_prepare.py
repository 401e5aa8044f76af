"""prepare.py as a user runs it: what it reads, what it writes, what it refuses; and its vocabularies, on any text."""
import io
import json
import random
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import chdir, redirect_stderr
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from hypothesis import given, settings, strategies as st

import prepare
from data import demo
from prepare import CONTROLS, Characters, HubTokenizer, SentencePiece, clean, load_vocabulary, read_split

SCRIPT = Path(prepare.__file__).resolve()
GOOD = '맛있어요 또 올게요 ㅋㅋ'
WILD = ['😀', '👨‍👩‍👧', 'ㅋㅋㅋㅋ', 'ㅠㅠ', 'delicious', '2024', '龘', '\n', '  ', ' ', '</s>', '<pos>', '<unk>', '<0x41>', 'é', 'ᄒ', '<unused0>', '\u200f', '▲']


def works(folder, *words):
    """Run the script in folder as a user does. Returns what it printed."""
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=folder, capture_output=True, text=True, encoding='utf-8')
    assert (done.returncode, done.stderr) == (0, ''), done.stderr  # a bar is for a terminal; here stderr stays empty
    return done.stdout


def refused(folder, *words):
    """The one sentence of a refusal. The script runs as the main program, but in this process: there are many mistakes to make."""
    out, handler = io.StringIO(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, redirect_stderr(out), chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [str(SCRIPT), *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name='__main__')
    signal.signal(signal.SIGTERM, handler)
    sentence = out.getvalue()
    assert end.value.code == 2 and sentence.startswith('prepare.py: ') and sentence.count('\n') == 1, sentence
    assert not list(Path(folder).rglob('*.part'))
    return sentence


def reviews(folder):
    """Every (rating, text) of a prepared folder, both sides."""
    return [pair for side in ('train', 'validation') for pair in read_split(Path(folder) / f'{side}.txt')]


def streams(folder, side='train'):
    """[(start id, ids)] of a bin, taken apart at </s> by hand."""
    meta = json.loads((folder / 'meta.json').read_text('utf-8'))
    ids = np.fromfile(folder / f'{side}.bin', dtype=np.uint16).tolist()
    assert ids[0] == ids[-1] == meta['eos'] and len(ids) == meta[f'{side}_tokens'] and max(ids) < meta['vocab_size']
    edges = [i for i, t in enumerate(ids) if t == meta['eos']]
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
    """A byte-level tokenizer with unused ids and tokens of its own around every text, as found on the Hub."""
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer, t.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    t.train_from_iterator([text for _, text, _ in demo.reviews(500, 1)], tokenizers.trainers.BpeTrainer(
        vocab_size=800, special_tokens=['[CLS]', '</s>', '<unused0>', '<unused1>', '<unk>', '😀'], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    t.post_processor = tokenizers.processors.TemplateProcessing(single='[CLS] $A </s>', special_tokens=[('[CLS]', 0), ('</s>', 1)])
    t.enable_truncation(8), t.enable_padding(length=12)
    path = tmp_path_factory.mktemp('hub') / 'tokenizer.json'
    t.save(str(path))
    return path


@pytest.fixture(scope='module')
def vocabularies(world, hub_file):
    return load_vocabulary(world / 'tokenizer'), HubTokenizer(hub_file.read_bytes()), load_vocabulary(world / 'manual')


# --- the walk of the data

def test_the_split_holds_every_review_once_and_no_text_on_both_sides(world):
    written = Counter((rating, text) for rating, text, _ in demo.reviews(3000, 0))
    sides = [list(read_split(world / f'{side}.txt')) for side in ('train', 'validation')]
    assert Counter(sides[0] + sides[1]) == written
    assert not {t for _, t in sides[0]} & {t for _, t in sides[1]}
    assert 0.07 < len(sides[1]) / 3000 < 0.13
    assert (world / 'demo_train.txt').read_bytes() == (world / 'train.txt').read_bytes()


def test_a_review_keeps_its_side_whatever_is_beside_it(tmp_path, world):
    lines = [text for _, text in reviews(world)]
    (tmp_path / 'r.txt').write_text('\n'.join(random.Random(0).sample(lines, 1000)), 'utf-8')
    works(tmp_path, '--source=r.txt,demo', '--n_reviews=50', '--mode=manual')
    validation = {text for _, text in read_split(world / 'validation.txt')}
    for side, inside in (('train', False), ('val', True)):
        assert all((text in validation) == inside for _, text in read_split(tmp_path / f'data/r+demo/r_{side}.txt'))
        both = (tmp_path / f'data/r+demo/r_{side}.txt').read_text('utf-8') + (tmp_path / f'data/r+demo/demo_{side}.txt').read_text('utf-8')
        assert both == (tmp_path / 'data/r+demo' / f'{dict(train="train", val="validation")[side]}.txt').read_text('utf-8')
    assert 'floor_bits_per_char' not in json.loads((tmp_path / 'data/r+demo/meta.json').read_text())  # of the file's reviews it is unknown


@pytest.mark.parametrize('mode', ['tokenizer', 'manual'])
def test_the_bins_are_the_texts(world, mode):
    vocab = load_vocabulary(world / mode)
    for side, file in (('train', 'train.txt'), ('val', 'validation.txt')):
        meta, got = streams(world / mode, side)
        wanted = list(read_split(world / file))
        assert [r for r, _ in got] == [meta['starts'][str(r)] for r, _ in wanted]
        assert meta[f'{side}_reviews'] == len(wanted) and meta[f'{side}_chars'] == sum(len(t) for _, t in wanted)
        decoded = [vocab.decode(ids) for _, ids in got]
        assert sum(a != t for a, (_, t) in zip(decoded, wanted)) <= (2 if mode == 'manual' else 0)  # a rare letter is <unk>
    assert (meta['mode'], meta['vocab_size'], meta['eos']) == (mode, vocab.size, vocab.eos)
    assert meta['sources'] == [{'name': 'demo', 'licence': 'MIT', 'train_reviews': meta['train_reviews'], 'val_reviews': meta['val_reviews']}]
    bits = {(r, t): b for r, t, b in demo.reviews(3000, 0)}
    assert meta['floor_bits_per_char'] == pytest.approx(sum(bits[pair] for pair in wanted) / meta['val_chars'])
    assert set(meta['versions']) == {'numpy', 'sentencepiece', 'tokenizers'}


def test_a_rating_that_is_not_known_starts_with_s(tmp_path):
    (tmp_path / 'r.txt').write_text('\n'.join(f'{GOOD} {i}' for i in range(60)), 'utf-8')
    works(tmp_path, '--source=r.txt', '--vocab_size=300')
    meta, got = streams(tmp_path / 'data/r/tokenizer')
    assert {r for r, _ in got} == {meta['starts']['unknown']} and meta['sources'][0]['licence'] == "the file's own"
    assert {r for r, _ in reviews(tmp_path / 'data/r')} == {-1}


# --- what it reads

RATED = [(i % 3, f'{GOOD} {i}, "정말" {i}') for i in range(60)]


def write_source(path):
    """RATED as a file of each kind."""
    pairs = [(r, t) for r, t in RATED]
    if path.suffix == '.parquet':
        pyarrow.parquet.write_table(pyarrow.table({'Rating': [r for r, _ in pairs], 'Review': [t for _, t in pairs], '__index_level_0__': range(60)}), path)
    elif path.suffix == '.csv':
        path.write_text('id,Review,Rating\n' + ''.join('{},"{}",{}.0\n'.format(i, t.replace('"', '""').replace(' ', '\n', 1), r) for i, (r, t) in enumerate(pairs)), 'utf-8')
    elif path.suffix == '.tsv':
        path.write_text('id\tdocument\tlabel\r\n' + ''.join(f'{i}\t{t}\t{r}\r\n' for i, (r, t) in enumerate(pairs)), 'utf-8-sig')
    else:
        path.write_text('\n'.join(json.dumps({'text': t + ' \ud800\u0000', 'label': r}) for r, t in pairs) + '\n\n', 'utf-8')  # an escape \ud800


@pytest.mark.parametrize('kind', ['.parquet', '.csv', '.tsv', '.jsonl'])
def test_every_kind_of_file_is_read(tmp_path, kind):
    write_source(tmp_path / f'r{kind}')
    works(tmp_path, f'--source=r{kind}', '--mode=manual', '--batch_size=7')
    assert sorted(reviews(tmp_path / 'data/r')) == sorted(RATED)


@pytest.mark.parametrize('name, bom', [('cp949', b''), ('utf-16', b''), ('utf-16-le', b''), ('utf-16-be', b''), ('utf-16-be', b'\xfe\xff')])
def test_an_old_file_is_named_and_then_read(tmp_path, name, bom):
    (tmp_path / 'r.tsv').write_bytes(bom + ('Review\tRating\n' + ''.join(f'{t}\t{r}\n' for r, t in RATED)).encode(name))
    told = refused(tmp_path, '--source=r.tsv', '--mode=manual')
    word = f'--encoding={"utf-16" if bom else name}'
    assert word in told
    works(tmp_path, '--source=r.tsv', '--mode=manual', word)
    assert sorted(reviews(tmp_path / 'data/r')) == sorted(RATED)


def test_strange_ratings_and_texts(tmp_path):
    rows = [(True, 'a'), (False, 'b'), (2.0, 'c'), (None, 'd'), (float('nan'), 'e'), ('', 'f'), ('1', 'g'), (1, None), (1, 5), (1, ' \x00\t'), (0, 'ᄒ\x00ᅡ\u2028▁')]
    (tmp_path / 'r.jsonl').write_text('\n'.join(json.dumps({'Review': t, 'Rating': r}) for r, t in rows) + '\n' + '\n'.join(
        json.dumps({'Review': f'{GOOD} {i}'}) for i in range(40)), 'utf-8')
    works(tmp_path, '--source=r.jsonl', '--mode=manual')
    got = {t: r for r, t in reviews(tmp_path / 'data/r') if GOOD not in t}
    assert got == dict(a=1, b=0, c=2, d=-1, e=-1, f=-1, g=1, **{'하 _': 0})


def test_a_review_of_a_million_characters(tmp_path):
    long = ' '.join(text for _, text, _ in demo.reviews(13000, 3))[:1_000_000].strip()
    (tmp_path / 'r.txt').write_text(long + '\n' + '\n'.join(f'{GOOD} {i}' for i in range(30)), 'utf-8')
    works(tmp_path, '--source=r.txt', '--vocab_size=600', '--val_ratio=0.2')
    vocab = load_vocabulary(tmp_path / 'data/r/tokenizer')
    lengths = [len(vocab.decode(ids)) for side in ('train', 'val') for _, ids in streams(tmp_path / 'data/r/tokenizer', side)[1]]
    assert max(lengths) == len(long) and len(lengths) == 31


def test_pieces_are_learned_from_one_long_review_too(tmp_path):
    (tmp_path / 'train.txt').write_text('1\t' + '국수가 맛있고 국물이 진하다 ' * 4000 + '\n', 'utf-8')
    assert len(SentencePiece.train(tmp_path / 'train.txt').encode(['국수가 맛있고 국물이 진하다'])[0]) < 6


# --- what it refuses

def parquet_cut(path):
    write_source(path)
    path.write_bytes(path.read_bytes()[:-100])


REFUSALS = {
    'no column': ('r.csv', 'name,stars\n굿,1\n', ['name, stars', 'Review']),
    'rating 3': ('r.csv', 'Review,Rating\n굿,1\n별로,3\n', ['review 2', "'3'", '0 (negative)']),
    'rating 1.5': ('r.jsonl', '{"text": "굿", "label": 1.5}', ['review 1', '1.5']),
    'open quote': ('r.csv', 'Review,Rating\n"굿,1\n별로,0\n', ['r.csv']),
    'not JSON': ('r.jsonl', '{"text": "굿"}\n{"text"', ['review 1']),
    'JSON, no row': ('r.jsonl', '[1]', ['none']),
    'deep JSON': ('r.jsonl', '[' * 100_000, ['r.jsonl']),
    'empty': ('r.txt', '', ['0 reviews']),
    'empty table': ('r.csv', '', ['0 reviews']),
    'blank': ('r.txt', '\n \n\x00\n', ['0 reviews']),
    'one review': ('r.txt', GOOD, ['1 reviews', 'val_ratio']),
    'neither UTF-8 nor anything': ('r.txt', b'\x80\xff\xfe\x81\x20' * 50, ['iconv']),
    'parquet cut short': ('r.parquet', parquet_cut, ['r.parquet']),
    'no parquet': ('r.parquet', '<html>', ['r.parquet']),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_a_bad_file_is_refused_in_a_sentence_and_leaves_nothing(tmp_path, case):
    name, content, told = REFUSALS[case]
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = refused(tmp_path, f'--source={name}', '--mode=manual')
    assert all(word in sentence for word in told), sentence
    assert not [f for f in (tmp_path / 'data').rglob('*') if f.is_file()]


@pytest.mark.parametrize('words, told', [
    (['--source=nowhere.csv'], 'nowhere.csv'), (['--source='], "source ''"), (['--mode=letters'], "'manual'"), (['--val_ratio=1'], 'val_ratio'),
    (['--vocab_size=70000'], '65536'), (['--batch_size=0'], 'batch_size'), (['--data_dir=nowhere'], 'train.txt'),
    (['--source=demo,demo'], 'demo_train.txt'), (['--source=a.csv,b/a.txt'], 'a_train.txt'),
    (['--model_name=b'], 'model_name'), (['--model_name=a.csv', '--source=demo'], 'tokenizer.json'), (['--model_name=no where'], 'no where'),
    (['--source=a.csv', '--encoding=klingon'], 'klingon'), (['--source=demo', '--output_dir=a.csv'], 'a.csv'),
    (['--source=demo', '--vocab_size=300', '--n_reviews=300'], 'vocab_size=')])
def test_a_mistake_is_a_sentence(tmp_path, words, told):
    (tmp_path / 'b').mkdir()
    (tmp_path / 'a.csv').write_text('Review\n굿\n', 'utf-8')
    (tmp_path / 'b/a.txt').write_text('굿\n', 'utf-8')
    assert told in refused(tmp_path, *words)


def test_a_mistake_is_a_sentence_to_the_shell_too(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, '--source', 'demo', '--vocab_size', '300', '--n_reviews', '300'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'vocab_size=' in done.stderr


@pytest.mark.parametrize('train, told', [('', 'empty'), ('no tab\n', 'line 1'), ('1\t굿\n5\t별로\n', 'line 2'), (b'1\t\xff\n', 'utf-8')])
def test_a_data_dir_that_is_not_ours_is_refused(tmp_path, train, told):
    (tmp_path / 'train.txt').write_bytes(train if isinstance(train, bytes) else train.encode())
    (tmp_path / 'validation.txt').write_text('1\t굿\n', 'utf-8')
    assert told in refused(tmp_path, '--data_dir=.', '--mode=manual')


def test_a_failing_run_leaves_the_files_of_the_last_good_one(tmp_path):
    works(tmp_path, '--source=demo', '--n_reviews=500', '--mode=manual')
    before = {f: f.read_bytes() for f in tmp_path.rglob('*') if f.is_file()}
    assert len(before) == 11
    (tmp_path / 'r.csv').write_text('Review,Rating\n' + '굿,1\n' * 20_000 + '굿,7\n', 'utf-8')
    refused(tmp_path, '--source=r.csv', '--mode=manual', '--output_dir=data/demo')
    assert {f: f.read_bytes() for f in tmp_path.rglob('*') if f.is_file() and f.name != 'r.csv'} == before


@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path, sign):
    run = subprocess.Popen([sys.executable, SCRIPT, '--source=demo', '--n_reviews=100000000'], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.rglob('train.txt.part')):
        time.sleep(0.02)
        assert run.poll() is None
    run.send_signal(sign)
    _, err = run.communicate(timeout=20)
    assert run.returncode == 2 and err.count('\n') == 1 and 'interrupted' in err
    assert not [f for f in tmp_path.rglob('*') if f.is_file()]


# --- the vocabularies

TEXTS = st.lists(st.one_of(st.characters(), st.text(max_size=9), st.sampled_from(WILD)), max_size=20).map(''.join)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_clean_text_comes_back(vocabularies, text):
    text = clean(text)
    assert clean(text) == text
    pieces, hub, letters = vocabularies
    assert pieces.decode(pieces.encode([text])[0]) == text
    assert hub.decode(hub.encode([text])[0]) == text
    assert letters.decode(letters.encode([text])[0]) == ''.join(c if c in letters.ids else '�' for c in text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.sampled_from([*CONTROLS, '<unused0>', '<unused1>', '<unk>', '[CLS]']))
def test_typed_control_tokens_are_text(vocabularies, text, control):
    for vocab in vocabularies:
        ids = vocab.encode([clean(text + control + text)])[0]
        assert not {vocab.eos, *vocab.starts} & set(ids)
        assert (control in vocab.decode(ids)) or isinstance(vocab, Characters)


def test_what_a_control_id_means(vocabularies):
    for vocab in vocabularies:
        assert len({vocab.eos, *vocab.starts}) == 5 and max(vocab.eos, *vocab.starts) < vocab.size
        assert set(vocab.starts) < set(vocab.banned) and vocab.eos not in vocab.banned
        ids = vocab.encode([GOOD])[0]
        assert vocab.decode([vocab.eos, vocab.starts[1], *ids, vocab.eos]) == vocab.decode(ids)


def test_letters_are_counted(tmp_path):
    (tmp_path / 'train.txt').write_text('1\t가가가 나나다\n', 'utf-8')
    vocab = Characters.train(tmp_path / 'train.txt')
    assert vocab.characters == [*CONTROLS, '<unk>', '가', '나'] and vocab.encode(['나다가']) == [[7, 5, 6]] and vocab.decode([7, 5, 6]) == '나�가'


def test_a_vocabulary_no_larger_than_the_text_can_fill(tmp_path):
    (tmp_path / 'r.txt').write_text('\n'.join(f'굿 {i}' for i in range(30)), 'utf-8')
    out = works(tmp_path, '--source=r.txt', '--vocab_size=65536')
    size = json.loads((tmp_path / 'data/r/tokenizer/meta.json').read_text())['vocab_size']
    assert f'{size:,} ids, all that the text can fill' in out and 262 < size < 400


def word_level(ids):
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='<unk>'))
    t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return t.to_str().encode()


def test_a_hub_tokenizer_whose_text_could_become_a_control_id_gets_new_ones(tmp_path):
    once = HubTokenizer(word_level({'<unk>': 0, '</s>': 1, '<pos>': 2, '굿': 3, '<unused0>': 4}))
    assert once.encode(['</s> 굿 <pos> <unused0>']) == [[1, 3, 2, 4]] and not {1, 2, 3, 4} & {once.eos, *once.starts} and once.size == 10
    again = HubTokenizer(once.content)  # as load_vocabulary reads it
    assert (again.eos, again.starts, again.size, again.content) == (once.eos, once.starts, once.size, once.content)


def test_too_many_ids_are_refused_before_any_work(tmp_path):
    (tmp_path / 'tokenizer.json').write_bytes(word_level({f'w{i}': i for i in range(65_530)} | {'<unk>': 65_530}))
    works(tmp_path, '--model_name=tokenizer.json', '--source=demo', '--n_reviews=50')  # 65,531 and five control tokens
    assert np.fromfile(tmp_path / 'data/demo/tokenizer/train.bin', np.uint16).max() == 65_535
    (tmp_path / 'tokenizer.json').write_bytes(word_level({f'w{i}': i for i in range(65_532)} | {'<unk>': 65_532}))
    assert '65,538 ids do not fit' in refused(tmp_path, '--model_name=tokenizer.json', '--source=demo', '--output_dir=x')
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('mode, other', [('tokenizer', 'manual'), ('manual', 'tokenizer')])
def test_the_vocabulary_of_a_folder_is_used_again(tmp_path, world, mode, other):
    works(tmp_path, '--source=demo', '--n_reviews=200', '--seed=5', f'--model_name={world / mode}', f'--mode={mode}')
    a, b = load_vocabulary(tmp_path / 'data/demo' / mode), load_vocabulary(world / mode)
    assert a.content == b.content and (a.eos, a.starts, a.size) == (b.eos, b.starts, b.size)
    assert f'--mode={mode}' in refused(tmp_path, '--source=demo', f'--model_name={world / mode}', f'--mode={other}')


def test_texts_follow_their_tokens_to_another_folder(tmp_path, world, hub_file):
    works(tmp_path, f'--data_dir={world}', '--output_dir=there', f'--model_name={hub_file}')
    assert (tmp_path / 'there/validation.txt').read_bytes() == (world / 'validation.txt').read_bytes()
    meta, got = streams(tmp_path / 'there/tokenizer')
    vocab = load_vocabulary(tmp_path / 'there/tokenizer')
    assert [vocab.decode(ids) for _, ids in got] == [text for _, text in read_split(world / 'train.txt')]
    assert meta['floor_bits_per_char'] == json.loads((world / 'meta.json').read_text())['floor_bits_per_char']


@pytest.mark.parametrize('name, content', [('tokenizer.model', b''), ('tokenizer.model', b'junk'), ('tokenizer.json', b'{}'), ('characters.json', b'7'),
                                           ('characters.json', b'["a"]'), ('characters.json', None), ('../up', b''), (['x'], None)])
def test_a_damaged_vocabulary_is_a_sentence(tmp_path, name, content):
    (tmp_path / 'meta.json').write_text(json.dumps({'vocabulary': name}))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match='no vocabulary that can be read'):
        load_vocabulary(tmp_path)


def mutated(n):
    """n reviews, plain and with strange things in them."""
    dice = random.Random(7)
    for i, (_, text, _) in enumerate(demo.reviews(n, 11)):
        for _ in range(i % 4):
            at = dice.randrange(len(text) + 1)
            text = text[:at] + dice.choice(WILD) * dice.choice([1, 1, 2, 7]) + text[at:]
        yield text


def test_transformers_reads_the_same_ids(tmp_path, world, hub_file):
    transformers = pytest.importorskip('transformers')
    works(tmp_path, f'--data_dir={world}', '--output_dir=hub', f'--model_name={hub_file}')
    texts = [*mutated(2500), *WILD, ' 앞뒤 빈칸  ', *CONTROLS]
    for folder in (world / 'tokenizer', world / 'manual', tmp_path / 'hub/tokenizer'):
        ours, theirs = load_vocabulary(folder), transformers.AutoTokenizer.from_pretrained(folder)
        ids = ours.encode(texts)
        assert theirs(texts)['input_ids'] == ids
        assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (ours.eos, ours.eos, ours.starts[-1])
        unknown = ours.unk if isinstance(ours, Characters) else -1
        for text, row in zip(texts, ids):
            if unknown not in row:
                assert theirs.decode([ours.eos, ours.starts[1], *row], skip_special_tokens=True) == ours.decode(row) == text
