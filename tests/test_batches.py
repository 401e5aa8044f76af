"""From the stream to the batch of a step, and the first weights by counting."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from model import Config, build
from parts import batches as batches_part
from parts import bigram
from parts.batches import (
    Batches,
    hide_ratings,
    inputs_and_targets,
    row_length,
    validation_rows,
)
from parts.bigram import init_from_bigrams
from parts.packing import Packing

EOS = 0


def stream(lengths, seed=0):
    """(data, review_offsets) of random reviews with so many tokens each, `</s>` included."""
    rng = np.random.default_rng(seed)
    reviews = [np.r_[EOS, rng.integers(1, 900, n - 1)] for n in lengths]
    data = np.concatenate([*reviews, [EOS]]).astype(np.uint16)
    return data, np.flatnonzero(data == EOS)


def sorted_pairs(x, y):
    return sorted(zip(x.tolist(), y.tolist()))


def reviews_in(rows):
    """The reviews that the rows hold, as tuples of ids, each with the `</s>` that opens it."""
    reviews = []
    for row in rows:
        for piece in np.split(row, np.flatnonzero(row == EOS)):
            if len(piece) > 1:
                reviews.append(tuple(piece))
    return reviews


@pytest.mark.parametrize('T, least_full', [(16, 0.85), (64, 0.99)])
def test_rows_hold_every_review_once_and_whole(T, least_full):
    lengths = np.random.default_rng(1).integers(2, 40, 3000)
    data, offsets = stream(lengths)
    packing = Packing(offsets[:-1], np.diff(offsets), T)
    rows = packing.fill(data, np.arange(packing.n_rows), EOS)
    x, y = inputs_and_targets(rows, EOS)
    x, y = x.flatten(), y.flatten()
    real = y >= 0
    # Every token is predicted once, from the one that truly came before.
    assert sorted_pairs(x[real], y[real]) == sorted_pairs(data[:-1], data[1:])
    whole_reviews = set(reviews_in(rows))
    for start, end in zip(offsets, offsets[1:]):
        if end - start <= T:
            assert tuple(data[start:end]) in whole_reviews
    assert real.float().mean() > least_full
    targets_per_row = real.view(len(rows), T).sum(dim=1)
    assert packing.n_targets.tolist() == targets_per_row.tolist()
    assert targets_per_row.sum() == len(data) - 1


@pytest.mark.parametrize('lengths, expected', [
    ([20] * 1000, 128),
    ([20] * 995 + [100] * 5, 128),
    ([20] * 995 + [200] * 5, 256),
    ([100] * 50, 256),
])
def test_short_reviews_are_read_in_short_rows_and_long_ones_in_long(lengths, expected):
    assert row_length(np.array(lengths), 256) == expected


def test_an_epoch_visits_every_review_once_in_a_new_order_each_time():
    lengths = np.random.default_rng(1).integers(4, 14, 2000)
    data, offsets = stream(lengths)

    def make_batches(seed):
        return Batches(data, offsets, EOS, 64, 4, len(data) - 1, seed)

    def epoch(batches, n):
        first_step = n * batches.steps_per_epoch
        steps = range(first_step, first_step + batches.steps_per_epoch)
        return np.concatenate([batches.rows(step)[0] for step in steps])

    batches = make_batches(seed=3)
    first = epoch(batches, 0)
    second = epoch(batches, 1)
    assert not np.array_equal(first, second)
    again = make_batches(seed=3)
    assert np.array_equal(epoch(again, 1), second)  # the second epoch is asked for first
    assert np.array_equal(epoch(again, 0), first)
    other = make_batches(seed=4)
    assert not np.array_equal(epoch(other, 0), first)
    for rows in (first, second):
        reviews = reviews_in(rows)
        assert len(reviews) == len(set(reviews))
        assert len(reviews) > 0.95 * len(lengths)  # what does not fill a last batch is left out


def test_shards_and_groups_visit_every_review_once_too(monkeypatch):
    """What a corpus of billions of tokens gets, on a small one: groups of 5 reviews, 11 shards."""
    monkeypatch.setattr(batches_part, 'MOST_GROUPS', 1000)
    monkeypatch.setattr(batches_part, 'SHARD_TOKENS', 64 * 4 * 17)
    lengths = np.random.default_rng(1).integers(6, 14, 5000)
    data, offsets = stream(lengths)
    batches = Batches(data, offsets, EOS, 64, 4, len(data) - 1, seed=3)
    assert batches.group_size == 5
    assert batches.steps_per_epoch > 10 * batches.shard_steps
    steps = range(batches.steps_per_epoch, 2 * batches.steps_per_epoch)  # of the second epoch
    rows = np.concatenate([batches.rows(step)[0] for step in steps])
    reviews = reviews_in(rows)
    known = {tuple(data[start:end]) for start, end in zip(offsets, offsets[1:])}
    assert set(reviews) <= known
    assert len(set(reviews)) > 0.94 * len(lengths)  # shards so small leave out more than others
    assert len(reviews) - len(set(reviews)) < 100  # a group at the edge of two shards is in both

    step = steps[-3]
    whole, n_targets = batches.rows(step)
    _, y = inputs_and_targets(whole, EOS)
    assert n_targets == (y >= 0).sum()
    for first in range(0, len(whole), 2):
        part, n_targets_of_step = batches.rows(step, first, first + 2)
        assert np.array_equal(part, whole[first:first + 2])
        assert n_targets_of_step == n_targets


def test_reviews_longer_than_a_row_are_cut_and_nothing_of_them_is_lost():
    data, offsets = stream([5, 64, 65, 66, 128, 129, 400, 7])
    rows = validation_rows(data, offsets, 64, EOS, most_tokens=len(data))
    x, y = inputs_and_targets(rows, EOS)
    x, y = x.flatten(), y.flatten()
    assert sorted_pairs(x[y >= 0], y[y >= 0]) == sorted_pairs(data[:-1], data[1:])
    few_rows = validation_rows(data, offsets, 64, EOS, most_tokens=70)
    _, y = inputs_and_targets(few_rows, EOS)
    assert (y >= 0).sum() == 5 + 64


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


needs_proc = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc')


@needs_proc
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """50 million tokens cost no more than 60 MB over what 1 million cost."""
    lengths = np.random.default_rng(1).integers(6, 60, 30_000)
    data, offsets = stream(lengths)
    grown = []
    for times in (1, 50):
        folder = tmp_path / str(times)
        folder.mkdir()
        with open(folder / 'train.bin', 'wb') as file:
            for _ in range(times):
                file.write(data[:-1].tobytes())
            file.write(data[-1:].tobytes())
        n_tokens = len(data) - 1
        repeated = [offsets[:-1] + n * n_tokens for n in range(times)]
        all_offsets = np.concatenate([*repeated, [times * n_tokens]]).astype('<u8')
        (folder / 'train_offsets.bin').write_bytes(all_offsets.tobytes())
        words = [sys.executable, '-c', MEASURE_MEMORY, str(folder)]
        grown.append(int(subprocess.run(words, check=True, capture_output=True, cwd=ROOT).stdout))
    assert grown[1] - grown[0] < 60_000, grown  # kB


MEASURE_MEMORY = '''
import sys
import numpy as np
from parts.batches import Batches

def used():
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('RssAnon'))

before = used()
tokens = np.memmap(sys.argv[1] + '/train.bin', '<u2', mode='r')
offsets = np.memmap(sys.argv[1] + '/train_offsets.bin', '<u8', mode='r')
batches = Batches(tokens, offsets, 0, 64, 16, len(tokens) - 1, seed=0)
for step in range(0, batches.steps_per_epoch, 97):
    batches.rows(step)
print(used() - before)
'''


def test_each_row_of_each_step_has_a_dropout_seed_of_its_own():
    data, offsets = stream([20] * 500)
    batches = Batches(data, offsets, EOS, 64, 8, len(data) - 1, seed=2 ** 63 - 1)
    seeds = torch.cat([batches.dropout_seeds(step) for step in range(40)])
    assert len(seeds.unique()) == 40 * batches.rows_per_step
    assert torch.equal(batches.dropout_seeds(7), batches.dropout_seeds(7))


def test_a_hidden_rating_is_asked_for_at_the_end_of_its_review():
    start_ids = [3, 4, 5, 1]                                   # ids of ratings 0, 1, 2 and of <s>
    text_that_goes_on = [EOS, 5, 20, 21, 22, 23, 24, 25, 26]  # its </s> comes a row later
    rest_of_a_text = [30, 31, EOS, 4, 32, EOS, EOS, EOS, EOS]  # its rating is a row before
    unrated = [EOS, 1, 40, EOS, 3, EOS, 4, 41, EOS]           # and a review without a word
    rows = np.array([rest_of_a_text, unrated, text_that_goes_on, unrated], dtype=np.uint16)
    x, y = inputs_and_targets(rows, EOS)
    told = x.clone()
    read = torch.tensor([True, True, True, False])
    hidden, ratings = hide_ratings(x, y, read, EOS, start_ids)
    assert torch.equal(x, told)
    assert hidden.tolist() == [
        [30, 31, EOS, 1, 32, EOS, EOS, EOS],
        [EOS, 1, 40, EOS, 1, EOS, 1, 41],
        [EOS, 1, 20, 21, 22, 23, 24, 25],
        told[3].tolist()]
    assert ratings.tolist() == [
        [-1, -1, -1, -1, 1, -1, -1, -1],
        [-1, -1, -1, -1, 0, -1, -1, 1],
        [-1] * 8,
        [-1] * 8]


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.7, 1.0])
def test_the_share_of_rows_that_are_read(share):
    data, offsets = stream(np.random.default_rng(1).integers(5, 30, 2000))
    batches = Batches(data, offsets, EOS, 64, 3, len(data) - 1, seed=0)
    read = torch.cat([batches.rows_to_read(step, share) for step in range(200)])
    assert abs(read.sum().item() - share * len(read)) <= 1
    assert torch.equal(batches.rows_to_read(7, share), batches.rows_to_read(7, share))


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
    config = Config(vocab_size=V, d_model=64, nhead=1, n_layers=1, chunk_size=64, arch=arch,
                    eos=0, bos=1)
    model = build(config)
    init_from_bigrams(model, data)
    ids = torch.from_numpy(data[:6401].astype(np.int64))
    x = ids[:-1].view(-1, 64)                                             # (100, 64)
    y = ids[1:].view(-1, 64)
    with torch.no_grad():
        loss = model(x, y).item() / 6400
    assert of_bigrams < loss < of_bigrams + 0.25 * (of_unigrams - of_bigrams)
