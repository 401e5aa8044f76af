"""From the stream of train.bin to the batch of step s: a pure function of (data, seed, s).

    </s> <rating> ids… </s> <rating> ids… </s>     the stream (N,), on the disk
      → a shard: the reviews of some hundred steps, shuffled
      → rows (R, T+1), whole reviews side by side
      → the rows of step s → x (B, T), y (B, T)

Nothing here grows with the corpus: the stream is read through a memory map, only where a step needs
it, and a shard at a time is packed while the one before it is trained on.
"""
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from parts.errors import UserError

MOST_BLOCKS = 2 ** 20        # reviews are shuffled singly up to so many, beyond in blocks
SHARD_TOKENS = 2 ** 23       # about so many in a shard: 8 million
CHECKED_BYTES = 2 ** 28      # a file up to this size is read once at the start, to find damage


# --- what prepare.py wrote ---

def read_meta(data_dir, mode):
    """What prepare.py tells of its bins: vocabulary, ids, counts, sources. Raises UserError."""
    folder = Path(data_dir, mode)
    try:
        return json.loads((folder / 'meta.json').read_text('utf-8'))
    except FileNotFoundError:
        advice = f'run prepare.py first (--output_dir={data_dir} --mode={mode})'
        raise UserError(f'{folder} has no meta.json; {advice}') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{folder}/meta.json cannot be read: {error}') from None


def open_stream(folder, meta, side):
    """(ids, review_offsets) of 'train' or 'val', as memory maps. Raises UserError.

    ids (N,) uint16 is the stream. review_offsets (R+1,) uint64 tells where the `</s>` of each
    review stands, and the last one.
    """
    path = Path(folder) / f'{side}.bin'
    offsets_path = Path(folder) / f'{side}_offsets.bin'
    again = 'run prepare.py again'
    if f'{side}_crc32' not in meta:
        raise UserError(f'{folder} was prepared by an older version; {again}')
    n_tokens, n_reviews = meta[f'{side}_tokens'], meta[f'{side}_reviews']
    for file, size in ((path, 2 * n_tokens), (offsets_path, 8 * (n_reviews + 1))):
        if not file.exists() or file.stat().st_size != size:
            raise UserError(f'{file} is missing or not the one meta.json tells of; {again}')
    largest = meta[f'{side}_largest_id']
    if largest >= meta['vocab_size']:
        raise UserError(f'{path} holds the id {largest}, but the vocabulary ends at '
                        f'{meta["vocab_size"] - 1}; {again}')
    small = path.stat().st_size <= CHECKED_BYTES
    if small and zlib.crc32(path.read_bytes()) != meta[f'{side}_crc32']:
        raise UserError(f'{path} is damaged: its checksum is not the one in meta.json; {again}')
    return np.memmap(path, '<u2', mode='r'), np.memmap(offsets_path, '<u8', mode='r')


# --- packing ---

def row_length(lengths, T):
    """T, or the shortest half, quarter … of it that holds 999 of 1,000 reviews whole and five of
    mean length.

    Attention costs less over short rows, and what lies between short reviews is masked anyway.
    """
    while T % 2 == 0 and max(5 * lengths.mean(), np.quantile(lengths, 0.999)) <= T // 2:
        T //= 2
    return T


