"""What each idea is worth: from nanoGPT's ideas in this code to ours, one at a time, and back.

    python -m bench.staircase --nanogpt=../nanoGPT --data_dir=data/movie
    python -m bench.staircase --draw=assets/staircase.svg

Up: AdamW, small random weights, rows cut anywhere and read as one text; then one idea after the
other is added. Down: all ideas but one; and ours, counting no more tokens than it trains on. (Down,
nothing is compiled: that moves no score.) Each run has the same shape, the same number of tokens
and the same rows a step; with --same_seconds=, each stair of the way up is then run once more, and
all of these train for as long. Runs are kept in a file, and those that it holds are not made again.
"""
import json
import math
import os
import pickle
import re
import tempfile
from pathlib import Path

from bench._runs import figure_to_draw, keep_run, read_runs
from bench.nanogpt_score import copy_nanogpt, run_python, score
from configurator import configure
from parts.checkpoint import read_log
from parts.data import read_meta
from parts.errors import UserError, run_script

data_dir = 'data/movie'          # what prepare.py wrote
nanogpt = ''                     # a checkout of nanoGPT ('': only ours)
n_layers = 6                     # the shape of every run: blocks,
d_model = 256                    # width,
nhead = 4                        # attention heads
n_tokens = 0.1                   # million, of every run
same_seconds = 0.0               # of training: the way up once more, each run so long (0: not)
batch_size = 4                   # rows of 256 a step
eval_tokens = 0.02               # million: the score
seeds = 1                        # of every run; rates are tried with the first
rates = '1e-3,2e-3,4e-3'         # of AdamW
results = 'out/staircase.csv'    # where the runs are kept
draw = ''                        # draw them into this file, and train nothing
configure(globals())

ROOT = Path(__file__).resolve().parent.parent
# idea → what takes it away: a name of bench/without.py, or flags of train.py
IDEAS = {
    'the number format that is fastest': '--dtype=float32',
    'texts see no other text': 'masks',
    'whole texts in a row': 'packing',
    'short rows for short texts': 'short_rows',
    'a level rate, then a line to zero': 'schedule',
    'blocks begin at zero, the embedding at one': 'small_weights',
    'first weights by counting': '--bigram_init=false',
    'Muon': '--optimizer=adamw',
    'compiling': '--compile=false',
}
COLUMNS = ['run', 'same', 'name', 'seed', 'lr', 'bits_per_char', 'seconds', 'millions', 'curve']
FIRST = "nanoGPT's ideas, here"
RUN = f'{Path(data_dir).name}, {n_layers}x{d_model}, {nhead} heads, {batch_size} rows, {n_tokens}M'


def main():
    if draw:
        draw_stairs(read_results())
        return
    adamw_rates = rates.split(',')
    for seed in range(seeds):
        if nanogpt:
            climb('nanoGPT', None, seed, adamw_rates)
        missing = dict(IDEAS)
        climb(FIRST, missing, seed, adamw_rates)
        first_rate = best_rate(read_results(), FIRST)
        for idea in IDEAS:
            del missing[idea]
            # with counted weights another rate may be the best, so all are tried once more
            again = adamw_rates if idea == 'first weights by counting' else [first_rate]
            climb(f'+ {idea}', missing, seed, again)
        slow = {'compiling': IDEAS['compiling']}
        for idea in list(IDEAS)[:-2]:                         # without Muon: a stair of the way up
            climb(f'ours without: {idea}', slow | {idea: IDEAS[idea]}, seed, [])
        climb('ours, counting no more than it trains on', slow | {'': 'fewer_counts'}, seed, [])
    print_stairs(read_results())
    print_same_seconds(read_results('seconds'))


def climb(name, missing, seed, adamw_rates):
    """Train without the ideas in `missing` (None: nanoGPT itself), in the first seed with each
    rate, then with the best; keep what has not been kept.
    """
    if missing is not None and '--optimizer=adamw' not in missing.values():
        adamw_rates = ['6e-3']                                # Muon's default
    rows = read_results()
    for lr in adamw_rates if seed == 0 else [best_rate(rows, name)]:
        run_once('tokens', name, missing, float(lr), seed, n_tokens)
    if same_seconds and not name.startswith('ours'):
        rows = read_results()
        lr = best_rate(rows, name)
        took = [row['seconds'] for row in rows if row['name'] == name and row['lr'] == lr]
        millions = n_tokens * same_seconds * len(took) / sum(took)
        run_once('seconds', name, missing, lr, seed, millions)


