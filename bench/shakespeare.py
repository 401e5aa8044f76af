"""Tiny Shakespeare, the field's best known example: nanoGPT's recipe and ours, on one machine.

    python prepare.py --source=shakespeare
    python -m bench.shakespeare --nanogpt=../nanoGPT
    python -m bench.shakespeare --draw=assets/shakespeare.svg

nanoGPT, a checkout that is copied and not changed, trains as its README says for a CPU, then this
project with each of --configs and seed. Seconds are of the whole command: loading, compiling,
validation and saving are in them. The score is nats per character on the last tenth of the text,
whether its ids are characters or sub-words (of nanoGPT: --mode=tokenizer). Each model reads it in
windows as long as its context, and each id, but for those of the first half window, has half a
window or more before it. The second score is of windows side by side, in which the first id has
nothing before it: close to how nanoGPT's README scores. Runs are kept in a file, and drawn from it.
"""
import pickle
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from bench._runs import figure_to_draw, keep_run, runs_to_draw
from bench.nanogpt_score import copy_nanogpt, load_nanogpt, run_train, surprise
from configurator import configure
from parts.corpus import read_split
from parts.errors import UserError, run_script
from parts.folder import load_model
from parts.vocabulary import load_vocabulary

nanogpt = ''                       # a checkout of nanoGPT ('': only ours)
nanogpt_flags = ''                 # more of its flags, as --learning_rate=2e-3 --min_lr=2e-4
data_dir = 'data/shakespeare'      # what prepare.py wrote
mode = 'manual'                    # of nanoGPT's ids: manual (characters) or tokenizer (sub-words)
configs = 'config/shakespeare_small.py,config/shakespeare.py,config/shakespeare_manual.py'
seeds = 3                          # runs of each config file (0: none)
flags = ''                         # more of train.py's, as --dtype=float32
results = 'out/shakespeare.csv'    # where the runs are kept
draw = ''                          # draw them into this file, and train nothing
configure(globals())

ROOT = Path(__file__).resolve().parent.parent
# README.md of nanoGPT, 'I only have a macbook (or other cheap computer)'
RECIPE = ('config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 '
          '--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 '
          '--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0')
GPU_RECIPE = 1.4697  # nats per character of its recipe for a GPU, as its README says


def main():
    if draw:
        draw_runs(runs_to_draw(results))
        return
    folder = Path(data_dir)
    if not (folder / 'train.txt').exists():
        raise UserError(f'{folder} has no train.txt; python prepare.py --source=shakespeare')
    train, val = (''.join(text for _, text in read_split(folder / name))
                  for name in ('train.txt', 'validation.txt'))
    print(f'{len(val):,} characters of validation; seconds of the whole command')
    print(f'{"":40}  {"context":>14}  seconds  nats/character  side by side', flush=True)
    with tempfile.TemporaryDirectory() as work:
        if nanogpt:
            vocabulary = load_vocabulary(folder / mode)
            seconds, model, used = train_nanogpt(Path(work, 'nanogpt'), vocabulary, train, val)
            name = f'nanoGPT {nanogpt_flags}'.strip()
            print_row(name, seconds, model, val, vocabulary, used)
        for config in configs.split(','):
            for seed in range(seeds):
                out = Path(work, 'out')
                shutil.rmtree(out, ignore_errors=True)
                words = [config, f'--data_dir={folder.resolve()}', f'--out_dir={out}',
                         f'--seed={seed}', *flags.split()]
                seconds = run_train(ROOT, words)
                model, _ = load_model(out)
                name = f'{config} {flags}'.strip()
                print_row(f'{name}, seed {seed}', seconds, WithLoss(model), val,
                          load_vocabulary(out))


def train_nanogpt(folder, vocabulary, train, val):
    """(seconds, model, used) of nanoGPT's recipe on these texts. used (N,): the ids that occur in
    them, which are 0 to N - 1 for it: with characters as many as its own prepare.py finds.
    """
    copy_nanogpt(nanogpt, 'config/train_shakespeare_char.py', folder)
    sides = vocabulary.encode([train, val])
    used = np.unique(np.concatenate(sides))
    data = folder / 'data/shakespeare_char'
    for name, ids in zip(('train', 'val'), sides):
        np.searchsorted(used, ids).astype(np.uint16).tofile(data / f'{name}.bin')
    (data / 'meta.pkl').write_bytes(pickle.dumps({'vocab_size': len(used)}))
    seconds = run_train(folder, [*RECIPE.split(), *nanogpt_flags.split()])
    model = load_nanogpt(folder / 'model.py', folder / 'out-shakespeare-char/ckpt.pt')
    return seconds, model, used


class WithLoss:
    """Our model in the form of nanoGPT's: called with targets, it gives (logits, a loss)."""

    def __init__(self, model):
        self.model = model
        self.config = SimpleNamespace(block_size=model.config.chunk_size)

    def __call__(self, x, y):
        return self.model(x), None


def print_row(name, seconds, model, val, vocabulary, used=None):
    """Score a model on the text val. used: of train_nanogpt(), where the model has its ids."""
    ids = vocabulary.encode([val])[0]
    n_chars = len(val) - len(vocabulary.decode(ids[:1]))      # the first id is not scored
    if used is not None:
        ids = np.searchsorted(used, ids)
    nats, cold = (surprise(model, torch.tensor(ids), share) / n_chars for share in (0.5, 0))
    unit = 'characters' if vocabulary.mode == 'manual' else 'sub-words'
    context = model.config.block_size
    seen = f'{context} {unit}'
    print(f'{name:40}  {seen:>14}  {seconds:7.1f}  {nats:14.4f}  {cold:12.4f}', flush=True)
    keep_run(results, {'name': name, 'context': context, 'unit': unit, 'seconds': round(seconds, 1),
                       'nats_per_char': round(nats, 4), 'side_by_side': round(cold, 4)})


def draw_runs(rows):
    """Nats per character against the seconds of the whole command."""
    figure, axes = figure_to_draw(7, 4)
    groups = {}
    for row in rows:
        whose = 'nanoGPT' if row['name'].startswith('nanoGPT') else 'this project'
        name = f'{whose}, {row["unit"]}'
        groups.setdefault(name, []).append((float(row['seconds']), float(row['side_by_side'])))
    for name, points in groups.items():
        axes.plot(*zip(*points), 'o', label=name)
    axes.axhline(GPU_RECIPE, color='gray', ls='--', lw=1,
                 label="nanoGPT's README: its GPU recipe, on an A100, in random windows")
    axes.set_xscale('log')
    axes.set_xticks([5, 10, 20, 30, 60, 120, 300, 600],
                    ['5 s', '10 s', '20 s', '30 s', '1 min', '2 min', '5 min', '10 min'])
    axes.minorticks_off()
    axes.set(xlabel='the whole command', ylabel='nats per character,\nin rows side by side')
    figure.legend(loc='outside lower left', fontsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(draw)


if __name__ == '__main__':
    run_script(main)
