"""From the stream to the batch of a step, and the first weights by counting."""
import json
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from model import Config, build
from parts import bigram
from parts import data as data_part
from parts.bigram import init_from_bigrams
from parts.data import Data, find_ratings, hide_ratings, pack, read_meta, row_length
from parts.errors import UserError

EOS, UNKNOWN, POSITIVE, NEGATIVE = range(4)
STARTS = {'0': NEGATIVE, '1': POSITIVE, 'unknown': UNKNOWN}
MIXED = np.random.default_rng(1).integers(3, 30, 2500)             # lengths of texts
LONG = np.array([5, 9000, 7, 64, 65, 11_000, 129, *MIXED[:500]])


def distinct_texts(lengths):
    """The stream (N,) of texts of these lengths in which every id but `</s>` occurs once.

    So an id says where it stands, and which id truly follows it.
    """
    tokens = np.arange(4, 4 + sum(lengths) + 1)
    tokens[np.cumsum([0, *lengths])] = EOS
    return tokens


def rated_texts(lengths):
    """The same, but every text begins with a rating."""
    tokens = distinct_texts(lengths)
    tokens[np.cumsum([0, *lengths[:-1]]) + 1] = np.resize([NEGATIVE, POSITIVE], len(lengths))
    return tokens


def write(folder, lengths, tokens):
    """What prepare.py would write of these texts, the same on both sides; returns its meta."""
    offsets = np.cumsum([0, *lengths]).astype('<u8')
    meta = {'eos': EOS, 'starts': STARTS, 'vocab_size': 2 ** 16}
    (folder / 'tokenizer').mkdir()
    for side in ('train', 'val'):
        path = folder / 'tokenizer' / f'{side}.bin'
        path.write_bytes(tokens.astype('<u2').tobytes())
        (folder / 'tokenizer' / f'{side}_offsets.bin').write_bytes(offsets.tobytes())
        meta[f'{side}_tokens'] = len(tokens)
        meta[f'{side}_reviews'] = len(lengths)
        meta[f'{side}_largest_id'] = int(tokens.max())
        meta[f'{side}_crc32'] = zlib.crc32(path.read_bytes())
        meta[f'{side}_unseen'] = 0
    return meta


def test_the_other_vocabulary_is_named_where_it_alone_is_there(tmp_path):
    write(tmp_path, [9] * 8, distinct_texts([9] * 8))
    (tmp_path / 'tokenizer/meta.json').write_text('{}')
    told = f'say --mode=tokenizer, or python prepare.py --data_dir={tmp_path} --mode=manual'
    with pytest.raises(UserError, match=told):
        read_meta(tmp_path, 'manual')


@pytest.fixture
def open_data(tmp_path):
    """open_data(lengths, …) → Data of such texts; a second call opens the same texts anew."""
    def open_data(lengths, make=distinct_texts, rank=0, world_size=1, **changed):
        if not metas:
            metas.append(write(tmp_path, lengths, make(lengths)))
        settings = dict(data_dir=tmp_path, mode='tokenizer', arch='decoder', seed=3, batch_size=4,
                        chunk_size=64, epochs=2, n_tokens=0, read_share=0)
        return Data(SimpleNamespace(**{**settings, **changed}), metas[0], rank, world_size)

    metas = []
    return open_data


def epoch_of(data, epoch):
    """x and y (rows, T) of all steps of an epoch."""
    first = epoch * data.steps_per_epoch
    batches = [data.batch(step) for step in range(first, first + data.steps_per_epoch)]
    return torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])


# --- an epoch ---