def run_once(same, name, missing, lr, seed, millions):
    """Make a run that has not been made, and keep it. same: what it shares with the others of its
    table, 'tokens' or 'seconds'.
    """
    if any((row['name'], row['seed'], row['lr']) == (name, seed, lr) for row in read_results(same)):
        return
    if missing is None:
        curve = train_nanogpt(lr, seed, millions)
    else:
        curve = train(missing.values(), lr, seed, millions)
    took, bits = curve[-1]
    kept = RUN, same, name, seed, lr, bits, took, millions, json.dumps(curve)
    keep_run(results, dict(zip(COLUMNS, kept, strict=True)))
    print(f'{name:36}  seed {seed}  lr {lr}  {millions:.3f}M tokens  {bits:.4f} bits/char  '
          f'{took:.0f} s', flush=True)


def read_results(same='tokens'):
    """The runs of as many tokens so far, or those of as many seconds, [{column: value}]."""
    rows = read_runs(results, COLUMNS)
    if not draw and any(row['run'] != RUN for row in rows):
        raise UserError(f'{results} holds runs of {rows[0]["run"]}; name another --results')
    for row in rows:
        row.update(seed=int(row['seed']), lr=float(row['lr']), seconds=float(row['seconds']),
                   bits_per_char=float(row['bits_per_char']), millions=float(row['millions']),
                   curve=json.loads(row['curve']))
    return [row for row in rows if row['same'] == same]


def best_rate(rows, name):
    """The rate of the lowest score that the first seed has."""
    tried = [row for row in rows if row['name'] == name and row['seed'] == 0]
    return min(tried, key=lambda row: row['bits_per_char'])['lr']


def train(missing, lr, seed, millions):
    """A run of ours → [(seconds of training, bits per character), …], the last at its end."""
    ways = ','.join(way for way in missing if not way.startswith('-'))
    steps = round(millions * 1e6) // (batch_size * 256)
    with tempfile.TemporaryDirectory() as work:
        words = [f'--data_dir={Path(data_dir).resolve()}', f'--out_dir={work}/out', f'--lr={lr}',
                 f'--seed={seed}', f'--batch_size={batch_size}', f'--n_tokens={millions}',
                 f'--eval_tokens={eval_tokens}', f'--eval_interval={math.ceil(steps / 4)}',
                 f'--n_layers={n_layers}', f'--d_model={d_model}', f'--nhead={nhead}',
                 '--read_share=0', '--compile=true', '--device=cpu', '--dtype=auto',
                 *[way for way in missing if way.startswith('-')]]
        run_python(['-m', 'bench.without', ways, *words], ROOT)
        return [(float(row['seconds']), float(row['bits_per_char']))
                for row in read_log(f'{work}/out/log.csv') if row['bits_per_char']]


def train_nanogpt(lr, seed, millions):
    """The same of nanoGPT, copied and not changed, on the same tokens."""
    meta = read_meta(data_dir, 'tokenizer')
    steps = round(millions * 1e6) // (batch_size * 256)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, 'nanogpt')
        copy_nanogpt(nanogpt, 'train.py', folder)
        (folder / 'data/kr').mkdir()
        for name in ('train.bin', 'val.bin'):
            os.symlink(Path(data_dir, 'tokenizer', name).resolve(), folder / 'data/kr' / name)
        (folder / 'data/kr/meta.pkl').write_bytes(pickle.dumps({'vocab_size': meta['vocab_size']}))
        # its config file is a program too: the seed, which train.py fixes by itself
        (folder / 'seed.py').write_text(
            f'import torch\nplant = torch.manual_seed\n'
            f'torch.manual_seed = lambda number: plant(number + {seed})\n')
        said = run_python(
            ['train.py', 'seed.py', '--dataset=kr', '--device=cpu', '--dtype=float32',
             '--compile=False', '--beta2=0.99', f'--n_layer={n_layers}', f'--n_head={nhead}',
             f'--n_embd={d_model}', '--block_size=256',
             f'--batch_size={batch_size}', '--gradient_accumulation_steps=1', '--dropout=0.0',
             f'--learning_rate={lr}', f'--min_lr={float(lr) / 10}', '--weight_decay=0.1',
             f'--warmup_iters={min(100, steps // 10)}', f'--lr_decay_iters={steps}',
             f'--max_iters={steps}', f'--eval_interval={steps}', '--eval_iters=1',
             '--log_interval=1'], folder)
        times = [float(ms) / 1e3 for ms in re.findall(r'time ([\d.]+)ms', said)]
        bits = score(folder, data_dir, eval_tokens)['bits_per_char']
    took = sum(times[1:-1]) / (len(times) - 2) * steps        # validations are in the two others
    return [(took, bits)]


