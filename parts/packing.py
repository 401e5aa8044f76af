"""Reviews packed into rows: many short texts side by side, so that hardly a place stays empty.

    lengths 9 24 24 31 …, T = 64  →  rows 31+24+9, 24+…

On a first reading, it is enough to know what Packing.fill() returns.
"""
import numpy as np


class Packing:
    """Whole reviews side by side in rows of T: where each piece of text is from and where it goes.

    A piece is a review, or a part of one that is longer than a row. Piece p begins at starts[p] of
    the stream, has lengths[p] ids, and goes to column columns[p] of row rows[p]; pieces are in the
    order of their rows, and row r has the pieces from first_piece[r] to first_piece[r + 1]. Every
    review but a cut one has its beginning, as when sampling.
    """

    def __init__(self, starts, lengths, T):
        """Pack reviews in random order: among those of one length it decides which share a row."""
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
        # the text of a full row goes on, so its last target is the next id and not `</s>`
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
    and how many rows there are. It works on counts of each length, not on single reviews: lengths
    for one row are chosen greedily, the longest that fits, then again. If there are reviews enough
    for k rows with these lengths, k rows are filled at once.
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
