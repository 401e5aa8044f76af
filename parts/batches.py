"""From the stream of train.bin to the batch of step s: a pure function of data, settings and s.

    </s> <rating> ids… </s> <rating> ids… </s>     the stream (N,), on the disk
      → a shard: the reviews of 8 million tokens, shuffled
      → rows (R, T+1), whole reviews side by side
      → the rows of step s → x (B, T), y (B, T)

Nothing here grows with the corpus: the stream is read through a memory map where a step needs it,
and one shard is packed while the one before it is trained on.
"""
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from parts.errors import UserError
from parts.checkpoint import read_json
from parts.packing import Packing

MOST_GROUPS = 2 ** 20        # up to so many reviews are shuffled singly, more in groups
SHARD_TOKENS = 2 ** 23       # about so many in a shard: 8 million
CHECKED_BYTES = 2 ** 28      # a file up to this size is read once at the start, to find damage


# --- what prepare.py wrote ---

def read_meta(data_dir, mode):
    """What prepare.py tells of its bins: vocabulary, ids, counts, sources. Raises UserError."""
    folder = Path(data_dir, mode)
    path = folder / 'meta.json'
    if not path.exists():
        advice = f'run prepare.py first (--output_dir={data_dir} --mode={mode})'
        raise UserError(f'{folder} has no meta.json; {advice}')
    return read_json(path)


def open_stream(folder, meta, side):
    """(ids, review_offsets) of 'train' or 'val', as memory maps. Raises UserError.

    ids (N,) uint16 is the stream. Review r is ids[review_offsets[r]:review_offsets[r + 1]], and
    the last of the R + 1 offsets (uint64) is where the final `</s>` stands.
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


# --- rows ---

def row_length(lengths, T):
    """Halve T while 999 of 1,000 reviews fit whole into a row of T/2, and so do five of mean
    length.

    Attention costs less over short rows, and what lies between short reviews is masked anyway.
    """
    while T % 2 == 0 and max(5 * lengths.mean(), np.quantile(lengths, 0.999)) <= T // 2:
        T //= 2
    return T


# --- the batch of a step ---

class Batches:
    """The rows of every step of a run; batch_size counts rows of chunk_size, over all processes.

    Every epoch has a new order:
    1. The reviews are shuffled. More than a million are shuffled in small groups of neighbours.
    2. The order is cut into shards of shard_steps steps.
    3. The reviews of a shard are shuffled, packed into rows, and the rows are shuffled.
    Each row comes once. Rows are not quite full, so some are left over at the end of a shard and
    left out: 0.2% with reviews of mixed lengths, more where many leave a gap that none fits into.
    """

    def __init__(self, tokens, review_offsets, eos, chunk_size, batch_size, tokens_per_epoch, seed):
        self.tokens, self.review_offsets, self.eos, self.seed = tokens, review_offsets, eos, seed
        self.n_reviews = len(review_offsets) - 1
        self.group_size = -(-self.n_reviews // MOST_GROUPS)
        self.group_lengths, sample = self.read_lengths()
        self.row_length = row_length(sample, chunk_size)
        self.tokens_per_step = batch_size * chunk_size
        self.rows_per_step = self.tokens_per_step // self.row_length
        self.steps_per_epoch = tokens_per_epoch // self.tokens_per_step
        self.shard_steps = max(1, SHARD_TOKENS // self.tokens_per_step)
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.shards = {}                                      # (epoch, shard) → Future of packing

    def read_lengths(self):
        """(tokens in each group, length of its first review), reading a part at a time."""
        piece = self.group_size * 2 ** 12
        lengths, sample = [], []
        for first in range(0, self.n_reviews, piece):
            offsets = np.array(self.review_offsets[first:first + piece + 1]).astype(np.int64)
            edges = np.append(offsets[:-1:self.group_size], offsets[-1])
            lengths.append(np.diff(edges))
            sample.append(np.diff(offsets)[::self.group_size])
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

    def rows_to_read(self, step, share):
        """True for the rows of a step whose ratings are hidden and asked for, (rows_per_step,)
        bool; see hide_ratings(). They are this share of all rows, evenly spread.
        """
        number = step * self.rows_per_step + np.arange(self.rows_per_step)
        return torch.from_numpy(np.floor((number + 1) * share) > np.floor(number * share))

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
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.group_lengths))
        ends = np.cumsum(self.group_lengths[order])           # tokens up to the end of each group
        n_steps = min(self.shard_steps, self.steps_per_epoch - shard * self.shard_steps)
        from_token = shard * self.shard_steps * self.tokens_per_step
        to_token = from_token + n_steps * self.tokens_per_step
        first = np.searchsorted(ends, from_token, side='right')
        last = np.searchsorted(ends, to_token, side='left')
        groups = order[first:last + 1]
        reviews = (groups[:, None] * self.group_size + np.arange(self.group_size)).ravel()
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


def inputs_and_targets(rows, eos):
    """rows (B, T+1) → x (B, T), y (B, T).

    `</s>` after `</s>` happens only where a row is empty: -1, a target that the loss leaves out.
    """
    x = torch.from_numpy(rows[:, :-1].astype(np.int64))
    y = torch.from_numpy(rows[:, 1:].astype(np.int64))
    y[(x == eos) & (y == eos)] = -1
    return x, y


def hide_ratings(x, y, read, eos, start_ids):
    """In the rows marked in `read`, ask for the rating at the end, do not tell it at the start.

        x   </s> <pos> it  was good        y   <pos> it  was good </s>       ratings   -  -  -  -  -
        x   </s> <s>   it  was good        y   <pos> it  was good </s>       ratings   -  -  -  -  1

    x and y (B, T), read (B,) bool. start_ids: those of the ratings 0, 1 …, then `<s>`.
    Returns (x with `<s>` in place of the ratings, ratings (B, T)); ratings is -1 where none is
    asked for. Reviews without a rating stay as they are. One that goes on in another row is not
    asked: its end is not here.
    """
    position = torch.arange(x.shape[1])
    opened = torch.where(x == eos, position, -1).cummax(dim=1).values  # of each one's review
    start = x.gather(1, (opened + 1).clamp(max=x.shape[1] - 1))        # its second token
    *rating_ids, no_rating = start_ids
    rating = torch.full_like(x, -1)
    for n, rating_id in enumerate(rating_ids):
        rating[(start == rating_id) & read[:, None]] = n
    is_start = (position == opened + 1) & (rating >= 0)
    is_end = (y == eos) & (x != eos)
    return x.masked_fill(is_start, no_rating), rating.masked_fill(~is_end, -1)


def slice_rows(tensors, first, end):
    """The rows [first, end) of each tensor of a list. None stays None."""
    return [None if tensor is None else tensor[first:end] for tensor in tensors]


def to_device(tensors, device):
    """A list of CPU tensors → the same on the device. None stays None."""
    moved = []
    for tensor in tensors:
        if tensor is not None and device.type == 'cuda':
            tensor = tensor.pin_memory()  # the copy runs beside the computing
        moved.append(None if tensor is None else tensor.to(device, non_blocking=True))
    return moved