def summary(rows):
    """[(name, scores of the seeds, mean seconds, time to the first stair's score or None)]"""
    stairs = []
    for name in dict.fromkeys(row['name'] for row in rows):
        lr = best_rate(rows, name)
        runs = [row for row in rows if row['name'] == name and row['lr'] == lr]
        stairs.append((name, [row['bits_per_char'] for row in runs],
                       sum(row['seconds'] for row in runs) / len(runs), runs[0]['curve']))
    marks = [scores[0] for name, scores, _, _ in stairs if name == FIRST]
    if not marks:
        raise UserError(f'{results} holds no run of: {FIRST}')
    return [(name, scores, seconds, time_to(curve, marks[0]))
            for name, scores, seconds, curve in stairs]


def time_to(curve, mark):
    """The seconds after which a curve is first at the mark or below, in a straight line between
    two validations; None where it never is."""
    before = None
    for seconds, bits in curve:
        if bits <= mark:
            if before is None:
                return seconds
            share = (before[1] - mark) / (before[1] - bits)
            return before[0] + share * (seconds - before[0])
        before = seconds, bits
    return None


def print_stairs(rows):
    """The table of docs/STAIRCASE.md."""
    print('\n| | bits/char | spread | seconds | to the first stair\'s score | rates tried |')
    print('|---|---|---|---|---|---|')
    for name, scores, seconds, to_mark in summary(rows):
        mean, spread = sum(scores) / len(scores), max(scores) - min(scores)
        reached = '' if to_mark is None else f'{to_mark:.0f}'
        tried = [row for row in rows if row['name'] == name and row['seed'] == 0]
        tried = ', '.join(f'{row["lr"]:g}: {row["bits_per_char"]:.3f}' for row in tried)
        print(f'| {name} | {mean:.3f} | {spread:.3f} | {seconds:.0f} | {reached} | {tried} |')


def print_same_seconds(rows):
    """The table of runs that took as long, if there are any."""
    if rows:
        print('\n| | seconds | million tokens | bits/char |\n|---|---|---|---|')
    for name in dict.fromkeys(row['name'] for row in rows):
        runs = [row for row in rows if row['name'] == name]
        columns = [', '.join(format(run[column], form) for run in runs)
                   for column, form in (('seconds', '.0f'), ('millions', '.2f'),
                                        ('bits_per_char', '.3f'))]
        print(f'| {name} | {" | ".join(columns)} |')


def draw_stairs(rows):
    """Bits per character of each stair, up and then down."""
    stairs = summary(rows)
    figure, axes = figure_to_draw(8, 0.32 * len(stairs) + 0.9)
    for n, (name, scores, seconds, _) in enumerate(stairs):
        mean = sum(scores) / len(scores)
        colour = 'C1' if name == 'nanoGPT' else 'C2' if name.startswith('ours') else 'C0'
        axes.plot(scores, [n] * len(scores), 'o', color=colour)
        axes.text(max(scores), n, f'   {mean:.3f}, {seconds:.0f} s', va='center', fontsize=8)
    every = [score for stair in stairs for score in stair[1]]
    axes.set_xlim(min(every) - 0.05, max(every) + 0.25)
    axes.grid(axis='y', linewidth=0.4)
    axes.set_yticks(range(len(stairs)), [stair[0] for stair in stairs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel('bits per character, and seconds of training')
    axes.spines[['top', 'right']].set_visible(False)
    figure.savefig(draw)


if __name__ == '__main__':
    run_script(main)
