"""What the data of ten billion tokens cost a process: the start, one shard, memory.

    python -m bench.offsets                    154 million texts: 1.2 GB are written for a while
    python -m bench.offsets --n_texts=670000   the size of the movie reviews

The tokens are a hole of 20 GB in a file, which takes no room: only their offsets are real.
"""
import json
import tempfile
import time
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from configurator import configure
from parts.data import CHECKED_BYTES, Data, read_meta
from parts.errors import UserError, run_script

n_texts = 154_000_000  # how many texts
mean = 65              # tokens in a text, on average
batch_size = 512       # rows of 256 tokens a step
output_dir = ''        # where there is room for the files ('': where temporary files go)
configure(globals())

EOS, NO_RATING = 0, 1


def main():
    if n_texts < 10_000 or mean < 8:
        raise UserError('n_texts takes 10,000 or more, mean 8 or more')
    with tempfile.TemporaryDirectory(dir=output_dir or None) as folder:
        write_corpus(Path(folder, 'tokenizer'))
        run = SimpleNamespace(
            data_dir=folder, mode='tokenizer', arch='decoder', seed=0, read_share=0.0,
            chunk_size=256, batch_size=batch_size, n_tokens=0.0, epochs=1)
        meta = read_meta(folder, 'tokenizer')
        start = time.perf_counter()
        data = Data(run, meta)
        opened = time.perf_counter()
        rows = data.pack_shard(0, 0)
        packed = time.perf_counter()
        print(f'{n_texts:,} texts, {meta["train_tokens"]:,} tokens, {data.steps:,} steps')
        print(f'start {opened - start:.2f} s; a shard of {data.steps_per_shard} steps, '
              f'{len(rows):,} rows: {packed - opened:.2f} s')

        tracemalloc.start()  # numpy, too, reports to it what it takes; once more, for it is slow
        Data(run, meta).pack_shard(0, 0)
        _, peak = tracemalloc.get_traced_memory()
        print(f'memory for lengths, orders and a shard: {peak / 1e6:.0f} MB at most')


def write_corpus(folder):
    """A stream of n_texts texts of random lengths in which every token is 0, and its meta.json."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    meta = {'vocab_size': 2, 'eos': EOS, 'starts': {'unknown': NO_RATING}}
    for side, n in (('train', n_texts), ('val', 1_000)):
        n_written = 0
        with open(folder / f'{side}_offsets.bin', 'wb') as file:
            for first in range(0, n, 2 ** 20):
                lengths = 3 + rng.geometric(1 / (mean - 3), min(2 ** 20, n - first))
                ends = n_written + np.cumsum(lengths)
                (ends - lengths).astype('<u8').tofile(file)
                n_written = int(ends[-1])
            np.array([n_written], '<u8').tofile(file)
        with open(folder / f'{side}.bin', 'wb') as file:
            file.truncate(2 * (n_written + 1))  # zeros, which the disk does not store
        size = 2 * (n_written + 1)
        meta[f'{side}_reviews'] = n
        meta[f'{side}_tokens'] = n_written + 1
        meta[f'{side}_largest_id'] = meta[f'{side}_unseen'] = 0
        meta[f'{side}_crc32'] = zlib.crc32(bytes(size)) if size <= CHECKED_BYTES else 0
    (folder / 'meta.json').write_text(json.dumps(meta))


if __name__ == '__main__':
    run_script(main)