@pytest.mark.parametrize('lengths', [MIXED, LONG], ids=['mixed', 'long'])
@pytest.mark.parametrize('shard_tokens', [2 ** 20, 4 * 64 * 17], ids=['one shard', 'shards'])
@pytest.mark.parametrize('most_groups', [2 ** 20, 300], ids=['single', 'groups'])
def test_an_epoch_predicts_every_token_once(monkeypatch, open_data, lengths, shard_tokens,
                                            most_groups):
    """But for the rows left over, and a piece at the edge of two shards, which is in both: at the
    end of the epoch, too, which goes round to where it began.
    """
    monkeypatch.setattr(data_part, 'SHARD_TOKENS', shard_tokens)
    monkeypatch.setattr(data_part, 'MOST_GROUPS', most_groups)
    data = open_data(lengths)
    _, y = epoch_of(data, 1)
    ids, n_times = y[y > EOS].unique(return_counts=True)
    n_shards = -(-data.steps_per_epoch // data.steps_per_shard)
    n_ids = len(data.tokens) - len(lengths) - 1
    left_over = data.tokens_per_step + 0.01 * n_ids + n_shards * data.row_length
    assert len(ids) > n_ids - left_over
    assert (n_times - 1).sum() <= n_shards * data.row_length


@pytest.mark.parametrize('lengths', [MIXED, LONG], ids=['mixed', 'long'])
def test_each_target_is_the_next_id_of_the_stream(open_data, lengths):
    data = open_data(lengths)
    tokens = data.tokens.astype(np.int64)
    follows = set(zip(tokens[:-1].tolist(), tokens[1:].tolist()))
    for epoch in (0, 1):
        x, y = epoch_of(data, epoch)
        real = y >= 0
        assert set(zip(x[real].tolist(), y[real].tolist())) <= follows
        assert (x[~real] == EOS).all()


@pytest.mark.parametrize('lengths', [MIXED, LONG], ids=['mixed', 'long'])
def test_no_token_of_a_row_has_another_text_before_it(open_data, lengths):
    """What does not go on where its neighbour stops begins with `</s>`, which the mask sees."""
    x, y = epoch_of(open_data(lengths), 1)
    goes_on = x[:, 1:] == y[:, :-1]
    assert (goes_on | (x[:, 1:] == EOS)).all()


@pytest.mark.parametrize('T, least_full', [(16, 0.85), (64, 0.99), (256, 0.99)])
def test_rows_are_full(T, least_full):
    lengths = np.random.default_rng(1).integers(2, min(T, 40), 3000)
    rows = pack(np.cumsum(lengths), lengths, lengths > 0, T)
    filled = [sum(length for _, length in row) for row in rows]
    assert max(filled) <= T
    assert sum(filled) == lengths.sum()
    assert sum(filled) > least_full * T * len(rows)


def test_texts_are_shuffled_anew_and_cut_elsewhere_in_every_epoch(open_data):
    data = open_data(LONG)
    orders, cuts = [], []
    for epoch in (0, 1, 2):
        x, _ = epoch_of(data, epoch)
        firsts = x[:, 0]
        orders.append(tuple(x[x > EOS].tolist()))
        cuts.append(frozenset(firsts[firsts > EOS].tolist()))         # of rows that go on
    assert len(set(orders)) == len(set(cuts)) == 3
    assert len(cuts[1] & cuts[2]) < 0.2 * len(cuts[1])


@pytest.mark.parametrize('lengths', [MIXED, [40_000]], ids=['mixed', 'one'])
def test_an_epoch_of_a_part_of_the_tokens_takes_another_part_each_time(open_data, lengths):
    data = open_data(lengths, n_tokens=0.01)
    assert data.steps_per_epoch == 10_000 // (4 * 64)
    parts = [set(epoch_of(data, epoch)[0].flatten().tolist()) for epoch in (0, 1)]
    assert len(parts[0] & parts[1]) < 0.5 * len(parts[0])


def test_no_token_of_a_part_is_lost_by_rounding(open_data):
    assert open_data([65_000], n_tokens=0.064256).tokens_per_epoch == 64_256
    with pytest.raises(UserError, match='0 tokens do not fill one batch'):
        open_data([65_000], n_tokens=1e-7)


def test_a_tenth_of_a_novel_is_not_its_first_chapters(open_data):
    """One long text, a part of it in each epoch: the rows of an epoch lie all over it."""
    data = open_data([60_000], n_tokens=0.006)
    for epoch in range(2):
        x, _ = epoch_of(data, epoch)
        starts = x[:, 0].sort().values                        # distinct ids say where a row stands
        assert starts[0] < 6_000 and starts[-1] > 54_000
        gaps = starts.diff()
        assert gaps.max() < 6_000 and gaps.min() > 0


def test_a_batch_is_a_function_of_the_step_alone(monkeypatch, open_data):
    """Whatever was asked for before, through shards and epochs; another seed, another run."""
    monkeypatch.setattr(data_part, 'SHARD_TOKENS', 4 * 64 * 17)
    data = open_data(MIXED, make=rated_texts, read_share=0.5)
    forward = [data.batch(step) for step in range(data.steps)]
    fresh = open_data(MIXED, make=rated_texts, read_share=0.5)
    for step in reversed(range(data.steps)):
        batch = fresh.batch(step)
        assert torch.equal(batch.x, forward[step].x)
        assert torch.equal(batch.y, forward[step].y)
        assert torch.equal(batch.ratings, forward[step].ratings)
        assert batch.n_targets == forward[step].n_targets == (batch.y >= 0).sum()
    other = open_data(MIXED, make=rated_texts, read_share=0.5, seed=4)
    assert not torch.equal(other.batch(0).y, forward[0].y)


def test_four_processes_have_the_rows_of_one(open_data):
    one = open_data(MIXED, make=rated_texts, read_share=0.5)
    four = [open_data(MIXED, rated_texts, rank, 4, read_share=0.5) for rank in range(4)]
    for step in (0, 7, one.steps - 1):
        whole = one.batch(step)
        slices = [data.batch(step) for data in four]
        assert torch.equal(torch.cat([b.x for b in slices]), whole.x)
        assert torch.equal(torch.cat([b.y for b in slices]), whole.y)
        assert torch.equal(torch.cat([b.ratings for b in slices]), whole.ratings)
        assert {b.n_targets for b in slices} == {whole.n_targets}


@pytest.mark.parametrize('lengths, expected', [
    ([20] * 1000, 128),
    ([20] * 995 + [100] * 5, 128),
    ([20] * 995 + [200] * 5, 256),
    ([100] * 50, 256),
])
def test_short_texts_are_read_in_short_rows_and_long_ones_in_long(lengths, expected):
    assert row_length(np.array(lengths), 256) == expected


# --- memory ---

MEASURE_MEMORY = '''
import sys
from pathlib import Path
from types import SimpleNamespace
from parts.data import Data, read_meta

def used():
    status = Path('/proc/self/status').read_text()
    return int(status.partition('RssAnon:')[2].split()[0])

before = used()
run = SimpleNamespace(data_dir=sys.argv[1], mode='tokenizer', arch='decoder', seed=0,
                      batch_size=256, chunk_size=64, epochs=1, n_tokens=0, read_share=0)
data = Data(run, read_meta(run.data_dir, run.mode))
for step in range(0, data.steps, 5 * data.steps_per_shard):
    data.batch(step)
print(used() - before)
'''


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc')
@pytest.mark.long
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """20 million tokens, 40 MB in the file, cost no more than 20 MB over what one million costs."""
    lengths = np.random.default_rng(1).integers(6, 60, 30_000)
    tokens = distinct_texts(lengths) % 60_000
    grown = []
    for times in (1, 20):
        folder = tmp_path / str(times)
        folder.mkdir()
        repeated = np.append(np.tile(tokens[:-1], times), EOS)
        meta = write(folder, np.tile(lengths, times), repeated)
        (folder / 'tokenizer/meta.json').write_text(json.dumps(meta))
        words = [sys.executable, '-c', MEASURE_MEMORY, str(folder)]
        done = subprocess.run(words, check=True, capture_output=True, cwd=ROOT, timeout=240)
        grown.append(int(done.stdout))
    assert grown[1] - grown[0] < 20_000, grown                # kB


# --- validation ---

def test_validation_reads_every_text_once_and_as_much_as_it_is_asked_to(open_data):
    data = open_data([5, 64, 65, 66, 128, 129, 400, 7])
    x, y = data.validation_batch(data.validation_rows(np.inf))
    real = y >= 0
    pairs = sorted(zip(x[real].tolist(), y[real].tolist()))
    assert pairs == sorted(zip(data.tokens[:-1].tolist(), data.tokens[1:].tolist()))
    for most, expected in ((69, 5 + 64), (70, 5 + 64 + 64), (1, 5)):
        _, y = data.validation_batch(data.validation_rows(most))
        assert (y >= 0).sum() == expected


def test_validation_does_not_end_before_a_long_text(open_data):
    data = open_data([3, 400])                                # a preface and a novel
    _, y = data.validation_batch(data.validation_rows(200))
    assert (y >= 0).sum() == 3 + 4 * 64


# --- ratings that are asked for ---

def test_a_hidden_rating_is_asked_for_at_the_end_of_its_text():
    rating_ids, unrated_id = [3, 4, 5], 1
    text_that_goes_on = [EOS, 5, 20, 21, 22, 23, 24, 25, 26]  # its </s> comes a row later
    rest_of_a_text = [30, 31, EOS, 4, 32, EOS, EOS, EOS, EOS]  # its rating is a row before
    unrated = [EOS, 1, 40, EOS, 3, EOS, 4, 41, EOS]           # and a text without a word
    rows = torch.tensor([rest_of_a_text, unrated, text_that_goes_on, unrated])
    x, y = rows[:, :-1], rows[:, 1:].clone()
    y[0, 5:] = -1                                             # the empty end of a row
    asks = torch.tensor([True, True, True, False])
    hidden, ratings = hide_ratings(x, y, asks, EOS, rating_ids, unrated_id)
    assert hidden.tolist() == [
        [30, 31, EOS, 1, 32, EOS, EOS, EOS],
        [EOS, 1, 40, EOS, 1, EOS, 1, 41],
        [EOS, 1, 20, 21, 22, 23, 24, 25],
        unrated[:-1]]
    assert ratings.tolist() == [
        [-1, -1, -1, -1, 1, -1, -1, -1],
        [-1, -1, -1, -1, 0, -1, -1, 1],
        [-1] * 8,
        [-1] * 8]


@pytest.mark.parametrize('share', [0.1, 0.5, 0.7, 1.0])
def test_the_share_of_rows_that_ask_for_ratings(open_data, share):
    data = open_data(MIXED, make=rated_texts, read_share=share)
    ratings = torch.cat([data.batch(step).ratings for step in range(data.steps)])
    n_asked = (ratings >= 0).any(dim=1).sum().item()
    assert abs(n_asked - share * len(ratings)) <= 1


def test_a_rating_that_one_text_in_many_has_is_found():
    tokens = np.tile(np.array([2, 4, 9], '<u2'), 300_000)     # </s> <pos> and a word
    tokens[3 * 123_457 + 1] = 5
    assert find_ratings(tokens, np.arange(0, len(tokens) + 1, 3), [3, 4, 5]) == [1, 2]


def test_texts_without_ratings_are_asked_for_none(open_data):
    ratings = open_data(MIXED, make=distinct_texts, read_share=0.5).batch(0).ratings
    assert (ratings == -1).all()


# --- files that do not fit ---

@pytest.mark.parametrize('damage, words', [
    (lambda bins, meta: bins.write_bytes(bins.read_bytes()[:-2]), 'is missing or not the one'),
    (lambda bins, meta: bins.unlink(), 'is missing or not the one'),
    (lambda bins, meta: bins.write_bytes(b'\7\7' + bins.read_bytes()[2:]), 'is damaged'),
    (lambda bins, meta: meta.update(vocab_size=100), 'the vocabulary ends at 99'),
    (lambda bins, meta: meta.pop('train_unseen'), 'prepared by an older version'),
], ids=['cut', 'missing', 'changed', 'ids', 'old'])
def test_bins_that_do_not_fit_their_meta_are_refused(tmp_path, damage, words):
    meta = write(tmp_path, MIXED, distinct_texts(MIXED))
    damage(tmp_path / 'tokenizer/train.bin', meta)
    run = SimpleNamespace(data_dir=tmp_path, mode='tokenizer', arch='decoder', seed=0,
                          read_share=0, chunk_size=64, batch_size=4, n_tokens=0, epochs=1)
    with pytest.raises(UserError, match=words) as refused:
        Data(run, meta)
    assert 'run prepare.py again' in str(refused.value)


# --- the first weights ---

def test_counting_samples_the_whole_of_a_long_stream(monkeypatch):
    monkeypatch.setattr(bigram, 'MOST_TOKENS', 1000)
    monkeypatch.setattr(bigram, 'PIECE', 100)
    data = np.arange(50_000, dtype=np.uint16)
    sample = bigram.sample_stream(data)
    assert len(sample) == 1000
    assert sample[0] == 0
    assert sample[-1] == 49_999
    assert np.array_equal(sample[:100], data[:100])
    assert np.array_equal(bigram.sample_stream(data[:900]), data[:900])


@pytest.mark.parametrize('arch', ['decoder', 'ffn'])
def test_counting_gives_the_bigram_model(arch):
    """In this text each token depends on the one before it, and on nothing else.

    The untrained model comes near the entropy of its bigrams, far below that of its unigrams.
    """
    V = 60
    rng = np.random.default_rng(0)
    follows = rng.dirichlet(np.full(V, 0.05), V)                          # (V, V), a row per token
    data = np.empty(60_000, dtype=np.uint16)
    data[0] = 0
    for t in range(1, len(data)):
        data[t] = rng.choice(V, p=follows[data[t - 1]])
    p = np.bincount(data, minlength=V) / len(data)                        # (V,)
    of_unigrams = -(p * np.log(p + 1e-9)).sum()                           # nats per token
    of_bigrams = -(p[:, None] * follows * np.log(follows + 1e-12)).sum()

    torch.manual_seed(0)
    model = build(Config(vocab_size=V, d_model=64, nhead=1, n_layers=1, chunk_size=64, arch=arch))
    init_from_bigrams(model, data)
    ids = torch.from_numpy(data[:6401].astype(np.int64))
    x = ids[:-1].view(-1, 64)                                             # (100, 64)
    y = ids[1:].view(-1, 64)
    with torch.no_grad():
        token_loss, _ = model(x, y)
    loss = token_loss.item() / 6400
    assert of_bigrams < loss < of_bigrams + 0.25 * (of_unigrams - of_bigrams)
