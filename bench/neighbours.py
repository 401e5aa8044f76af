"""What a busy neighbour costs: tokens a second of train.py beside processes that never rest.

    python prepare.py --source=demo && python -m bench.neighbours --threads=2
    python -m bench.neighbours --formats=30 --neighbours=0,1,2,3,4

OpenMP's threads wait for each other at the end of every parallel region, and spin while they wait.
Beside a busy process one of them is often without a core, and the others spin for nothing. For each
number of spins (GOMP_SPINCOUNT; by itself OpenMP takes 300,000, and 'auto' is what train.py sets)
and each number of neighbours the demo model trains for some steps, one after the other, in as many
rounds as asked. 'one' is a single thread, which waits for nobody.

With --formats nothing is trained: the number format is chosen so many times beside each number of
neighbours, as --dtype=auto does it. Two runs of one command are alike only if it never changes.
"""
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch

from configurator import configure
from parts.checkpoint import read_log
from parts.errors import UserError, run_script
from parts.machine import select_dtype

data_dir = 'data/demo'         # what prepare.py wrote
spins = 'auto,300000,10000,1000,100,one'
neighbours = '0,1,2'           # how many busy processes
threads = 2                    # of the run
steps = 60                     # of which the first ten are not counted
rounds = 1                     # the best of so many is printed
compile = 'false'              # as train.py's
formats = 0                    # choose the number format so often (0: train)
configure(globals())

ROOT = Path(__file__).resolve().parent.parent


def main():
    counts = [int(n) for n in neighbours.split(',')]
    if formats:
        choose_formats(counts)
        return
    if not Path(data_dir).exists():
        raise UserError(f'data_dir={data_dir} is not there; python prepare.py --source=demo')
    if steps < 12:
        raise UserError(f'steps={steps}: it takes 12 or more')
    print('tokens/s    ' + ''.join(f'{n} neighbours'.rjust(14) for n in counts), flush=True)
    best = {}
    for _ in range(rounds):
        for spin in spins.split(','):
            for n in counts:
                best[spin, n] = max(best.get((spin, n), 0.0), speed(spin, n))
    for spin in spins.split(','):
        print(f'spins {spin:6}' + ''.join(f'{best[spin, n]:14,.0f}' for n in counts), flush=True)


def speed(spin, n_neighbours):
    """Tokens a second of the demo model beside busy neighbours."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1' if spin == 'one' else str(threads)}
    env.pop('GOMP_SPINCOUNT', None)
    if spin.isdigit():
        env['GOMP_SPINCOUNT'] = spin
    with busy(n_neighbours), tempfile.TemporaryDirectory() as folder:
        words = ['train.py', 'config/demo.py', f'--data_dir={Path(data_dir).resolve()}',
                 f'--out_dir={folder}/out', '--device=cpu',
                 f'--compile={compile}', '--log_interval=1',
                 f'--eval_interval={steps}', f'--n_tokens={steps * 2048 / 1e6 + 1e-6}']
        subprocess.run([sys.executable, *words], cwd=ROOT, env=env, check=True,
                       stdout=subprocess.DEVNULL)
        rows = read_log(f'{folder}/out/log.csv')
    first, last = rows[10], rows[-1]
    tokens = int(last['tokens']) - int(first['tokens'])
    return tokens / (float(last['seconds']) - float(first['seconds']))


@contextmanager
def busy(n_neighbours):
    """Meanwhile, so many processes that never rest."""
    processes = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])
                 for _ in range(n_neighbours)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def choose_formats(counts):
    """Print which formats --dtype=auto chooses, and how many times as fast as float32 bfloat16 was
    measured, at least and at most.
    """
    device = torch.device('cpu')
    for n in counts:
        chosen, ratios = Counter(), []
        with busy(n):
            for _ in range(formats):
                dtype, sentence = select_dtype('auto', device)
                chosen[str(dtype)] += 1
                times = re.findall(r'([\d.]+) ms', sentence)  # of float32 and, if right, bfloat16
                ratios.append(float(times[0]) / float(times[-1]))
        print(f'{n} neighbours: {dict(chosen)}; bfloat16 is {min(ratios):.2f} to '
              f'{max(ratios):.2f} times as fast', flush=True)


if __name__ == '__main__':
    run_script(main)