class Packing:
    """Whole reviews side by side in rows of T: where each piece of text is from and where it goes.

    A piece is a review, or a part of one that is longer than a row. Piece p begins at starts[p] of
    the stream, has lengths[p] ids, and goes to column columns[p] of row rows[p]; pieces are in the
    order of their rows, and row r has the pieces from first_piece[r] to first_piece[r + 1]. Every
    review but a cut one has its beginning, as when sampling.
    """

    def __init__(self, starts, lengths, T):
        """Pack reviews; of those of one length, the first come into the first rows."""
        self.T = T
        n_full = np.where(lengths > T, (lengths - 1) // T, 0)  # a long review fills whole rows …
        full_starts = np.repeat(starts, n_full) + T * ranks_within(n_full)
        starts, lengths = starts + T * n_full, lengths - T * n_full
        is_tail = n_full > 0                                   # … and its tail begins another one
        longest_first = np.argsort(-lengths, kind='stable')
        tails = longest_first[is_tail[longest_first]]
        whole = longest_first[~is_tail[longest_first]]
        rows, columns, tail_rows, n_rows = best_fit(lengths[whole], lengths[tails], T)

        self.n_rows = n_rows + len(full_starts)
        full_rows = np.arange(n_rows, self.n_rows)
        # a full row has one id more: what follows its last column is the next id of the text
        full_lengths = np.full(len(full_starts), T + 1)
        rows = np.concatenate((tail_rows, rows, full_rows))
        order = np.argsort(rows, kind='stable')
        self.rows = rows[order]
        self.starts = np.concatenate((starts[tails], starts[whole], full_starts))[order]
        self.lengths = np.concatenate((lengths[tails], lengths[whole], full_lengths))[order]
        zeros = np.zeros_like
        self.columns = np.concatenate((zeros(tail_rows), columns, zeros(full_rows)))[order]
        self.first_piece = np.searchsorted(self.rows, np.arange(self.n_rows + 1))
        self.n_targets = np.bincount(self.rows, np.minimum(self.lengths, T), self.n_rows)

    def fill(self, tokens, which, eos):
        """The rows numbered `which` (B,), from the stream: (B, T+1) uint16; what is left is `</s>`.

        The last column is what follows column T: `</s>`, or the next id of a text that goes on.
        """
        first, end = self.first_piece[which], self.first_piece[which + 1]
        n_pieces = end - first
        pieces = np.repeat(first, n_pieces) + ranks_within(n_pieces)
        lengths = self.lengths[pieces]
        row = np.repeat(np.arange(len(which)), n_pieces)
        target = row * (self.T + 1) + self.columns[pieces]    # where it begins in the flat batch
        within = ranks_within(lengths)                        # 0, 1, 2 … in each piece
        batch = np.full(len(which) * (self.T + 1), eos, dtype=np.uint16)
        source = self.starts[pieces]
        batch[np.repeat(target, lengths) + within] = tokens[np.repeat(source, lengths) + within]
        return batch.reshape(len(which), self.T + 1)


def ranks_within(counts):
    """[3, 2] → [0, 1, 2, 0, 1]"""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def best_fit(lengths, tails, T):
    """Where whole reviews and tails go, by their lengths, both longest first.

    Returns rows (P,) and columns (P,) of the reviews, rows of the tails, which stand at column 0,
    and how many rows there are. Reviews of one length are all alike. So one row is filled, with
    the longest review that fits, again the longest that fits, and so on; and as many rows as there
    are such reviews are filled likewise.
    """
    left = np.bincount(lengths, minlength=T + 1)              # reviews of each length to be placed
    next_review = np.cumsum(left[::-1])[::-1] - left          # the first one of each length
    rows, columns = np.empty_like(lengths), np.empty_like(lengths)
    n_rows = 0

    def fill_rows(opening, most):
        """Fill up to `most` rows alike, from column `opening` on; returns how many."""
        nonlocal n_rows
        filling, times = fill_one_row(left, T - opening, most)
        column = opening
        for length, copies in filling:
            for _ in range(copies):
                reviews = slice(next_review[length], next_review[length] + times)
                rows[reviews] = np.arange(n_rows, n_rows + times)
                columns[reviews] = column
                next_review[length] += times
                column += length
            left[length] -= copies * times
        n_rows += times
        return times

    n_tails = np.bincount(tails, minlength=T + 1)
    for length in range(T, 0, -1):
        while n_tails[length]:
            n_tails[length] -= fill_rows(length, n_tails[length])
    tail_rows = np.arange(n_rows)
    while left.any():
        fill_rows(0, len(lengths))
    return rows, columns, tail_rows, n_rows


def fill_one_row(left, room, most):
    """([(length, copies), …], times): a row of the longest that fit, and how many such rows."""
    filling, times = [], most
    there = np.flatnonzero(left)
    while True:
        there = there[there <= room]
        if len(there) == 0:
            return filling, times
        length = there[-1]
        copies = min(room // length, left[length])
        times = min(times, left[length] // copies)
        filling.append((length, copies))
        room -= copies * length
        there = there[:-1]


# --- the batch of a step ---

class Batches:
    """The rows of every step of a run; batch_size counts rows of chunk_size, over all processes.

    Every epoch visits the reviews in a new order, and each row once. The order is a shuffle of
    single reviews, or of blocks of neighbours where there are more than a million. It is cut into
    shards of shard_steps steps, and each shard is shuffled again, review by review.
    """

    def __init__(self, tokens, review_offsets, eos, chunk_size, batch_size, tokens_per_epoch, seed):
        self.tokens, self.review_offsets, self.eos, self.seed = tokens, review_offsets, eos, seed
        self.n_reviews = len(review_offsets) - 1
        self.block_size = -(-self.n_reviews // MOST_BLOCKS)
        self.block_lengths, sample = self.read_lengths()
        self.row_length = row_length(sample, chunk_size)
        self.tokens_per_step = batch_size * chunk_size
        self.rows_per_step = self.tokens_per_step // self.row_length
        self.steps_per_epoch = tokens_per_epoch // self.tokens_per_step
        self.shard_steps = max(1, SHARD_TOKENS // self.tokens_per_step)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.shards = {}                                      # (epoch, shard) → a promise

    def read_lengths(self):
        """(tokens in each block, length of its first review), reading a part at a time."""
        piece = self.block_size * 2 ** 12
        lengths, sample = [], []
        for first in range(0, self.n_reviews, piece):
            offsets = np.array(self.review_offsets[first:first + piece + 1]).astype(np.int64)
            edges = np.append(offsets[:-1:self.block_size], offsets[-1])
            lengths.append(np.diff(edges))
            sample.append(np.diff(offsets)[::self.block_size])
        return np.concatenate(lengths), np.concatenate(sample)

    def rows(self, step, first=0, end=None):
        """(rows [first, end) of a step as (B, T+1), how many targets all rows of the step have)."""
        epoch, n = divmod(step, self.steps_per_epoch)
        shard, n = divmod(n, self.shard_steps)
        packing, order = self.shard(epoch, shard)
        which = order[n * self.rows_per_step:(n + 1) * self.rows_per_step]
        n_targets = int(packing.n_targets[which].sum())
        return packing.fill(self.tokens, which[first:end], self.eos), n_targets

    def dropout_seeds(self, step):
        """A random number for each row of a step, (rows_per_step,) int32, whoever has the row."""
        rng = np.random.default_rng((self.seed, step, 1))
        return torch.from_numpy(rng.integers(2 ** 31, size=self.rows_per_step, dtype=np.int32))

    def shard(self, epoch, shard):
        """A shard's packing and the order of its rows; the next one is begun in the background."""
        this = (epoch, shard)
        ended = (shard + 1) * self.shard_steps >= self.steps_per_epoch
        following = (epoch + 1, 0) if ended else (epoch, shard + 1)
        for key in (this, following):
            if key not in self.shards:
                self.shards[key] = self.thread.submit(self.pack_shard, *key)
        self.shards = {key: self.shards[key] for key in (this, following)}
        return self.shards[this].result()

    def pack_shard(self, epoch, shard):
        """(packing, order of its rows) of the reviews that the epoch has at this shard's place."""
        rng = np.random.default_rng((self.seed, epoch, shard))
        starts, lengths = self.reviews_of(epoch, shard)
        shuffled = rng.permutation(len(starts))
        packing = Packing(starts[shuffled], lengths[shuffled], self.row_length)
        return packing, rng.permutation(packing.n_rows)

    def reviews_of(self, epoch, shard):
        """(starts, lengths) of the reviews whose tokens fill this shard's steps."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.block_lengths))
        ends = np.cumsum(self.block_lengths[order])           # tokens up to the end of each block
        n_steps = min(self.shard_steps, self.steps_per_epoch - shard * self.shard_steps)
        from_token = shard * self.shard_steps * self.tokens_per_step
        to_token = from_token + n_steps * self.tokens_per_step
        first = np.searchsorted(ends, from_token, side='right')
        last = np.searchsorted(ends, to_token, side='left')
        blocks = order[first:last + 1]
        reviews = (blocks[:, None] * self.block_size + np.arange(self.block_size)).ravel()
        reviews = reviews[reviews < self.n_reviews]
        starts = self.review_offsets[reviews].astype(np.int64)
        lengths = self.review_offsets[reviews + 1].astype(np.int64) - starts
        return starts, lengths


# --- rows as the model reads them ---

def validation_rows(tokens, review_offsets, T, eos, most_tokens):
    """The same rows (R, T+1) every time: the first reviews up to most_tokens, one at least."""
    n_reviews = np.searchsorted(review_offsets, min(most_tokens, len(tokens)), side='right') - 1
    n_reviews = max(1, min(n_reviews, len(review_offsets) - 1))
    offsets = np.array(review_offsets[:n_reviews + 1]).astype(np.int64)
    packing = Packing(offsets[:-1], np.diff(offsets), T)
    return packing.fill(tokens, np.arange(packing.n_rows), eos)


def inputs_and_targets(rows, eos, device):
    """rows (B, T+1) → x (B, T), y (B, T). `</s>` after `</s>` is the rest of a row: no target."""
    x = torch.from_numpy(rows[:, :-1].astype(np.int64))
    y = torch.from_numpy(rows[:, 1:].astype(np.int64))
    y[(x == eos) & (y == eos)] = -1
    if device.type == 'cuda':  # pinned memory lets the copy run beside the computing
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)
