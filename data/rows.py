"""From the stream of train.bin to the rows that training reads.

    </s> <rating> tokens… </s> <rating> tokens… </s>  →  rows (R, T+1), whole reviews side by side  →  x (B, T), y (B, T)
"""
import json
from bisect import bisect_left, insort
from pathlib import Path

import numpy as np
import torch

from configurator import refuse


def pack(data, starts, order, T, eos):
    """Whole reviews into rows (R, T+1): each goes to the fullest open row that has room (best fit; over 99% of a row is text).

    data: ids of `</s> <rating> tokens… </s> …`; starts (N+1,): where each review's `</s>` stands, and the last one. A review is
    never cut unless it is longer than a row, so it always has its beginning, as when sampling. The rest of a row is `</s>`;
    its last column is what follows column T: `</s>`, or the next token of a review that goes on."""
    rows, room_of = [], []  # slices of data in each row; (room left, row), sorted: the open ones
    for i in order:
        a, b = int(starts[i]), int(starts[i + 1])
        long = b - a > T
        while b - a > T:                                    # a long one fills rows of its own …
            rows.append([(a, a + T + 1)])
            a += T
        at = len(room_of) if long else bisect_left(room_of, (b - a,))
        if at < len(room_of):
            room, row = room_of.pop(at)
        else:                                               # … and its tail, or what fits nowhere, opens a new one
            rows.append([])
            room, row = T, len(rows) - 1
            if len(room_of) >= 64:
                room_of.pop(0)                              # the fullest is closed
        rows[row].append((a, b))
        insort(room_of, (room - (b - a), row))
    packed = np.full((len(rows), T + 1), eos, dtype=np.uint16)
    for row, pieces in zip(packed, rows):
        at = 0
        for a, b in pieces:
            row[at:at + b - a] = data[a:b]
            at += b - a
    return packed


def row_length(lengths, T):
    """T, or the shortest half, quarter … of it that holds 999 of 1,000 reviews whole and five of them of mean length: attention costs
    less over short rows, and what lies between short reviews is masked anyway (623 ms a step at 128, 680 at 256)."""
    while T % 2 == 0 and max(5 * lengths.mean(), np.quantile(lengths, 0.999)) <= T // 2:
        T //= 2
    return T


def inputs_and_targets(rows, eos, device):
    """rows (B, T+1) → x (B, T), y (B, T); what follows the last review of a row is `</s>` after `</s>`, and no target."""
    x, y = torch.from_numpy(rows[:, :-1].astype(np.int64)), torch.from_numpy(rows[:, 1:].astype(np.int64))
    y[(x == eos) & (y == eos)] = -1
    if device.type == 'cuda':  # pinned memory lets the copy run beside the computing
        x, y = x.pin_memory(), y.pin_memory()
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def read_meta(data_dir, mode):
    """What prepare.py tells of its bins: vocabulary, start ids, counts, sources."""
    folder = Path(data_dir, mode)
    try:
        return json.loads((folder / 'meta.json').read_text('utf-8'))
    except FileNotFoundError:
        refuse(f'{folder} has no meta.json; run prepare.py first (--output_dir={data_dir} --mode={mode})')
    except (OSError, ValueError) as e:
        refuse(f'{folder}/meta.json cannot be read: {e}')


def read_bin(path, meta, side):
    """(ids, starts): the stream and where its reviews begin."""
    if not path.exists() or path.stat().st_size != 2 * meta[f'{side}_tokens']:
        refuse(f'{path} is missing or not the one meta.json tells of; run prepare.py again')
    data = np.fromfile(path, dtype=np.uint16)
    if data.max() >= meta['vocab_size']:
        refuse(f'{path} holds the id {data.max()}, but the vocabulary ends at {meta["vocab_size"] - 1}; run prepare.py again')
    return data, np.flatnonzero(data == meta['eos'])
