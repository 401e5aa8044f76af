"""What a run keeps beside the model: state.pt, from which it can go on; log.csv, its history."""
import csv
import io
import os
import tempfile
import zlib
from contextlib import suppress

import torch

try:
    import fcntl
except ImportError:  # Windows has none; two runs in one folder go unnoticed there
    fcntl = None

from configurator import refuse, say, whole

COLUMNS = ['step', 'tokens', 'seconds', 'train_loss', 'val_loss', 'bits_per_char', 'lr']


def claim(out):
    """Make the folder, and see now what would go wrong later: access rights, read-only and full disks, another run at work in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as f:
            f.write(b'room to write')
    except OSError as e:
        refuse(f'out_dir={out} cannot be written to: {e}')
    if fcntl:
        try:
            fcntl.flock(os.open(out, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go when this process ends, however it ends
        except OSError:
            refuse(f'another run is writing to {out}; name another --out_dir')


def keep_state(out, **state):
    """Write state.pt, whole or not at all, with a checksum at its end; the one before stays, should the newest turn out damaged."""
    content = io.BytesIO()  # written in one piece, so that a full disk is an OSError
    torch.save(state, content)
    with whole(out / 'state.new.pt', 'wb') as f:
        f.write(content.getbuffer())
        f.write(zlib.crc32(content.getbuffer()).to_bytes(4))
    if (out / 'state.pt').exists():
        os.replace(out / 'state.pt', out / 'state.before.pt')
    os.replace(out / 'state.new.pt', out / 'state.pt')


def last_state(out):
    """What resuming needs, from state.pt or, where that is damaged, from the one before."""
    for file in (out / 'state.pt', out / 'state.before.pt'):
        if file.exists():
            with suppress(Exception):  # torch and its unpickler raise many kinds for what is not theirs
                content = file.read_bytes()
                if zlib.crc32(content[:-4]) == int.from_bytes(content[-4:]):  # torch.load does not see a flipped bit
                    return torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
            say(f'{file} is damaged; looking for the one before')
    refuse(f'{out} holds no state.pt that could be resumed; what model there is in {out} can be fine-tuned (--init_from={out} and another --out_dir)')


def begin_log(out, step):
    """Start the log, or, resuming, cut it back to the step the state is of."""
    path = out / 'log.csv'
    rows = [row for row in csv.DictReader(open(path)) if int(row['step']) <= step] if step and path.exists() else []
    with whole(path) as f:
        log = csv.DictWriter(f, COLUMNS)
        log.writeheader()
        log.writerows(rows)


def add_to_log(out, *values):
    with open(out / 'log.csv', 'a', newline='') as f:
        csv.writer(f).writerow(values)
