"""The batch of step s: a pure function of the data, the settings and s.

    </s> <rating> ids… </s> <rating> ids… </s>     the stream (N,) in train.bin
      → an epoch: all texts in a new order
      → a shard of it: the texts of a million tokens
      → rows of T tokens, whole texts side by side, shuffled
      → the rows of step s → x (B, T), y (B, T)

Nothing here grows with the corpus: the stream is read through a memory map where a step needs it,
and one shard is packed while the one before it is trained on. On a first reading, take
cut_anywhere() in bench/first.py for all of this file.
"""
import math
import os
import shlex
import zlib
from bisect import bisect
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from parts.checkpoint import read_json
from parts.errors import UserError
from parts.scoring import BITS_OF_UNSEEN

SHARD_TOKENS = 2 ** 20       # tokens in a shard, about: a million
MOST_GROUPS = 2 ** 20        # more texts than this are shuffled in groups
LONG_ROWS = 4                # a text of more rows than this is cut anew in every epoch
MOST_SPREAD = 16             # of a long text, a shard is drawn from at most so many times its size
CHECKED_BYTES = 2 ** 28      # a larger file is not read at the start to find damage


class Batch(NamedTuple):
    """The rows of one process in one step."""
    x: torch.Tensor          # (B, T) ids
    y: torch.Tensor          # (B, T) the id after each; -1 where a row is empty
    ratings: torch.Tensor    # (B, T) a rating where the model is asked for it, else -1
    n_targets: int           # how many targets the rows of all processes have together

    def rows(self, first, end, device):
        """x, y and ratings of the rows [first, end), on the device."""
        cuda = device.type == 'cuda'
        part = [tensor[first:end] for tensor in (self.x, self.y, self.ratings)]
        if cuda:  # from pinned memory, so that the copy may run beside the computing
            part = [tensor.pin_memory() for tensor in part]
        return [tensor.to(device, non_blocking=cuda) for tensor in part]


