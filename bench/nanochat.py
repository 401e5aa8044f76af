"""nanochat's training, as it is, on our tokens; then its score in our unit, bits per character.

    python -m bench.nanochat --nanochat=../nanochat --data_dir=data/movie

scripts/base_train.py of a checkout runs unchanged, with its model, optimizer, schedules and its way
of packing documents into rows. What is replaced: the text and its tokenizer (a document is a text
as prepare.py wrote it, in ids; </s> is its <|bos|>), and what needs more libraries or is of no use
here: wandb, saved checkpoints, samples, CORE. The score is that of nanogpt_score.py, but a window
begins with a text.
"""
import importlib
import json
import runpy
import sys
import time
import types
from pathlib import Path

import numpy as np

from bench.nanogpt_score import score_model
from configurator import configure
from parts.data import open_stream, read_meta
from parts.errors import UserError, run_script, user_path

nanochat = ''            # a checkout of nanochat
data_dir = 'data/movie'  # what prepare.py wrote
flags = ('--depth=6 --aspect-ratio=42 --head-dim=64 --window-pattern=L --max-seq-len=256 '
         '--device-batch-size=8 --total-batch-size=2048 --num-iterations=500 --warmup-steps=20')
n_tokens = 0.131072      # million validation tokens of the score
configure(globals())


def main():
    checkout = user_path(nanochat)
    if not (checkout / 'scripts/base_train.py').exists():
        raise UserError(f'nanochat={nanochat!r} is no checkout of nanochat')
    meta = read_meta(data_dir, 'tokenizer')
    sys.path.insert(0, str(checkout))
    replace_modules(meta)
    importlib.import_module('nanochat.dataloader')._document_batches = documents(meta)
    sys.argv = ['base_train.py', '--device-type=cpu', '--eval-every=-1', '--core-metric-every=-1',
                '--sample-every=-1', *flags.split()]
    start = time.perf_counter()
    theirs = runpy.run_path(str(checkout / 'scripts/base_train.py'), run_name='__main__')
    seconds = time.perf_counter() - start
    model = AsNanoGPT(theirs['orig_model'].eval(), meta['eos'])
    print(json.dumps({'flags': flags, 'trained on': theirs['total_tokens'],
                      'seconds': round(seconds), **score_model(model, data_dir, n_tokens)}))


class AsNanoGPT:
    """Their model, with what score_model() knows of nanoGPT's."""

    def __init__(self, model, bos):
        self.model = model
        self.bos = bos
        self.config = types.SimpleNamespace(block_size=model.config.sequence_len)

    def __call__(self, x, y):
        # it has only seen rows that begin with a text, so a whole window does, too
        begins = (x[0, :self.config.block_size // 2] == self.bos).nonzero()
        if len(begins) and x.shape[1] == self.config.block_size:
            x = x[:, begins[0].item():]
        return self.model(x), None


def documents(meta):
    """What gives batches of texts, in their order and again and again, as nanochat's reader of
    parquet files does; a text is its ids, with </s> in front.
    """
    def batches(split, resume_state_dict, size):
        tokens, offsets = open_stream(Path(data_dir, 'tokenizer'), meta, split)
        order = np.random.default_rng(0).permutation(len(offsets) - 1)
        epoch = 1
        while True:
            for first in range(0, len(order), size):
                some = order[first:first + size]
                yield ([tokens[offsets[n]:offsets[n + 1]].tolist() for n in some], (0, 0, epoch))
            epoch += 1
    return batches


def replace_modules(meta):
    """Put ours in place of the modules that base_train.py would import to read and to tell."""
    class Tokenizer:
        def get_vocab_size(self):
            return meta['vocab_size']

        def get_bos_token_id(self):
            return meta['eos']

        def encode(self, texts, prepend, num_threads):
            return texts                                      # they are ids already

    def nothing(*args, **kwargs):
        return None

    names = {
        'wandb': {},
        'nanochat.tokenizer': {'get_tokenizer': Tokenizer, 'get_token_bytes': nothing},
        'nanochat.checkpoint_manager': {'save_checkpoint': nothing, 'load_checkpoint': nothing},
        'nanochat.engine': {'Engine': nothing},
        'scripts.base_eval': {'evaluate_core': nothing},
    }
    for name, members in names.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)


if __name__ == '__main__':
    run_script(main)
