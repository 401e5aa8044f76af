"""Files that appear whole or not at all, and JSON objects read from them."""
import json
import os
from contextlib import contextmanager
from pathlib import Path

from parts.errors import UserError


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
