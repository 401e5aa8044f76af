"""What machines and people do to a run, and that nothing is lost.

Runs are killed, asked to stop, left by one of their processes, given a full disk or a damaged file.
`python -m pytest -m long` runs the long forms: fifty kills a run, and two thousand steps while the
memory of the process is measured.
"""
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, last_weights, log, python, run, same

from parts.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

long = pytest.mark.long
needs_proc = pytest.mark.skipif(not Path('/proc/self/cmdline').exists(),
                                reason='finds processes through /proc')
needs_file_limit = pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'),
                                      reason='no limit on the size of files here')
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL


# --- runs that are not waited for ---

def start(folder, *flags, nproc=0, stdout=DEVNULL, stderr=DEVNULL):
    """Start a training run in a process group of its own; returns the Popen."""
    words = [*python(nproc), str(ROOT / 'train.py'), *flags, f'--out_dir={folder}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=stdout, stderr=stderr)


def wait_for(condition, running, seconds=60):
    """Wait until condition() is true; a run that ends before that fails the test."""
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, 'the run has ended'
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.02)


def read_until(pattern, stream):
    """Read lines of the stream, up to the first in which the pattern is found."""
    for line in stream:
        if re.search(pattern, line):
            return
    pytest.fail(f'{pattern!r} was never said')


# --- processes, through /proc ---

def read_proc(path):
    """The strings in a file of /proc; none where the process has ended or is another user's."""
    try:
        return path.read_text('utf-8', 'replace').split('\0')
    except OSError:
        return []


def processes(folder):
    """The folders in /proc of all processes that train into this folder, torchrun's included."""
    found = []
    for process in Path('/proc').glob('[0-9]*'):
        if f'--out_dir={folder}' in read_proc(process / 'cmdline'):
            found.append(process)
    return found


def kill_all(folder):
    """SIGKILL all processes of a run: torchrun's workers go on when torchrun alone is killed."""
    for _ in range(2):  # a worker may be started while the others are looked for
        for process in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.5)


def pid_of_rank(rank, folder):
    """The id of the process to which torchrun gave this rank."""
    for process in processes(folder):
        if f'RANK={rank}' in read_proc(process / 'environ'):
            return int(process.name)
    pytest.fail(f'no process of rank {rank}')


# --- what a run has left ---

def time_saved(folder):
    """When state.pt was written, in ns; 0 where there is none.

    There is none either in the moment in which a new one takes its place.
    """
    try:
        return (folder / 'state.pt').stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def saved_step(folder):
    """The step of the newest state, read without looking at its checksum."""
    path = folder / 'state.pt'
    if not path.exists():
        path = folder / 'state.before.pt'
    return torch.load(path, weights_only=True)['step']


def log_without_seconds(folder):
    rows = log(folder)
    for row in rows:
        del row['seconds']
    return rows


# --- killed ---

def kill_after_a_save(running, folder, delay):
    """Wait for the next state.pt, or the end of the run, then delay seconds; then kill it."""
    before = time_saved(folder)

    def saved_or_ended():
        return time_saved(folder) not in (0, before) or running.poll() is not None

    wait_for(saved_or_ended, running)
    time.sleep(delay)
    kill_all(folder)
    running.wait()


@needs_proc
@pytest.mark.parametrize('arch, nproc',
                         [('decoder', 0), ('ffn', 0), ('decoder', 2), ('decoder', 4)])
@pytest.mark.parametrize('kills', [1, pytest.param(50, marks=long)])
def test_killed_and_resumed_is_never_having_stopped(arch, nproc, kills, demo, tmp_path):
    """The run saves at every second step and is killed at random, often in the middle of a save."""
    epochs = 1 + kills // 25
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.06',
             f'--epochs={epochs}', '--dropout=0.1', '--micro_batch=2', '--eval_interval=2',
             '--log_interval=10', '--eval_tokens=0.002']
    whole = tmp_path / 'whole'
    broken = tmp_path / 'broken'
    run('train.py', *flags, f'--out_dir={whole}', nproc=nproc, timeout=900)

    chance = random.Random(0)
    killed_at = set()
    for _ in range(kills):
        begin = ['--init_from=resume'] if has_checkpoint(broken) else flags
        running = start(broken, *begin, nproc=nproc)
        kill_after_a_save(running, broken, delay=chance.random() * 0.1)
        killed_at.add(saved_step(broken))
    assert min(killed_at) > 0
    assert max(killed_at) < 117 * epochs
    assert len(killed_at) > 0.8 * kills

    run('train.py', '--init_from=resume', f'--out_dir={broken}', nproc=nproc, timeout=900)
    assert same(last_weights(whole), last_weights(broken))
    best = (whole / 'model.safetensors').read_bytes()
    assert (broken / 'model.safetensors').read_bytes() == best
    assert log_without_seconds(whole) == log_without_seconds(broken)


