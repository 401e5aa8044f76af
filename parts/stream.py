"""From the lines of train.txt to the ids of train.bin.

    1<TAB>맛있었어요!             0<TAB>너무 짜요
    </s> <pos> ▁맛있었어요 !      </s> <neg> ▁너무 ▁짜 요      </s>
    2    4     560      3577    2    3     276  2009 3517   2

`</s>` closes a review and opens the next. So after the last word the model learns to say that the
review is over, and after `</s>`, with nothing else in sight, to begin another: first its rating.
"""
import zlib
from functools import partial
from itertools import chain

import numpy as np

from parts.corpus import parse_lines, read_lines
from parts.errors import UserError
from parts.parallel import map_ordered


class StreamWriter:
    """Writes two files that grow together; also counts and keeps a checksum, for meta.json.

    train.bin           (N,) uint16: `</s> <rating> ids… </s> <rating> ids… </s>`
    train_offsets.bin   (R+1,) uint64: where the `</s>` of each of R reviews is, and the last one
    """

    def __init__(self, bin_file, offsets_file):
        self.bin_file = bin_file
        self.offsets_file = offsets_file
        self.n_reviews = 0
        self.n_ids = 0
        self.largest_id = 0
        self.crc32 = 0  # of train.bin

    def append(self, ids, lengths):
        """ids (N,): one review after the other. lengths (R,): of each of them."""
        self.n_reviews += len(lengths)
        self.write(ids, lengths)

    def close(self, eos):
        """Write the `</s>` after the last review."""
        self.write(np.array([eos]), np.array([1]))

    def write(self, ids, lengths):
        content = ids.astype('<u2').tobytes()
        offsets = self.n_ids + np.cumsum(lengths) - lengths
        self.bin_file.write(content)
        self.offsets_file.write(offsets.astype('<u8').tobytes())
        self.n_ids += len(ids)
        self.largest_id = max(self.largest_id, int(ids.max()))
        self.crc32 = zlib.crc32(content, self.crc32)


def encode_file(vocab, path, stream, batch_size, chunk_size):
    """Encode train.txt or validation.txt into the stream, on all cores. Raises UserError.

    Returns (n_chars, n_fitting): the characters of all reviews, and how many reviews fit whole into
    a row of chunk_size.
    """
    from tqdm import tqdm
    n_chars = 0
    n_fitting = 0
    batches = read_lines(path, batch_size)
    with tqdm(desc=f'encode {path.name}', unit=' reviews', mininterval=0.5, disable=None) as bar:
        for ids, lengths, batch_chars in map_ordered(partial(encode_lines, vocab, path), batches):
            stream.append(ids, lengths)
            n_chars += batch_chars
            n_fitting += int((lengths <= chunk_size).sum())
            bar.update(len(lengths))
    if stream.n_reviews == 0:
        raise UserError(f'{path} is empty')
    stream.close(vocab.eos)
    return n_chars, n_fitting


def encode_lines(vocab, path, batch):
    """R lines, a batch of read_lines → (ids of all (N,), lengths (R,), how many characters).

    In front of the ids of each text come `</s>` and the id of its rating. Raises UserError.
    """
    ratings = []
    texts = []
    for rating, text in parse_lines(path, batch):
        ratings.append(rating)
        texts.append(text)
    encoded = vocab.encode(texts)
    parts = []
    for rating, ids in zip(ratings, encoded):
        parts.append((vocab.eos, vocab.start_ids[rating]))
        parts.append(ids)
    lengths = np.array([2 + len(ids) for ids in encoded])
    ids = np.fromiter(chain.from_iterable(parts), np.uint16, count=lengths.sum())
    return ids, lengths, sum(map(len, texts))
