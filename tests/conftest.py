"""What the tests share: scripts run as a user runs them, on a small corpus prepared once."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['OMP_NUM_THREADS'] = '1'  # two test processes share two cores
SMALL = ['--d_model=32', '--n_layers=2', '--chunk_size=64', '--batch_size=8', '--compile=false', '--device=cpu', '--dtype=float32', '--eval_tokens=0.02']


def run(script, *args, ok=True, cwd=ROOT, nproc=0, stdin='', env=None, timeout=240):
    """Run a script of ours to its end; ok=True asserts exit status 0, ok=False exit status 2 and one sentence. Returns the result."""
    if nproc or env:
        start = [sys.executable, *(['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={nproc}'] if nproc else [])]
        done = subprocess.run([*start, str(ROOT / script), *map(str, args)], cwd=cwd, input=stdin, text=True, capture_output=True, timeout=timeout,
                              encoding='utf-8', env={**os.environ, **(env or {})})
    else:
        done = forked.run(ROOT / script, [*map(str, args)], cwd, stdin, timeout)
    if ok:
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith('out/') and '|' not in line]
        assert 'Traceback' not in done.stderr and len(lines) == 1, done.stderr
    return done


def log(folder):
    return list(csv.DictReader(open(folder / 'log.csv')))


def last_weights(folder):
    return torch.load(folder / 'state.pt', weights_only=True)['model']


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def once(tmp_path_factory, name, make):
    """The folder that make(folder) fills, made by whichever of the test processes needs it first, and shared by all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / name
    with FileLock(f'{folder}.lock'):
        if not Path(f'{folder}.done').exists():
            make(folder)
            Path(f'{folder}.done').touch()
    return folder


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    """A data folder of 3,000 demo reviews in both modes."""
    def make(folder):
        run('prepare.py', '--source=demo', f'--output_dir={folder}', '--n_reviews=3000', '--vocab_size=600')
        run('prepare.py', f'--data_dir={folder}', '--mode=manual')
    return once(tmp_path_factory, 'demo', make)


@pytest.fixture(scope='session')
def models(demo, tmp_path_factory):
    """Three small trained model folders: decoder, ffn and manual (a decoder over characters)."""
    def make(out):
        for name, flags in {'decoder': ['--n_tokens=0.06', '--epochs=2', '--d_model=64'], 'ffn': ['--arch=ffn', '--n_tokens=0.02'], 'manual': ['--mode=manual', '--n_tokens=0.02']}.items():
            run('train.py', f'--data_dir={demo}', f'--out_dir={out / name}', *SMALL, *flags)
    return once(tmp_path_factory, 'out', make)