# --- left by one of its processes ---

@pytest.fixture(scope='module')
def flags_of_two(demo):
    """The settings of a run whose curve one process and two draw alike."""
    return [f'--data_dir={demo}', *SMALL, '--n_tokens=0.03', '--eval_interval=5', '--lr=1e-3',
            '--log_interval=5']


@pytest.fixture(scope='module')
def never_stopped(flags_of_two, tmp_path_factory):
    """The folder of such a run of two processes, to its end."""
    folder = tmp_path_factory.mktemp('never_stopped')
    run('train.py', *flags_of_two, f'--out_dir={folder}', nproc=2)
    return folder


def assert_same_curve(folder, expected):
    for a, b in zip(log(folder), log(expected), strict=True):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)


@needs_proc
def test_where_one_process_dies_the_others_end_and_one_goes_on(
        flags_of_two, never_stopped, tmp_path):
    running = start(tmp_path, *flags_of_two, nproc=2, stderr=PIPE)
    wait_for((tmp_path / 'state.pt').exists, running)
    os.kill(pid_of_rank(1, tmp_path), signal.SIGKILL)
    _, error = running.communicate(timeout=60)
    assert running.returncode != 0
    assert 'SIGKILL' in error, error
    assert 'another process has ended' in error, error
    assert 'train.py", line' not in error, error  # no traceback
    run('train.py', '--init_from=resume', f'--out_dir={tmp_path}')
    assert_same_curve(tmp_path, never_stopped)


def test_where_a_single_process_dies_two_go_on(flags_of_two, never_stopped, tmp_path):
    running = start(tmp_path, *flags_of_two)
    wait_for((tmp_path / 'state.pt').exists, running)
    running.kill()
    assert running.wait(60) != 0
    run('train.py', '--init_from=resume', f'--out_dir={tmp_path}', nproc=2)
    assert_same_curve(tmp_path, never_stopped)


# --- asked to stop ---