class Data:
    """The rows of every step, and those of validation.

    steps, steps_per_epoch, steps_per_shard    of the run, of an epoch, of a shard
    tokens_per_step                            room in the rows of a step; a few stay empty
    row_length, rows_per_step, rows_per_rank   T; the rows of all processes and of each
    n_texts, group_size, group_lengths         texts; how many of them are shuffled as one, and the
                                               tokens of such a group
    tokens, offsets                            the stream of train.bin, where its texts begin
    spread                                     1, or more where n_tokens is a part of a long text:
                                               a shard then looks at so many times what it needs
                                               and takes some of its pieces, from all over the text
    eos, rating_ids, unrated_id, ratings       `</s>`; start tokens; the ratings that texts have
    """

    # --- the batch of a step ---

    def batch(self, step):
        """The Batch of this process in a step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        shard, step_in_shard = divmod(step_in_epoch, self.steps_per_shard)
        first = step_in_shard * self.rows_per_step
        rows = self.rows_of_shard(epoch, shard)[first:first + self.rows_per_step]
        n_targets = sum(length for row in rows for _, length in row)

        mine = self.rank * self.rows_per_rank                 # this process has a slice of them
        end = mine + self.rows_per_rank
        x, y = fill(self.tokens, rows[mine:end], self.row_length, self.eos)
        ratings = torch.full_like(y, -1)
        if self.asks_ratings:
            # true for a share read_share of the rows' numbers, evenly spread
            number = step * self.rows_per_step + np.arange(mine, end)
            asks = np.floor((number + 1) * self.read_share) > np.floor(number * self.read_share)
            asks = torch.from_numpy(asks)
            x, ratings = hide_ratings(x, y, asks, self.eos, self.rating_ids, self.unrated_id)
        return Batch(x, y, ratings, n_targets)

    def rows_of_shard(self, epoch, shard):
        """The rows of a shard; the next one is begun in the background."""
        this = (epoch, shard)
        is_last = (shard + 1) * self.steps_per_shard >= self.steps_per_epoch
        following = (epoch + 1, 0) if is_last else (epoch, shard + 1)
        for key in (this, following):
            if key not in self.shards:
                self.shards[key] = self.thread.submit(self.pack_shard, *key)
        self.shards = {key: self.shards[key] for key in (this, following)}
        return self.shards[this].result()

    # --- the rows of a shard ---

    def pack_shard(self, epoch, shard):
        """The rows of a shard in random order, each a list of (start, length) in the stream.

        An epoch is a queue of all texts in a new order, and a shard is a part of the queue. Starts
        count from the beginning of the stream, queue_starts from that of the queue.

            the queue   | text 7 | text 2     | text 9  | text 4 | …
            a shard      from_token ├────────────┤ to_token

        Where an epoch is a tenth of a long text (spread 10), each shard looks at a stretch ten
        times as long as it needs and takes a tenth of its pieces: a tenth of a novel, from all
        over it.
        Rows are not quite full, so there are a few more than the shard's steps take. They are left
        out: others in each epoch.
        """
        # the same in all shards of an epoch:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.group_lengths))      # a new order of the texts
        begin = rng.integers(len(self.tokens))                # where in it the epoch begins
        first_cut = rng.integers(2, self.row_length + 1)      # a long text's first piece

        first_step = shard * self.steps_per_shard
        n_steps = min(self.steps_per_shard, self.steps_per_epoch - first_step)
        from_token = begin + int(first_step * self.tokens_per_step * self.spread)
        to_token = from_token + int(n_steps * self.tokens_per_step * self.spread)
        starts, lengths, queue_starts = self.texts_between(order, from_token, to_token)  # (R,)

        text, offset, length = cut(lengths, self.row_length, first_cut)           # (P,) each
        queue_start = queue_starts[text] + offset
        inside = (queue_start + length > from_token) & (queue_start < to_token)
        rng = np.random.default_rng((self.seed, epoch, shard))
        chosen = rng.permutation(np.flatnonzero(inside))
        if self.spread > 1:
            enough = np.searchsorted(length[chosen].cumsum(), n_steps * self.tokens_per_step) + 1
            chosen = chosen[:enough]
        text, offset, length = text[chosen], offset[chosen], length[chosen]
        rows = pack(starts[text] + offset, length, offset == 0, self.row_length)
        return [rows[n] for n in rng.permutation(len(rows))]

    def texts_between(self, order, from_token, to_token):
        """(starts, lengths, queue_starts) of the R texts that fill these tokens of the queue.

        order: of the texts, or of small groups of neighbours where there are more than a million.
        """
        order = np.tile(order, 2)  # an epoch begins anywhere: after the last comes the first again
        ends = np.cumsum(self.group_lengths[order])           # tokens up to the end of each group
        first = np.searchsorted(ends, from_token, side='right')
        last = np.searchsorted(ends, to_token, side='left')
        groups = order[first:last + 1]
        texts = (groups[:, None] * self.group_size + np.arange(self.group_size)).ravel()
        texts = texts[texts < self.n_texts]
        starts = self.offsets[texts].astype(np.int64)
        lengths = self.offsets[texts + 1].astype(np.int64) - starts
        first_start = ends[first] - self.group_lengths[order[first]]
        return starts, lengths, first_start + np.cumsum(lengths) - lengths

    # --- before the first step ---

    def __init__(self, run, meta, rank=0, world_size=1):
        """run: the settings of train.py. meta: of read_meta(). Raises UserError where the data are
        missing, damaged, or too few for one step, or the batch does not divide among processes."""
        if run.batch_size % world_size:
            raise UserError(f'batch_size={run.batch_size} does not divide among {world_size} '
                            'processes')
        self.rank, self.seed, self.read_share = rank, run.seed, run.read_share
        self.meta, self.eos = meta, meta['eos']
        self.floor = meta.get('floor_bits_per_char')          # None where it is not known
        self.unrated_id = meta['starts']['unknown']
        self.rating_ids = [id for name, id in meta['starts'].items() if name != 'unknown']
        folder = Path(run.data_dir, run.mode)
        self.tokens, self.offsets = open_stream(folder, meta, 'train')
        self.val_tokens, self.val_offsets = open_stream(folder, meta, 'val')
        self.n_texts = len(self.offsets) - 1
        self.ratings = find_ratings(self.tokens, self.offsets, self.rating_ids)
        # the ffn is not asked for ratings: at the end of a text it sees the last words alone
        asks = run.read_share > 0 and run.arch == 'decoder'
        self.asks_ratings = asks and len(self.ratings) > 1

        self.group_size = math.ceil(self.n_texts / MOST_GROUPS)
        self.group_lengths, lengths = self.read_lengths()
        self.chunk_size = run.chunk_size
        self.row_length = row_length(lengths, run.chunk_size)
        self.tokens_per_step = run.batch_size * run.chunk_size
        self.rows_per_step = self.tokens_per_step // self.row_length
        self.rows_per_rank = self.rows_per_step // world_size

        self.tokens_per_epoch = len(self.tokens) - 1
        if run.n_tokens:
            self.tokens_per_epoch = min(round(run.n_tokens * 1e6), self.tokens_per_epoch)
        self.steps_per_epoch = self.tokens_per_epoch // self.tokens_per_step
        self.steps_per_shard = max(1, SHARD_TOKENS // self.tokens_per_step)
        self.steps = run.epochs * self.steps_per_epoch
        if not self.steps:
            raise UserError(
                f'{self.tokens_per_epoch:,} tokens do not fill one batch of {run.batch_size} rows '
                f'of {run.chunk_size}; take a smaller --batch_size or --chunk_size, or more data')
        # texts in random order lie all over the data by themselves; the pieces of a long one do not
        is_long = lengths.mean() > LONG_ROWS * self.row_length
        self.spread = min(len(self.tokens) / self.tokens_per_epoch, MOST_SPREAD) if is_long else 1
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.shards = {}                                      # (epoch, shard) → Future of its rows

    def read_lengths(self):
        """(tokens in each group, length of its first text), reading a part at a time."""
        part = self.group_size * 2 ** 12
        group_lengths, some_lengths = [], []
        for first in range(0, self.n_texts, part):
            offsets = np.array(self.offsets[first:first + part + 1]).astype(np.int64)
            edges = np.append(offsets[:-1:self.group_size], offsets[-1])
            group_lengths.append(np.diff(edges))
            # a copy, because a view would keep the lengths of all texts in memory
            some_lengths.append(np.diff(offsets)[::self.group_size].copy())
        return np.concatenate(group_lengths), np.concatenate(some_lengths)

    # --- validation ---

    def validation_rows(self, most_tokens):
        """The same rows of chunk_size every time, of the first most_tokens or a few more."""
        n_texts = np.searchsorted(self.val_offsets[:-1], most_tokens)     # that begin before them
        offsets = np.array(self.val_offsets[:n_texts + 1]).astype(np.int64)
        text, offset, length = cut(np.diff(offsets), self.chunk_size, self.chunk_size)
        inside = offsets[text] + offset < most_tokens         # the last text may be long
        text, offset, length = text[inside], offset[inside], length[inside]
        return pack(offsets[text] + offset, length, offset == 0, self.chunk_size)

    def validation_batch(self, rows):
        """Some of validation_rows() → x (B, T), y (B, T)"""
        return fill(self.val_tokens, rows, self.chunk_size, self.eos)

    def bits_per_char(self, nats_per_token):
        """The validation loss per character, which compares models of any vocabulary. A character
        that the vocabulary does not have pays for which it was: see eval.py.
        """
        n_bits = nats_per_token / math.log(2) * (self.meta['val_tokens'] - 1)
        n_bits += BITS_OF_UNSEEN * self.meta['val_unseen']
        return n_bits / self.meta['val_chars']


# --- texts in rows ---

def cut(lengths, T, first_cut):
    """Texts of these lengths (R,) → pieces of up to T tokens: (text, offset, length), (P,) each.

    A text of more than LONG_ROWS rows has its first cut after first_cut tokens, the others after T.
    """
    first = np.where(lengths > LONG_ROWS * T, first_cut, T)
    n_pieces = 1 + np.maximum(0, lengths - first + T - 1) // T            # rounded up
    text = np.repeat(np.arange(len(lengths)), n_pieces)
    # 0, 1, 2 … within each text
    number = np.arange(len(text)) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    offset = np.where(number == 0, 0, first[text] + (number - 1) * T)
    end = np.minimum(first[text] + number * T, lengths[text])
    return text, offset, end - offset


def pack(starts, lengths, begins_text, T):
    """Pieces (P,) of up to T tokens, side by side in rows of T: [[(start, length), …], …].

    A row takes the longest piece that still fits, then again. begins_text: whether a piece begins
    with `</s>`; one that does not must begin a row, or it would go on with its neighbour's text.
    """
    rows = []
    starts_of = [[] for _ in range(T + 1)]                    # length → pieces that wait for a row
    for start, length, begins in zip(starts.tolist(), lengths.tolist(), begins_text.tolist()):
        if begins:
            starts_of[length].append(start)
        else:
            rows.append([(start, length)])
    lengths_left = [length for length in range(T + 1) if starts_of[length]]       # rising
    n = 0
    while lengths_left or n < len(rows):
        if n == len(rows):
            rows.append([])
        room = T - sum(length for _, length in rows[n])
        k = bisect(lengths_left, room)                        # so many of the lengths fit
        while k:
            length = lengths_left[k - 1]
            rows[n].append((starts_of[length].pop(), length))
            room -= length
            if not starts_of[length]:
                del lengths_left[k - 1]
            k = bisect(lengths_left, room)
        n += 1
    return rows


def fill(tokens, rows, T, eos):
    """Rows of (start, length) → x (B, T) and y (B, T), the id after each of x.

    Empty places are `</s>` in x and -1 in y, which the loss leaves out.
    """
    x = np.full((len(rows), T), eos)
    y = np.full((len(rows), T), -1)
    for n, row in enumerate(rows):
        column = 0
        for start, length in row:
            ids = tokens[start:start + length + 1]
            x[n, column:column + length] = ids[:-1]
            y[n, column:column + length] = ids[1:]
            column += length
    return torch.from_numpy(x), torch.from_numpy(y)


def row_length(lengths, T):
    """Halve T while 999 of 1,000 texts fit whole into a row of T/2, and five average ones together.

    Attention costs less over short rows, and what lies between short texts is masked anyway.
    """
    while T % 2 == 0 and max(5 * lengths.mean(), np.quantile(lengths, 0.999)) <= T // 2:
        T //= 2
    return T


# --- ratings that are asked for ---

def hide_ratings(x, y, asks, eos, rating_ids, unrated_id):
    """In the rows marked in `asks`, hide the rating at the start and ask for it at the end.

        asks   x                              y                              ratings
        no     </s> <pos> it  was good        <pos> it  was good </s>        -  -  -  -  -
        yes    </s> <s>   it  was good        <pos> it  was good </s>        -  -  -  -  1

    x and y (B, T), asks (B,) bool. rating_ids: the start tokens of the ratings 0, 1, 2.
    Returns (x with `<s>` in place of the ratings, ratings (B, T)); ratings is -1 where none is
    asked for. Texts without a rating stay as they are. Where a text goes on in another row, its
    rating is hidden, too, but not asked for: its end is not here.
    """
    position = torch.arange(x.shape[1])
    opened = torch.where(x == eos, position, -1).cummax(dim=1).values     # of each one's text
    start = x.gather(1, (opened + 1).clamp(max=x.shape[1] - 1))           # its second token
    rating = torch.full_like(x, -1)
    for n, rating_id in enumerate(rating_ids):
        rating[(start == rating_id) & asks[:, None]] = n
    is_start = (position == opened + 1) & (rating >= 0)
    is_end = y == eos
    return x.masked_fill(is_start, unrated_id), rating.masked_fill(~is_end, -1)


# --- what prepare.py wrote ---

def read_meta(data_dir, mode):
    """What prepare.py tells of its bins: vocabulary, ids, counts, sources. Raises UserError."""
    folder = Path(data_dir, mode)
    path = folder / 'meta.json'
    if mode not in ('tokenizer', 'manual'):
        raise UserError(f"mode='{mode}': it is 'tokenizer' or 'manual'")
    if os.path.isfile(data_dir):
        raise UserError(f'data_dir={data_dir} is a file, and it takes a folder that prepare.py '
                        'wrote (python prepare.py --source=FILE)')
    if not os.path.exists(path):  # (Path.exists() may raise where one may not look)
        other = 'manual' if mode == 'tokenizer' else 'tokenizer'
        if os.path.exists(Path(data_dir, other, 'meta.json')):
            flags = shlex.join([f'--data_dir={data_dir}', f'--mode={mode}'])
            raise UserError(f'{folder} has no meta.json, but {data_dir}/{other} has: say '
                            f'--mode={other}, or python prepare.py {flags}')
        advice = f'run prepare.py first (--source=… --output_dir={data_dir} --mode={mode})'
        raise UserError(f'{folder} has no meta.json; {advice}')
    return read_json(path)


def open_stream(folder, meta, side):
    """(ids, offsets) of 'train' or 'val', as memory maps. Raises UserError.

    ids (N,) uint16 is the stream. Text r is ids[offsets[r]:offsets[r + 1]], and the last of the
    R + 1 offsets (uint64) is where the final `</s>` stands.
    """
    path = Path(folder) / f'{side}.bin'
    offsets_path = Path(folder) / f'{side}_offsets.bin'
    again = 'run prepare.py again'
    if f'{side}_unseen' not in meta:
        raise UserError(f'{folder} was prepared by an older version; {again}')
    n_tokens, n_texts = meta[f'{side}_tokens'], meta[f'{side}_reviews']
    for file, size in ((path, 2 * n_tokens), (offsets_path, 8 * (n_texts + 1))):
        if not file.exists() or file.stat().st_size != size:
            raise UserError(f'{file} is missing or not the one meta.json tells of; {again}')
    largest = meta[f'{side}_largest_id']
    if largest >= meta['vocab_size']:
        raise UserError(f'{path} holds the id {largest}, but the vocabulary ends at '
                        f'{meta["vocab_size"] - 1}; {again}')
    small = path.stat().st_size <= CHECKED_BYTES
    if small and zlib.crc32(path.read_bytes()) != meta[f'{side}_crc32']:
        raise UserError(f'{path} is damaged: its checksum is not the one in meta.json; {again}')
    return map_file(path, '<u2'), map_file(offsets_path, '<u8')


def map_file(path, dtype):
    """The numbers in a file as an array that is read from the disk where it is used."""
    return np.asarray(np.memmap(path, dtype, mode='r'))


def find_ratings(tokens, offsets, rating_ids):
    """The ratings that texts have, [0, 1, 2] or fewer: a million texts show it."""
    which = np.linspace(0, len(offsets) - 2, min(len(offsets) - 1, 10 ** 6)).astype(np.int64)
    starts = np.unique(tokens[offsets[which].astype(np.int64) + 1])
    return [n for n, rating_id in enumerate(rating_ids) if rating_id in starts]
