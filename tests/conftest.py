"""What the tests share: scripts run as a user runs them, on a small corpus prepared once."""
import contextlib
import csv
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import psutil
import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ['OMP_NUM_THREADS'] = '1'  # two test processes share two cores

# A small model in float32, so that two runs can be compared to the last bit. The settings a person
# has, compile and dtype 'auto', are tested in test_settings_people_have.py.
SMALL = ['--d_model=32', '--n_layers=2', '--chunk_size=64', '--batch_size=8', '--eval_tokens=0.004',
         '--compile=false', '--device=cpu', '--dtype=float32']

# What is said of the GPU number 7 or 9
NO_SUCH_GPU = 'there are only' if torch.cuda.is_available() else 'there is none here'


# --- running a script ---

# What is read as Python starts or torch is loaded: a forked process would come too late.
READ_AT_START = {'OMP_NUM_THREADS', 'PYTHONIOENCODING', 'PATH', 'CUBLAS_WORKSPACE_CONFIG'}


# What has a --device. On a machine with a GPU, 'auto' would be that GPU.
HAVE_A_DEVICE = {'train.py', 'eval.py', 'sample.py'}


def on_the_cpu(script, args):
    """The words for a script, with a device: the CPU, where the test names no other. (A run that
    is resumed has one.)
    """
    args = [str(arg) for arg in args]
    has_one = '--init_from=resume' in args or any(arg.startswith('--device') for arg in args)
    if script in HAVE_A_DEVICE and not has_one:
        args.append('--device=cpu')
    return args


def run(script, *args, ok=True, status=0, cwd=ROOT, nproc=0, stdin='', env=None, timeout=240):
    """Run a script of ours to its end; returns a subprocess.CompletedProcess.

    ok=True asserts the exit status; ok=False asserts status 2 and one sentence.
    """
    args = on_the_cpu(script, args)
    if nproc or READ_AT_START & set(env or {}):
        running = begin(script, *args, cwd=cwd, nproc=nproc, env=env, stdin=subprocess.PIPE)
        try:
            out, err = running.communicate(stdin, timeout)
        finally:
            end(running)
        done = subprocess.CompletedProcess(args, running.returncode, out, err)
    else:
        done = forked.run(ROOT / script, args, cwd, stdin, timeout, env)
    if ok:
        assert done.returncode == status, done.stderr[-3000:]
    else:
        assert_one_sentence(done)
    return done


def run_ranks(script, *args_of_each, env=None):
    """Run a script once for each list of args, as the processes of one run; returns what each did.

    As torchrun would start them, but sooner, and each with args of its own.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]

    def run_rank(rank):
        args = on_the_cpu(script, args_of_each[rank])
        its = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(len(args_of_each)),
               'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
        return forked.run(ROOT / script, args, ROOT, '', 900, its | (env or {}))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(run_rank, range(len(args_of_each))))


def python(nproc=0):
    """The words that start a script: in one process, or in several through torchrun."""
    if not nproc:
        return [sys.executable]
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone',
            f'--nproc_per_node={nproc}']


def begin(script, *args, cwd=ROOT, nproc=0, env=None, **popen):
    """Start a script of ours and do not wait: a Popen with pipes. Who calls this calls end()."""
    words = [*python(nproc), str(ROOT / script), *on_the_cpu(script, args)]
    return subprocess.Popen(words, cwd=cwd, env={**os.environ, **(env or {})}, encoding='utf-8',
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True, **popen)


def end(running):
    """SIGKILL a process and all that it has started: torchrun's workers outlive torchrun."""
    workers = []
    if running.poll() is None:
        workers = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    psutil.wait_procs(workers)
    running.wait()


@pytest.fixture
def start():
    """begin() for a test: what it has started ends with the test."""
    started = []

    def start(*args, **more):
        started.append(begin(*args, **more))
        return started[-1]

    yield start
    for running in started:
        end(running)


