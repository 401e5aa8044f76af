"""train.py as it would be without some of its ideas: nanoGPT's way in their place.

    python -m bench.without masks,packing config/demo.py --out_dir=out/plain

The names are the keys of WAYS. What a flag of train.py turns off (Muon, counted weights, compiling)
is no key here.
"""
import math
import os
import runpy
import sys
from pathlib import Path

from parts.errors import UserError, how_to_wait, run_script

os.environ.update(how_to_wait())  # before torch reads it

import numpy as np

import model
import parts.bigram
import parts.data
import parts.optim
from bench.first import gpt2_weights


def masks():
    """A token looks back over everything in its row, other texts too."""
    def mask(self, idx, position):
        distance = position[:, None] - position[None, :]      # (T, T)
        return (distance >= 0) & (distance < self.config.chunk_size)

    model.Decoder.mask = mask


def packing():
    """Rows are cut anywhere out of the stream: all texts are one long one."""
    open_stream = parts.data.open_stream

    def open_as_one(folder, meta, side):
        tokens, offsets = open_stream(folder, meta, side)
        return tokens, offsets[[0, -1]] if side == 'train' else offsets

    parts.data.open_stream = open_as_one


def short_rows():
    """Rows have chunk_size tokens, however short the texts are."""
    parts.data.row_length = lambda lengths, T: T


def schedule():
    """The rate falls along a cosine to a tenth of its peak, after a warmup of a tenth at most."""
    def get_lr(step, steps, peak):
        warmup = min(100, max(1, steps // 10))
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    parts.optim.get_lr = get_lr


def small_weights():
    """All weights begin at random, of size 0.02: blocks that do something, a small embedding."""
    model.Model.init_weights = gpt2_weights


def fewer_counts():
    """Only as many tokens are counted for the first weights as are trained on, --n_tokens=."""
    million = [float(word[11:]) for word in sys.argv if word.startswith('--n_tokens=')]
    if not million:
        raise UserError('fewer_counts needs --n_tokens=')
    million = million[-1]
    parts.bigram.sample_stream = lambda tokens: np.asarray(tokens[:round(million * 1e6)])


WAYS = {way.__name__: way
        for way in (masks, packing, short_rows, schedule, small_weights, fewer_counts)}


def main():
    names = sys.argv.pop(1) if len(sys.argv) > 1 else '--help'
    for name in filter(None, names.split(',')):
        if name not in WAYS:
            raise UserError(f'{name!r} is none of {", ".join(WAYS)}; several stand with commas, '
                            "before train.py's flags")
        WAYS[name]()
    runpy.run_path(str(Path(__file__).resolve().parent.parent / 'train.py'), run_name='__main__')


if __name__ == '__main__':
    run_script(main)
