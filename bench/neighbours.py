"""What a busy neighbour costs: tokens a second of train.py beside processes that never rest.

    python prepare.py --source=demo && python -m bench.neighbours --threads=2

OpenMP's threads wait for each other at the end of every parallel region, and spin while they wait.
Beside a busy process one of them is often without a core, and the others spin for nothing. For each
number of spins (GOMP_SPINCOUNT; by itself OpenMP takes 300,000, and 'auto' is what train.py sets)
and each number of neighbours the demo model trains for some steps, one after the other, in as many
rounds as asked. 'one' is a single thread, which waits for nobody.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from configurator import configure
from parts.checkpoint import read_log
from parts.errors import UserError, run_script

data_dir = 'data/demo'         # what prepare.py wrote
spins = 'auto,300000,10000,1000,100,one'
neighbours = '0,1,2'           # how many busy processes
threads = 2                    # of the run
steps = 60                     # of which the first ten are not counted
rounds = 1                     # the best of so many is printed
compile = 'false'              # as train.py's
configure(globals())

ROOT = Path(__file__).resolve().parent.parent


def main():
    if not Path(data_dir).exists():
        raise UserError(f'data_dir={data_dir} is not there; python prepare.py --source=demo')
    if steps < 12:
        raise UserError(f'steps={steps}: it takes 12 or more')
    counts = [int(n) for n in neighbours.split(',')]
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
    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])
            for _ in range(n_neighbours)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            words = ['train.py', 'config/demo.py', f'--data_dir={Path(data_dir).resolve()}',
                     f'--out_dir={folder}/out', '--device=cpu',
                     f'--compile={compile}', '--log_interval=1',
                     f'--eval_interval={steps}', f'--n_tokens={steps * 2048 / 1e6 + 1e-6}']
            subprocess.run([sys.executable, *words], cwd=ROOT, env=env, check=True,
                           stdout=subprocess.DEVNULL)
            rows = read_log(f'{folder}/out/log.csv')
    finally:
        for process in busy:
            process.kill()
    first, last = rows[10], rows[-1]
    tokens = int(last['tokens']) - int(first['tokens'])
    return tokens / (float(last['seconds']) - float(first['seconds']))


if __name__ == '__main__':
    run_script(main)
