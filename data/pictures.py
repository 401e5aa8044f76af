"""Pictures that say more than numbers: losses, the ladder, a review coloured by surprise. The first two need matplotlib and are left out without it."""
import csv
import math
from contextlib import suppress


def new_figure(width, height):
    """A figure and its axes; (None, None) where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure  # here, for it takes its time
    except ImportError:
        return None, None
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots()


def draw_losses(out, floor):
    """out/loss.png: the history in log.csv, nats per token against tokens, and the floor (bits per character) where it is known."""
    figure, axes = new_figure(7, 4)
    if not figure:
        return
    with open(out / 'log.csv', encoding='utf-8') as f:
        rows = [row for row in csv.DictReader(f) if int(row['step'])]
    axes.plot([int(r['tokens']) for r in rows], [float(r['train_loss']) for r in rows], lw=1, label='training')
    measured = [r for r in rows if r['val_loss']]
    axes.plot([int(r['tokens']) for r in measured], [float(r['val_loss']) for r in measured], 'o-', label='validation')
    if floor and measured:
        last = measured[-1]
        axes.axhline(float(last['val_loss']) * floor / float(last['bits_per_char']), color='gray', ls='--', label='entropy of the source')
    axes.set(xlabel='tokens', ylabel='loss (nats per token)', title=str(out))
    axes.legend()
    figure.savefig(out / 'loss.png', dpi=120)


def draw_ladder(rows, path):
    """One bar for each of several models, rows of eval.py's scores: bits per character, from the floor (0 where it is unknown) up."""
    figure, axes = new_figure(7, 0.8 + 0.4 * len(rows)) if len(rows) > 1 else (None, None)
    if not figure:
        return
    floor = rows[0].get('floor_bits_per_char', 0)
    bars = axes.barh([r['model_path'] for r in rows], [r['bits_per_char'] - floor for r in rows], left=floor)
    axes.bar_label(bars, [f'{r["bits_per_char"]:.3f}' + (f' ({r["above_floor"]:+.1%})' if floor else '') for r in rows], padding=4)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.set(xlabel='bits per character' + (f'; the text itself has {floor:.4f}' if floor else ''),
             xlim=(floor, floor + 1.3 * max(r['bits_per_char'] - floor for r in rows)))  # room for the labels
    with suppress(OSError):  # the scores have been told; a picture is no reason to fail
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
        print(f'\n{path}: the same as a picture')


def coloured(vocab, ids, nats):
    """The text of ids, each character on a background that tells how surprised the model was by it: green none, yellow 4 bits, red 8 and more."""
    line, shown, waiting = '', '', 0.0
    for n in range(len(ids)):
        waiting += nats[n] / math.log(2)
        text = vocab.decode(ids[:n + 1])
        text = text if n + 1 == len(ids) else text.rstrip('\ufffd')  # a character spelled in bytes is whole after its last
        if len(text) > len(shown):
            share = min(1.0, waiting / (len(text) - len(shown)) / 8)
            line += f'\033[30;48;2;{int(255 * min(1, 2 * share))};{int(255 * min(1, 2 - 2 * share))};90m{text[len(shown):]}'
            shown, waiting = text, 0.0
    return line + '\033[0m'
