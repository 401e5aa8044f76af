"""Which model suits the time: the search by hand that the rule of parts/budget.py was fitted to.

    python -m bench.dial --data_dir=data/movie --flops=3.3e12 --shapes=4x64,4x96,4x128
    python -m bench.dial --draw=assets/dial.svg

Each shape, layers x width, gets the same number of floating-point operations, so a larger model
reads fewer tokens. (No clock and no neighbour can change that: several searches may run side by
side.) Each run is a line of the results. The picture has a panel for each text and each number of
operations.
"""
import csv
import math
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from bench.nanogpt_score import run_python
from configurator import configure
from model import Config, build
from parts.checkpoint import read_log
from parts.data import read_meta
from parts.errors import run_script
from parts.machine import matmul_flops

data_dir = 'data/movie'        # what prepare.py wrote
mode = 'tokenizer'             # which of its vocabularies
flops = 3.3e12                 # floating-point operations of every run
shapes = '4x64,4x96,4x128'     # layers x width
chunk_size = 256               # the longest row in tokens
flags = ''                     # more of train.py's, as --batch_size=8 --dropout=0.1
results = 'out/dial.csv'       # where the lines go
draw = ''                      # draw the results into this file, and train nothing
configure(globals())

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ['text', 'flops', 'n_layers', 'd_model', 'tokens', 'epochs', 'bits_per_char', 'flags']


def main():
    if draw:
        draw_results()
        return
    meta = read_meta(data_dir, mode)
    Path(results).parent.mkdir(parents=True, exist_ok=True)
    for shape in shapes.split(','):
        n_layers, d_model = map(int, shape.split('x'))
        row = train(n_layers, d_model, meta)
        print('  '.join(str(row[name]) for name in COLUMNS), flush=True)
        is_new = not Path(results).exists()
        with open(results, 'a', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def train(n_layers, d_model, meta):
    """Train one shape; returns its line. meta: of read_meta()."""
    d_ffn = math.ceil(d_model * 8 / 3 / 64) * 64              # as train.py has it by itself
    model = build(Config(vocab_size=meta['vocab_size'], n_layers=n_layers, d_model=d_model,
                         d_ffn=d_ffn, nhead=max(1, round(d_model / 64))))
    tokens = flops / matmul_flops(model, chunk_size)
    epochs = max(1, math.ceil(tokens / meta['train_tokens']))
    with tempfile.TemporaryDirectory() as out:
        words = [f'--data_dir={Path(data_dir).resolve()}', f'--mode={mode}', f'--out_dir={out}/run',
                 f'--n_layers={n_layers}', f'--d_model={d_model}', f'--chunk_size={chunk_size}',
                 f'--epochs={epochs}', f'--n_tokens={tokens / epochs / 1e6}',
                 '--eval_interval=1000000', '--eval_tokens=0.1', *flags.split()]
        run_python(['train.py', *words], ROOT)
        last = read_log(f'{out}/run/log.csv')[-1]
    return {
        'text': Path(data_dir).name,
        'flops': flops,
        'n_layers': n_layers,
        'd_model': d_model,
        'tokens': last['tokens'],
        'epochs': epochs,
        'bits_per_char': last['bits_per_char'],
        'flags': flags,
    }


def draw_results():
    """A panel for each text and number of operations: bits per character against width."""
    with open(results, encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    texts = sorted({row['text'] for row in rows})
    budgets = sorted({float(row['flops']) for row in rows})
    figure = Figure(figsize=(3 * len(budgets), 2.4 * len(texts)), layout='constrained')
    grid = figure.subplots(len(texts), len(budgets), squeeze=False)
    for text, panels in zip(texts, grid):
        for budget, axes in zip(budgets, panels):
            for row in rows:
                if row['text'] != text or float(row['flops']) != budget:
                    continue
                point = int(row['d_model']), float(row['bits_per_char'])
                axes.plot(*point, 'o', color='C0')
                axes.annotate(f' {row["n_layers"]} {row["flags"]}', point, fontsize=6)
            axes.set_title(f'{text}, {budget / 1e12:.3g} TFLOP', fontsize=9)
            axes.tick_params(labelsize=7)
    figure.supxlabel('width (beside a point: layers, and what else was set)', fontsize=9)
    figure.supylabel('bits per character', fontsize=9)
    figure.savefig(draw)


if __name__ == '__main__':
    run_script(main)
