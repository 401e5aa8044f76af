"""Is what the dial, --minutes, chooses any good? The same minutes with shapes that a person chose.

    python -m bench.dial --data_dir=data/movie --minutes=5 --shapes=dial,4x64,4x96,4x128
    python -m bench.dial --draw=assets/dial.svg

'dial' leaves all to train.py. A shape, layers x width, is given, and the clock then chooses how
long it trains. Each run is a line of the results; the picture has a panel for each text and time.
"""
import json
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
    """A panel for each text and time: bits per character against width."""
    texts = sorted({row['text'] for row in rows})
    times = sorted({float(row['minutes']) for row in rows})
    figure, grid = figure_to_draw(3.4 * len(times), 2.2 * len(texts),
                                  nrows=len(texts), ncols=len(times), squeeze=False)
    for text, panels in zip(texts, grid):
        for asked, axes in zip(times, panels):
            for row in rows:
                if row['text'] == text and float(row['minutes']) == asked:
                    draw_run(axes, row)
            axes.set_title(f'{text}, {asked:g} min', fontsize=9)
            axes.tick_params(labelsize=7)
            axes.margins(0.25)
    figure.supxlabel('width of the model; a star: what the dial chose; beside a point: seconds, '
                     'the whole command', fontsize=9)
    figure.supylabel('bits per character', fontsize=9)
    figure.savefig(draw)


def draw_run(axes, row):
    """What the dial chose is a star, and what a person chose a dot."""
    point = int(row['d_model']), float(row['bits_per_char'])
    if row['by'] == 'dial':
        axes.plot(*point, '*', color='C1', markersize=11)
    else:
        axes.plot(*point, 'o', color='C0')
    axes.annotate(f'  {row["seconds"]}', point, fontsize=7, va='center')


if __name__ == '__main__':
    run_script(main)