def assert_one_sentence(done):
    """The script ended with status 2, and said one line beside what it says on the way."""
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert 'Traceback' not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    # The name of the newest model, and progress bars, are no part of the sentence.
    sentences = [line for line in lines if not line.startswith('out/') and '|' not in line]
    assert len(sentences) == 1, done.stderr


# Python imports it by itself from a folder in PYTHONPATH.
KILLED_AT_A_RENAME = """
import os

def replace(source, target):
    if str(target).endswith('LAST'):
        os.kill(os.getpid(), 9)
    rename(source, target)

rename, os.replace = os.replace, replace
"""


def killed_before(last, folder):
    """The environment in which a script of ours is killed as a file of this name is to appear."""
    (folder / 'sitecustomize.py').write_text(KILLED_AT_A_RENAME.replace('LAST', last))
    return {'PYTHONPATH': str(folder)}


# --- what a run leaves ---

def random_model(arch='decoder', **more):
    """A small model in which no weight is zero: the zeros of a fresh one would hide a mistake."""
    from model import Config, build
    torch.manual_seed(0)
    shape = dict(vocab_size=50, arch=arch, d_model=32, d_ffn=48, n_layers=2, nhead=2,
                 chunk_size=16, window=4, eos=0)
    model = build(Config(**{**shape, **more}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
        else:
            torch.nn.init.normal_(p, mean=1, std=0.2)
    return model.eval()


def log(folder):
    """The lines of log.csv as dictionaries."""
    with open(folder / 'log.csv') as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text('utf-8'))


def edit(file, **changes):
    """Change keys of a JSON file; None removes one."""
    content = {**read_json(file), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content), 'utf-8')


def last_weights(folder):
    return torch.load(folder / 'state.pt', weights_only=True)['model']


def same(a, b):
    """True where two state dicts hold the same names and the same bits."""
    if a.keys() != b.keys():
        return False
    return all(torch.equal(a[name], b[name]) for name in a)


# --- folders that are made once ---

def once(tmp_path_factory, name, make):
    """The folder that make(folder) fills.

    The test process that needs it first makes it; all of them share it.
    """
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent
    folder = base / name
    done = Path(f'{folder}.done')
    with FileLock(f'{folder}.lock'):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    """A data folder of 3,000 demo reviews in both modes."""
    def make(folder):
        run('prepare.py', '--source=demo', f'--output_dir={folder}',
            '--n_reviews=3000', '--vocab_size=600')
        run('prepare.py', f'--data_dir={folder}', '--mode=manual')

    return once(tmp_path_factory, 'demo', make)


@pytest.fixture(scope='session')
def models(demo, tmp_path_factory):
    """Three small trained model folders: decoder, ffn and manual (a decoder over characters).

    The decoder is validated and saved ten times, so that it has a state before the last.
    """
    flags = {'decoder': ['--n_tokens=0.06', '--epochs=2', '--d_model=64', '--eval_interval=23'],
             'ffn': ['--arch=ffn', '--n_tokens=0.02'],
             'manual': ['--mode=manual', '--n_tokens=0.02']}

    def make(out):
        def train(name):
            run('train.py', f'--data_dir={demo}', f'--out_dir={out / name}', *SMALL, *flags[name])

        with ThreadPoolExecutor() as pool:
            list(pool.map(train, flags))
        (out / 'manual/model.safetensors').touch()                # the newest

    return once(tmp_path_factory, 'out', make)


@pytest.fixture(scope='session')
def songs(tmp_path_factory):
    """A small trained model folder of English lines without ratings."""
    def make(out):
        lines = [f'line {n}: the {n % 7} little words of {n % 11} songs' for n in range(400)]
        out.mkdir()
        (out / 'songs.txt').write_text('\n'.join(lines))
        data = f'{out}/data'
        run('prepare.py', f'--source={out}/songs.txt', f'--output_dir={data}', '--vocab_size=300')
        run('train.py', f'--data_dir={data}', f'--out_dir={out}/model', *SMALL)

    return once(tmp_path_factory, 'songs', make) / 'model'
