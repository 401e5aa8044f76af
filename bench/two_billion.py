"""Does a corpus of two billion tokens start later, take more memory, pause more than a small one?

    python -m bench.two_billion --data_dir=data/movie                    174 times over, 4.0 GB
    python -m bench.two_billion --data_dir=data/movie --times=1          as it is, to compare with

    train.bin → the same texts again and again, in output_dir → train.py on it, watched from outside

Empty the page cache before each run, for the corpus was just written through it:
sync; echo 3 | sudo tee /proc/sys/vm/drop_caches
The memory is that of the process without the files it maps, and Linux alone tells it (RssAnon in
/proc/PID/status).
"""
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from configurator import configure
from parts.checkpoint import atomic_write, read_json
from parts.data import SHARD_TOKENS
from parts.errors import UserError, run_script

data_dir = 'data/movie'       # what prepare.py wrote
output_dir = 'data/billions'  # where the large corpus goes; made once, and used again
times = 174                   # how often the texts are repeated
d_model = 128                 # of the model: small, so that waiting for data would show
n_layers = 2                  # likewise
n_tokens = 2.0                # million tokens an epoch: two shards
epochs = 3                    # the first steps of an epoch might be slow, too
batch_size = 16               # rows of 256 tokens a step
configure(globals())


def main():
    large = Path(output_dir)
    made = large / 'tokenizer' / 'meta.json'
    wanted = {'times': times, 'of': str(Path(data_dir).resolve())}
    if not made.exists() or not wanted.items() <= read_json(made).items():
        repeat(Path(data_dir, 'tokenizer'), large / 'tokenizer', wanted)
    n_stream = read_json(made)['train_tokens']
    with tempfile.TemporaryDirectory() as out:
        arrivals, memory, start = train(large, Path(out, 'run'))
    if len(arrivals) < 3:
        raise UserError('train.py made too few steps to time')
    print(f'{n_stream:,} tokens; {arrivals[0] - start:.1f} s from Enter to the first step; '
          f'{memory / 1e3:,.0f} MB at most')
    print_pauses(np.diff(arrivals))


# --- the corpus ---

def repeat(old, new, made):
    """The bins of the folder `old`, with the training texts repeated, in the folder `new`.

    made: what its meta.json says of that.
    """
    meta = read_json(old / 'meta.json')
    ids = np.fromfile(old / 'train.bin', '<u2')
    offsets = np.fromfile(old / 'train_offsets.bin', '<u8')
    length = int(offsets[-1])                             # the next copy begins at the last </s>
    body, last = ids[:-1].tobytes(), ids[-1:].tobytes()
    crc32 = 0
    with atomic_write(new / 'train.bin', 'wb') as stream, \
            atomic_write(new / 'train_offsets.bin', 'wb') as places:
        for n in range(times):
            stream.write(body)
            crc32 = zlib.crc32(body, crc32)
            places.write((offsets[:-1] + np.uint64(n * length)).tobytes())
        stream.write(last)
        places.write(np.array([times * length], '<u8').tobytes())
    for file in old.iterdir():
        if file.name not in ('train.bin', 'train_offsets.bin', 'meta.json'):
            shutil.copy(file, new)
    meta |= made
    meta['train_reviews'] *= times
    meta['train_tokens'] = times * length + 1
    meta['train_crc32'] = zlib.crc32(last, crc32)
    with atomic_write(new / 'meta.json') as file:
        json.dump(meta, file)


# --- the run ---

def train(large, out):
    """Run train.py: (when each step ended, the most memory in KB, when it was started)."""
    flags = [
        f'--data_dir={large}', f'--out_dir={out}', f'--d_model={d_model}',
        f'--n_layers={n_layers}', f'--n_tokens={n_tokens}', f'--epochs={epochs}',
        f'--batch_size={batch_size}', '--log_interval=1', '--eval_interval=1000000',
        '--eval_tokens=0.01', '--compile=false', '--dtype=float32', '--device=cpu',
    ]
    arrivals, memory = [], 0
    start = time.perf_counter()
    words = [sys.executable, 'train.py', *flags]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, encoding='utf-8') as run:
        for line in run.stdout:
            if line.startswith('step '):
                arrivals.append(time.perf_counter())
                memory = max(memory, anonymous_memory(run.pid))
    if run.returncode:
        raise UserError('train.py failed; what it says stands above')
    return arrivals, memory, start


def anonymous_memory(pid):
    """The memory of a process without the files that it maps, in KB; 0 where it cannot be known."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:                                           # it has ended, or there is no /proc
        return 0
    found = re.search(r'RssAnon:\s+(\d+) kB', status)
    return int(found[1]) if found else 0


def print_pauses(seconds):
    """seconds (S - 1,): of every step but the first. Is one slower that begins something new?"""
    n_steps = len(seconds) + 1
    per_epoch = n_steps // epochs
    per_shard = max(1, SHARD_TOKENS // (batch_size * 256))
    kinds = {'a step': [], 'the first of an epoch': [], 'the first of a shard': []}
    for step, taken in enumerate(seconds[:-1], start=1):      # the last step also validates
        if step % per_epoch == 0:
            kinds['the first of an epoch'].append(taken)
        elif step % per_epoch % per_shard == 0:
            kinds['the first of a shard'].append(taken)
        else:
            kinds['a step'].append(taken)
    for kind, times_taken in kinds.items():
        if times_taken:
            ms = [1e3 * taken for taken in times_taken]
            print(f'{kind}: {len(ms)} times, median {statistics.median(ms):.0f} ms, '
                  f'longest {max(ms):.0f} ms')


if __name__ == '__main__':
    run_script(main)
