"""Pictures that say more than numbers: the losses of a run, the ladder of models, a review.

The first two need matplotlib, and are left out where there is none.
"""
import csv
import math

from parts.checkpoint import read_log

BITS_OF_RED = 8            # a character as surprising as this, or more, is red
RESET = '\033[0m'          # the terminal's colours as they were


def new_figure(width, height, **grid):
    """(figure, axes), the size in inches; (None, None) where there is no matplotlib. grid: what
    subplots() is told, for more axes than one.
    """
    try:
        from matplotlib.figure import Figure  # here, for it takes its time
    except ImportError:
        return None, None
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(**grid)


# --- the losses of a run ---

def draw_losses(out_dir, floor):
    """Draw out_dir/log.csv into out_dir/loss.png: nats per token against tokens.

    floor: the bits per character of the source itself, or None. It is drawn in nats per token.
    """
    figure, axes = new_figure(7, 4)
    if figure is None:
        return
    try:
        rows = read_log(out_dir / 'log.csv')
        validated = [row for row in rows if row['val_loss']]
        axes.plot(*column(rows, 'train_loss'), lw=1, label='training')
        axes.plot(*column(validated, 'val_loss'), 'o-', label='validation')
        if validated and floor:
            last = validated[-1]
            nats_per_bit = float(last['val_loss']) / float(last['bits_per_char'])
            floor *= nats_per_bit
            axes.axhline(floor, color='gray', ls='--', label='floor: the text itself')
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return                                                 # somebody changed it
    axes.set(xlabel='tokens', ylabel='loss (nats per token)')
    axes.legend()
    save_picture(figure, out_dir / 'loss.png')


def column(rows, name):
    """(tokens, values): the points of a curve."""
    tokens = [int(row['tokens']) for row in rows]
    values = [float(row[name]) for row in rows]
    return tokens, values


# --- the ladder ---

def draw_ladder(rows, path):
    """One bar for each of several models: bits per character, from the floor of the data up.

    rows: what `eval.py --json=true` prints. Returns whether there is a picture now: not of a single
    model, not without matplotlib, and not where nothing can be written.
    """
    if len(rows) < 2:
        return False
    figure, axes = new_figure(7, 0.8 + 0.4 * len(rows))
    if figure is None:
        return False
    floor = rows[0].get('floor_bits_per_char', 0)              # 0 where it is not known
    if any(row['bits_per_char'] < floor for row in rows):
        floor = 0                                              # few texts may be easier than most
    names = [row['model_path'] for row in rows]
    above = [row['bits_per_char'] - floor for row in rows]
    bars = axes.barh(names, above, left=floor)
    labels = [f'{row["bits_per_char"]:.3f}' for row in rows]
    if 'above_floor' in rows[0]:                               # then it is in all of them
        labels = [f'{label} ({row["above_floor"]:+.1%})' for label, row in zip(labels, rows)]
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()                                        # the first model on top
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlim(floor, floor + 1.3 * max(above))             # room for the labels
    title = 'bits per character'
    if floor:
        title += f'; the floor is {floor:.4f}'
    axes.set_xlabel(title)
    return save_picture(figure, path)


def save_picture(figure, path):
    """Write the picture. Returns whether it could be: the scores are told already."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError:
        return False
    return True


# --- a review, coloured ---

def colour_by_surprise(vocabulary, ids, nats):
    """The text of ids for a terminal, each character on the colour of its surprise.

    nats: the surprise of every id. A character may take several ids, and an id may be several
    characters: those that become readable together share their bits.
    """
    line = ''
    shown = ''                                                 # the characters in line
    bits = 0.0                                                 # not yet spent on a character
    for n, surprise in enumerate(nats, 1):
        bits += surprise / math.log(2)
        text = vocabulary.decode(ids[:n])
        if n < len(ids):
            text = text.rstrip('\ufffd')                       # some of its bytes are still to come
        new = text[len(shown):]
        if new:
            line += background(bits / len(new)) + new
            shown = text
            bits = 0.0
    return line + RESET


def background(bits):
    """The code for black on a colour from green (0 bits) over yellow to red (BITS_OF_RED bits)."""
    share = min(1.0, bits / BITS_OF_RED)
    red = int(255 * min(1.0, 2 * share))
    green = int(255 * min(1.0, 2 - 2 * share))
    return f'\033[30;48;2;{red};{green};90m'
