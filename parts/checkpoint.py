"""Files that appear whole or not at all, and what a run keeps beside its model: state.pt, from
which it goes on; log.csv, its history; a lock on the folder.

torch is imported where it is needed: prepare.py writes files too, and starts without it.
"""
import csv
import errno
import io
import json
import os
import re
import tempfile
import zlib
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from parts.errors import UserError, print0

try:
    import fcntl
except ImportError:  # Windows has none; two runs in one folder go unnoticed there
    fcntl = None

STATE_FORMAT = 3  # of state.pt; it grows when what is in there changes its meaning
LOCKS = []        # files that are locked as long as they are open: until this process ends
LOG_COLUMNS = {   # of log.csv, and how a value is written
    'step': 'd',
    'tokens': 'd',
    'seconds': '.2f',
    'train_loss': '.5f',
    'val_loss': '.5f',
    'bits_per_char': '.4f',
    'lr': '.3e',
}


# --- files ---

@contextmanager
def atomic_write(path, mode='w'):
    """Open a file for writing that appears under its name complete or not at all.

    It is written beside its place, flushed to the disk, then renamed over the old one: whoever
    reads the name meanwhile, or after a crash, sees the old file or the new one and never a part.
    Raises UserError where the disk is full or may not be written to.
    """
    path = Path(path)
    part = part_of(path)
    encoding, newline = (None, None) if 'b' in mode else ('utf-8', '')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # there is none where a file stands in place of its folder
            part.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from None
        raise


def part_of(path):
    """Where a file is written before it has its name; two processes do not share one."""
    return path.with_name(f'{path.name}.{os.getpid()}.part')


def cannot_write(path, error):
    """The sentence for an OSError while path was written."""
    return UserError(f'{path} cannot be written: {error.strerror or error}; '
                     'what was there before is there still')


def to_json(value):
    # (what is no UTF-8 in the name of a folder stays, as an escape of JSON)
    return json.dumps(value, indent=1, ensure_ascii=False).encode(errors='backslashreplace')


def read_json(path):
    """The JSON object in a file, as a dict. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:     # ValueError: not UTF-8, or not JSON
        raise UserError(f'{path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} does not hold a JSON object')
    return content


# --- a folder for one run alone ---

def lock_folder(folder):
    """Make the folder and see now what would go wrong later: access rights, a full disk, another
    process that writes to it.

    The system opens the lock when this process ends, however it ends. Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'room to write')
        lock = open(folder / 'lock', 'a')
    except OSError as error:
        raise UserError(f'{folder} cannot be written to: {error}') from None
    try:
        if fcntl:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f'another process is writing to {folder}; '
                            'wait for it, or name another folder') from None
        print0(f'{folder} is on a disk that knows no locks ({error.strerror}); '
               'see that no other run writes to it')
    LOCKS.append(lock)  # a file that nobody holds is closed, and its lock is open


OUR_TYPES = 'txt|json|bin|model|safetensors|pt|csv|png|md'


def sweep(folder):
    """Remove what a killed process left unfinished in a folder that this one has locked."""
    for part in folder.glob('*.part'):
        if re.fullmatch(rf'.+\.({OUR_TYPES})\.[0-9]+\.part', part.name):  # as part_of() names it
            part.unlink(missing_ok=True)


# --- state.pt ---

def has_checkpoint(out):
    # (Path.exists() may raise where one may not look)
    return any(os.path.exists(out / name) for name in ('state.pt', 'state.before.pt'))


def save_checkpoint(out, state):
    """Write state.pt, whole or not at all, with a checksum at its end.

    The one before stays as state.before.pt.
    """
    import torch
    content = io.BytesIO()  # first into memory: a full disk is then an OSError and not torch's own
    torch.save({'format': STATE_FORMAT, **state}, content)
    with atomic_write(out / 'state.new.pt', 'wb') as file:
        file.write(content.getbuffer())
        file.write(zlib.crc32(content.getbuffer()).to_bytes(4))
    if (out / 'state.pt').exists():
        os.replace(out / 'state.pt', out / 'state.before.pt')
    os.replace(out / 'state.new.pt', out / 'state.pt')


def load_checkpoint(out):
    """What save_checkpoint() wrote, and its 'checksum'. Where state.pt is damaged, the one before.

    Raises UserError.
    """
    import torch
    if not has_checkpoint(out):
        raise UserError(f'{out} holds no run to resume (no state.pt)')
    for path in (out / 'state.pt', out / 'state.before.pt'):
        if not path.exists():
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror}') from None
        checksum = zlib.crc32(content[:-4])
        if len(content) > 4 and checksum == int.from_bytes(content[-4:]):
            # checked here, for torch.load does not see a flipped bit
            state = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
            if state.get('format') != STATE_FORMAT:
                raise UserError(f'{path} was written by another version, whose runs cannot go on; '
                                f'its model can be fine-tuned: --init_from={out}')
            return {**state, 'checksum': checksum}
        print0(f'{path} is damaged; looking for the one before')
    raise UserError(f'{out} holds no state.pt that could be resumed; what model there is in {out} '
                    f'can be fine-tuned (--init_from={out} and another --out_dir)')


# --- log.csv ---

def is_log(path):
    """Whether a file is a log.csv of train.py."""
    if not os.path.exists(path):
        return False
    with open(path, 'rb') as file:
        return file.readline().strip() == ','.join(LOG_COLUMNS).encode()


def start_log(out, step):
    """Begin log.csv or, resuming, cut it back to the step of the checkpoint.

    A log that cannot be read (a spreadsheet saved it, the power failed) is set aside under another
    name: a run does not end for that.
    """
    path = out / 'log.csv'
    rows = []
    if step and path.exists():
        try:
            rows = [row for row in read_log(path) if int(row['step']) <= step]
        except (ValueError, KeyError, TypeError, csv.Error):
            aside = set_aside(path)
            print0(f'{path} cannot be read; it is now {aside}, and a new one begins')
    with atomic_write(path) as file:
        log = csv.DictWriter(file, LOG_COLUMNS, extrasaction='ignore')
        log.writeheader()
        log.writerows(rows)


def read_log(path):
    """The rows of log.csv. Raises ValueError, KeyError, TypeError or csv.Error where it is damaged:
    a line that the power cut lacks its last numbers.
    """
    with open(path, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ('step', 'tokens', 'seconds', 'train_loss', 'lr'):
            float(row[name])
    return rows


def set_aside(path):
    """Rename a file to a name that is free; returns it."""
    for number in count(1):
        aside = path.with_name(f'{path.stem}.{number}{path.suffix}')
        if not aside.exists():
            return path.rename(aside)


def append_log(out, row):
    """One more line: row {column: number, or None where there is none}. Raises UserError."""
    path = out / 'log.csv'
    words = {}
    for column, spec in LOG_COLUMNS.items():
        words[column] = '' if row[column] is None else format(row[column], spec)
    try:
        with open(path, 'a', newline='', encoding='utf-8') as file:
            csv.DictWriter(file, LOG_COLUMNS).writerow(words)
    except OSError as error:
        raise cannot_write(path, error) from None
