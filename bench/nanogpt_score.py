"""nanoGPT's score, in the unit and on the tokens of ours: bits per character.

    python -m bench.nanogpt_score --nanogpt=../nanoGPT --data_dir=data/movie

    out/ckpt.pt of nanoGPT → val.bin in windows → -log P of every token → bits per character

Each token, but for those of the first half row, is predicted from at least half a row of context.
In separate windows nanoGPT would lose a little, because the first tokens of each would have nothing
before them. A token counts for as many characters as the mean of all validation tokens has (eval.py
counts the characters of these very tokens; docs/SPEEDRUN.md says what that makes of a score, and
how nanoGPT is trained).
"""
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configurator import configure
from parts.data import map_file, read_meta
from parts.errors import UserError, run_script, user_path

nanogpt = ''           # a checkout of nanoGPT, with the out/ckpt.pt that its train.py wrote
data_dir = 'data/kr3'  # what prepare.py wrote, and nanoGPT was trained on
n_tokens = 0.131072    # million validation tokens
configure(globals())


def main():
    folder = user_path(nanogpt)
    if not (folder / 'out/ckpt.pt').exists():
        raise UserError(f'nanogpt={nanogpt!r} is no folder with an out/ckpt.pt; '
                        'train nanoGPT first')
    print(json.dumps(score(folder, data_dir, n_tokens)))


def score(folder, data_dir, n_tokens):
    """What nanoGPT's out/ckpt.pt in this folder gives on the first n_tokens (million) validation
    tokens: {'tokens': …, 'loss': nats per token, 'bits_per_char': …}.
    """
    return score_model(load_nanogpt(folder / 'model.py', folder / 'out/ckpt.pt'),
                       data_dir, n_tokens)


def score_model(model, data_dir, n_tokens):
    """score() of a model that is there: model(x, y) gives (logits (1, T, V), …), as nanoGPT's."""
    meta = read_meta(data_dir, 'tokenizer')
    n = min(round(n_tokens * 1e6), meta['val_tokens'] - 1)
    ids = map_file(Path(data_dir, 'tokenizer', 'val.bin'), '<u2')[:n + 1].astype(np.int64)
    nats = surprise(model, torch.from_numpy(ids)) / n
    bits = nats / math.log(2) * (meta['val_tokens'] - 1) / meta['val_chars']
    return {'tokens': n, 'loss': nats, 'bits_per_char': bits}


def copy_nanogpt(nanogpt, needs, folder):
    """Copy a checkout of nanoGPT, to train in it. needs: a file that it has if it is one."""
    source = user_path(nanogpt)
    if not (source / needs).exists():
        raise UserError(f'nanogpt={nanogpt!r} is no checkout of nanoGPT')
    left = shutil.ignore_patterns('.git', 'out*', 'input.txt', 'kr')         # kr: docs/SPEEDRUN.md
    shutil.copytree(source, folder, ignore=left)


def run_python(words, folder):
    """What a script prints that is run in this folder. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, *words], cwd=folder, text=True, capture_output=True)
    if done.returncode:
        raise UserError(f'{" ".join(words)}: {done.stderr[-1000:]}')
    return done.stdout


def run_train(folder, words):
    """Run the train.py of a folder; returns the seconds of the whole command."""
    start = time.perf_counter()
    run_python(['train.py', *words], folder)
    return time.perf_counter() - start


def load_nanogpt(source, checkpoint):
    """The model that nanoGPT's train.py saved."""
    spec = importlib.util.spec_from_file_location('nanogpt_model', source)  # ours is `model`
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    saved = torch.load(checkpoint, map_location='cpu')
    weights = {name.removeprefix('_orig_mod.'): w for name, w in saved['model'].items()}
    model = theirs.GPT(theirs.GPTConfig(**saved['model_args']))
    model.load_state_dict(weights)
    return model.eval()


@torch.inference_mode()
def surprise(model, ids, share=0.5):
    """The sum of -log P in nats of the N tokens ids[1:], given ids (N + 1,).

    A window has block_size tokens. The first share of it is context, the rest is scored.
    """
    n_context = int(model.config.block_size * share)
    step = model.config.block_size - n_context
    nats = 0.0
    for first in range(0, len(ids) - 1, step):
        window = ids[max(0, first - n_context):first + step + 1]
        x, y = window[None, :-1], window[None, 1:]            # (1, T) each
        n_new = len(ids[first:first + step + 1]) - 1          # at the end there may be fewer
        logits, _ = model(x, y)                               # (1, T, V)
        nats += F.cross_entropy(logits[0, -n_new:], y[0, -n_new:], reduction='sum').item()
    return nats


if __name__ == '__main__':
    run_script(main)
