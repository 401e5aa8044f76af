"""Is what the dial, --minutes, chooses any good? The same minutes with shapes that a person chose.

    python -m bench.dial --data_dir=data/movie --minutes=5 --shapes=dial,4x64,4x96,4x128
    python -m bench.dial --draw=assets/dial.svg

'dial' leaves all to train.py. A shape, layers x width, is given, and the clock then chooses how
long it trains. Each run is a line of the results; the picture has a panel for each text and time.
"""
import json
import math
import tempfile
from pathlib import Path

from bench._runs import figure_to_draw, keep_run, runs_to_draw
from bench.nanogpt_score import run_train
from configurator import configure
from parts.checkpoint import read_log
from parts.errors import run_script

data_dir = 'data/movie'        # what prepare.py wrote
mode = 'tokenizer'             # which of its vocabularies
minutes = 1.0                  # for the whole command, of every run
shapes = 'dial,4x64,4x96'      # what to train
flags = ''                     # more of train.py's, as --batch_size=8 --dropout=0.1
results = 'out/dial.csv'       # where the lines go
draw = ''                      # draw the results into this file, and train nothing
configure(globals())

ROOT = Path(__file__).resolve().parent.parent


def main():
    if draw:
        draw_results(runs_to_draw(results))
        return
    for shape in shapes.split(','):
        row = train(shape)
        print('  '.join(map(str, row.values())), flush=True)
        keep_run(results, row)


def train(shape):
    """Train for some minutes; returns its line. shape: 'dial' or layers x width, as '4x96'."""
    by_hand = shape != 'dial'
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, 'run')
        words = [f'--data_dir={Path(data_dir).resolve()}', f'--mode={mode}', f'--out_dir={out}',
                 f'--minutes={minutes}', *flags.split()]
        if by_hand:
            n_layers, d_model = shape.split('x')
            words += [f'--n_layers={n_layers}', f'--d_model={d_model}']
        seconds = run_train(ROOT, words)
        log = read_log(out / 'log.csv')
        config = json.loads((out / 'config.json').read_text('utf-8'))
    return {
        'text': Path(data_dir).name,
        'minutes': minutes,
        'by': 'hand' if by_hand else 'dial',
        'n_layers': config['num_hidden_layers'],
        'd_model': config['hidden_size'],
        'tokens': log[-1]['tokens'],
        'seconds': round(seconds),
        'bits_per_char': min(float(row['bits_per_char']) for row in log if row['bits_per_char']),
    }


def draw_results(rows):
    """A panel for each text: how far each run is above the best of the same minutes, in percent."""
    texts = list(dict.fromkeys(row['text'] for row in rows))
    times = sorted({float(row['minutes']) for row in rows})
    figure, panels = figure_to_draw(3.6 * len(texts), 3.2, ncols=len(texts), sharey=True,
                                    squeeze=False)
    for text, axes in zip(texts, panels[0]):
        ticks = []
        for place, asked in enumerate(times):
            runs = [row for row in rows if (row['text'], float(row['minutes'])) == (text, asked)]
            best = min((float(row['bits_per_char']) for row in runs), default=math.nan)
            draw_runs(axes, place, runs, best)
            ticks.append(f'{asked:g} min\nbest {best:.3f}')
            axes.axvline(place + 0.5, color='grey', linewidth=0.5)
        axes.set_xticks(range(len(times)), ticks, fontsize=8)
        axes.set_xlim(-0.5, len(times) - 0.5)
        axes.axhline(2, color='grey', linewidth=0.5, linestyle='--')
        axes.set_title(text, fontsize=9)
    panels[0][0].set_ylabel('bits per character,\n% above the best of the same minutes', fontsize=8)
    figure.supxlabel('star: the dial; dot: by hand; layers x width, seconds of the whole command',
                     fontsize=8)
    figure.savefig(draw)


def draw_runs(axes, place, runs, best):
    """The runs of one text and time side by side, the smallest model first."""
    runs = sorted(runs, key=lambda row: int(row['n_layers']) * int(row['d_model']) ** 2)
    for n, row in enumerate(runs):
        x = place + 0.26 * (n - (len(runs) - 1) / 2)
        y = 100 * (float(row['bits_per_char']) / best - 1)
        if row['by'] == 'dial':
            axes.plot(x, y, '*', color='C1', markersize=10)
        else:
            axes.plot(x, y, 'o', color='C0', markersize=5)
        label = f'{row["n_layers"]}x{row["d_model"]}\n{row["seconds"]}'
        axes.annotate(label, (x, y), (0, 6), textcoords='offset points', fontsize=6, ha='center')


if __name__ == '__main__':
    run_script(main)