@pytest.mark.parametrize('nproc, number', [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(nproc, number, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50', '--log_interval=5']
    running = start(tmp_path, *flags, nproc=nproc, stdout=PIPE, stderr=PIPE)
    read_until('^step', running.stdout)
    # As a terminal does: torchrun hears it too, and tells its processes again.
    os.killpg(running.pid, number)
    said, error = running.communicate(timeout=60)
    assert running.returncode != 0
    assert '--init_from=resume' in said
    assert 'train.py", line' not in error, error  # no traceback
    if not nproc:
        assert running.returncode == 128 + number
    last_step = int(log(tmp_path)[-1]['step'])
    assert last_step > 0
    assert saved_step(tmp_path) == last_step


@pytest.mark.parametrize('nproc', [0, 2])
def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(nproc, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50', '--log_interval=5']
    first = start(tmp_path, *flags, nproc=nproc, stdout=PIPE)
    read_until('^step', first.stdout)
    error = run('train.py', *flags, f'--out_dir={tmp_path}', ok=False).stderr
    assert 'another run is writing' in error or 'already holds a run' in error
    read_until('^step', first.stdout)
    first.terminate()
    said, _ = first.communicate(timeout=60)
    assert '--init_from=resume' in said
    assert saved_step(tmp_path) == int(log(tmp_path)[-1]['step'])


def test_asked_twice_it_stops_at_once(demo, tmp_path):
    long_steps = ['--d_model=256', '--n_layers=8', '--batch_size=900', '--micro_batch=1']
    running = start(tmp_path, f'--data_dir={demo}', *SMALL, *long_steps, stdout=PIPE)
    read_until(' steps of ', running.stdout)
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert running.poll() is None, 'one step was meant to take longer'
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert log(tmp_path) == [], 'it did not leave in the middle of a step'


# --- damaged and exchanged files ---

@pytest.fixture
def copy_of_run(models, tmp_path):
    """A folder with what resuming the run in models/decoder needs."""
    folder = tmp_path / 'out'
    folder.mkdir()
    for name in ('state.pt', 'state.before.pt', 'model.safetensors', 'log.csv'):
        shutil.copy(models / 'decoder' / name, folder)
    return folder


def test_a_damaged_state_is_seen_and_the_one_before_used(copy_of_run, models):
    state = bytearray((copy_of_run / 'state.pt').read_bytes())
    state[len(state) // 2] ^= 1  # one bit
    (copy_of_run / 'state.pt').write_bytes(state)
    said = run('train.py', f'--out_dir={copy_of_run}', '--init_from=resume').stdout
    assert 'state.pt is damaged' in said
    assert same(last_weights(copy_of_run), last_weights(models / 'decoder'))


def test_two_damaged_states_are_a_sentence(copy_of_run):
    for name in ('state.pt', 'state.before.pt'):
        state = (copy_of_run / name).read_bytes()
        (copy_of_run / name).write_bytes(state[:len(state) // 2])
    error = run('train.py', f'--out_dir={copy_of_run}', '--init_from=resume', ok=False).stderr
    assert 'holds no state.pt that could be resumed' in error


@pytest.fixture
def other_data(demo, models, tmp_path):
    """The data of the run in models/decoder, with its reviews in reverse order."""
    folder = tmp_path / 'other_data'
    shutil.copytree(demo, folder)
    reviews = (folder / 'train.txt').read_text('utf-8').splitlines(keepends=True)
    (folder / 'train.txt').write_text(''.join(reversed(reviews)), 'utf-8')
    run('prepare.py', f'--data_dir={folder}', f'--model_name={models / "decoder"}')
    return folder


def test_a_run_does_not_go_on_in_another_data_folder(copy_of_run, other_data):
    error = run('train.py', '--init_from=resume', f'--out_dir={copy_of_run}',
                f'--data_dir={other_data}', ok=False).stderr
    assert 'was started with data_dir' in error


def test_other_data_under_a_run_is_noticed(copy_of_run, other_data, demo):
    state, _ = load_checkpoint(copy_of_run)
    assert state['settings']['data_dir'] == str(demo)
    state['settings']['data_dir'] = str(other_data)
    save_checkpoint(copy_of_run, state)
    error = run('train.py', '--init_from=resume', f'--out_dir={copy_of_run}', ok=False).stderr
    assert 'is not what the run' in error


# --- numbers, disks, memory ---

def test_a_loss_that_is_no_number_ends_the_run_and_spoils_nothing(demo, tmp_path):
    harmful = ['--lr=1e19', '--optimizer=adamw', '--grad_clip=0', '--warmup=1']
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.03', '--eval_interval=1', *harmful]
    running = start(tmp_path, *flags, stdout=PIPE, stderr=PIPE)
    said, error = running.communicate(timeout=240)
    assert running.returncode == 1
    assert re.search(r'the loss is (nan|inf) by step \d+, learning rate \d', said), said
    assert 'Traceback' not in error, error
    if (tmp_path / 'state.pt').exists():
        for weight in last_weights(tmp_path).values():
            assert torch.isfinite(weight).all()


# Runs a script of ours in a process that can write no file longer than 20,000 bytes.
ON_A_FULL_DISK = '''
import resource
import runpy
import sys

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


@needs_file_limit
def test_a_full_disk_is_a_sentence_and_the_state_before_stays(demo, tmp_path):
    running = start(tmp_path, f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50',
                    '--eval_interval=20')
    wait_for((tmp_path / 'state.pt').exists, running)
    running.terminate()
    running.wait()
    before = (tmp_path / 'state.pt').read_bytes()

    words = [sys.executable, '-c', ON_A_FULL_DISK, str(ROOT / 'train.py'), '--init_from=resume',
             f'--out_dir={tmp_path}']
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert 'what was saved before is there still' in done.stderr, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / 'state.pt').read_bytes() == before
    assert not list(tmp_path.glob('*.part'))


def test_a_folder_that_vanishes_is_a_sentence(demo, tmp_path):
    out = tmp_path / 'out'
    elsewhere = tmp_path / 'elsewhere'
    running = start(out, f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50',
                    '--log_interval=1', stderr=PIPE)
    wait_for((out / 'state.pt').exists, running)
    out.rename(elsewhere)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 2
    assert error.count('\n') == 1, error
    assert 'what was saved before is there still' in error
    assert saved_step(elsewhere) > 0


def resident_kb(pid):
    """How much memory a process holds."""
    status = Path(f'/proc/{pid}/status').read_text()
    return int(re.search(r'VmRSS:\s+(\d+)', status)[1])


@long
@needs_proc
def test_memory_does_not_grow(demo, tmp_path):
    running = start(tmp_path, f'--data_dir={demo}', *SMALL, '--n_tokens=0.0512', '--epochs=20',
                    '--log_interval=100', '--eval_interval=100', stdout=PIPE)
    memory = {}
    for line in running.stdout:
        told = re.match(r'step ([\d,]+)/', line)
        if told:
            step = int(told[1].replace(',', ''))
            memory[step] = resident_kb(running.pid)
    assert running.wait() == 0
    assert max(memory) == 2000
    assert memory[1900] < 1.05 * memory[200], memory
