"""What the benches measured: a CSV file with a line for each run."""
import csv
from pathlib import Path

from parts.errors import UserError


def keep_run(path, run):
    """Append a run, {column: value}; the first one writes the names of the columns, too."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    kept = read_runs(path)
    if kept and list(kept[0]) != list(run):
        raise UserError(f'{path} has other columns; move it away or name another --results')
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


def read_runs(path):
    """[{column: text}], the oldest first; [] where there is no such file."""
    if not Path(path).exists():
        return []
    with open(path, encoding='utf-8') as file:
        return list(csv.DictReader(file))
