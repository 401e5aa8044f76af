"""Files that appear whole or not at all, and what a run keeps beside its model: state.pt, from
which it goes on; log.csv, its history; a lock on the folder.

torch is imported where it is needed: prepare.py writes files too, and starts without it.
"""
import csv
import io
import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from parts.errors import UserError, print0

try:
    import fcntl
except ImportError:  # Windows has none; two runs in one folder go unnoticed there
    fcntl = None

LOG_COLUMNS = ['step', 'tokens', 'seconds', 'train_loss', 'val_loss', 'bits_per_char', 'lr']


def lock_folder(out, flag='--out_dir'):
    """Make the folder and see now what would go wrong later: access rights, a full disk, another
    run at work in it. flag: how a person names the folder.

    The system opens the lock when this process ends, however it ends. Raises UserError.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b'room to write')
    except OSError as error:
        raise UserError(f'{flag}={out} cannot be written to: {error}') from None
    if fcntl:
        folder = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f'another run is writing to {out}; name another {flag}') from None


# --- files ---

@contextmanager
def atomic_write(path, mode='w'):
    """Open a file for writing that appears under its name complete or not at all.

    It is written beside its place, flushed to the disk, then renamed over the old one: whoever
    reads the name meanwhile, or after a crash, sees the old file or the new one and never a part.
    Raises OSError.
    """
    part = Path(f'{path}.part')
    text = 'b' not in mode
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        encoding, newline = ('utf-8', '') if text else (None, None)
        with open(part, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_json(path):
    """The JSON object in a file, as a dict. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:     # ValueError: not UTF-8, or not JSON
        raise UserError(f'{path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} does not hold a JSON object')
    return content


# --- state.pt ---

def has_checkpoint(out):
    return (out / 'state.pt').exists() or (out / 'state.before.pt').exists()


def save_checkpoint(out, state):
    """Write state.pt, whole or not at all, with a checksum at its end.

    The one before stays as state.before.pt.
    """
    import torch
    content = io.BytesIO()  # first into memory: a full disk is then an OSError and not torch's own
    torch.save(state, content)
    with atomic_write(out / 'state.new.pt', 'wb') as file:
        file.write(content.getbuffer())
        file.write(zlib.crc32(content.getbuffer()).to_bytes(4))
    if (out / 'state.pt').exists():
        os.replace(out / 'state.pt', out / 'state.before.pt')
    os.replace(out / 'state.new.pt', out / 'state.pt')


def load_checkpoint(out):
    """(state, checksum) from state.pt or, where that is damaged, from the one before.

    Raises UserError.
    """
    import torch
    if not has_checkpoint(out):
        raise UserError(f'{out} holds no run to resume (no state.pt)')
    for path in (out / 'state.pt', out / 'state.before.pt'):
        if not path.exists():
            continue
        content = path.read_bytes()
        checksum = zlib.crc32(content[:-4])
        if len(content) > 4 and checksum == int.from_bytes(content[-4:]):
            # checked here, for torch.load does not see a flipped bit
            state = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
            return state, checksum
        print0(f'{path} is damaged; looking for the one before')
    advice = (f'what model there is in {out} can be fine-tuned '
              f'(--init_from={out} and another --out_dir)')
    raise UserError(f'{out} holds no state.pt that could be resumed; {advice}')


# --- log.csv ---

def start_log(out, step):
    """Begin log.csv or, resuming, cut it back to the step of the checkpoint."""
    path = out / 'log.csv'
    rows = []
    if step and path.exists():
        with open(path, newline='') as file:
            rows = [row for row in csv.DictReader(file) if int(row['step']) <= step]
    with atomic_write(path) as file:
        log = csv.DictWriter(file, LOG_COLUMNS)
        log.writeheader()
        log.writerows(rows)


def append_log(out, row):
    """One more line: row {column: value}, in the order of LOG_COLUMNS."""
    with open(out / 'log.csv', 'a', newline='') as file:
        csv.DictWriter(file, LOG_COLUMNS).writerow(row)
