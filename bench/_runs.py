"""What the benches measured: a CSV file with a line for each run."""
import csv
from pathlib import Path

from parts.errors import UserError
from parts.pictures import new_figure


def keep_run(path, run):
    """Append a run, {column: value}; the first one writes the names of the columns, too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    read_runs(path, list(run))
    with open(path, 'a', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, run)
        if is_new:
            writer.writeheader()
        writer.writerow(run)


def runs_to_draw(path):
    """read_runs(), of which there must be some. Raises UserError."""
    runs = read_runs(path)
    if not runs:
        raise UserError(f'{path} holds no runs to draw; --results= names the file')
    return runs


def figure_to_draw(width, height, **grid):
    """new_figure(), and UserError where there is no matplotlib."""
    figure, axes = new_figure(width, height, **grid)
    if figure is None:
        raise UserError('drawing needs matplotlib: pip install matplotlib')
    return figure, axes


def read_runs(path, columns=None):
    """[{column: text}], the oldest first; [] where there is no such file. columns: those that it
    must have, if it has a run. Raises UserError.
    """
    if not Path(path).exists():
        return []
    with open(path, encoding='utf-8') as file:
        runs = list(csv.DictReader(file))
    if columns and runs and list(runs[0]) != columns:
        raise UserError(f'{path} has other columns; move it away or name another --results')
    return runs
