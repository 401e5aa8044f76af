"""What machines and people do to a run: killed, asked to stop, left by a process, given a full disk or a damaged file. Nothing is lost.

`python -m pytest -m long` runs the long forms: fifty kills a run, and two thousand steps under the eye of the memory meter.
"""
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, last_weights, log, run, same

def kill_all(word):
    """SIGKILL every process with this word on its command line: torchrun's workers outlive torchrun when it is killed."""
    for _ in range(2):
        for line in Path('/proc').glob('[0-9]*/cmdline'):
            try:
                if str(word).encode() in line.read_bytes():
                    os.kill(int(line.parent.name), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass
        time.sleep(0.5)


def start(folder, *flags, nproc=0, **popen):
    """A training run, not waited for, in a process group of its own."""
    python = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={nproc}'] if nproc else [sys.executable]
    return subprocess.Popen([*python, str(ROOT / 'train.py'), *flags, f'--out_dir={folder}'], cwd=ROOT, start_new_session=True, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'}, **{'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL, **popen})


def wait_for(what, running, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.02)


def saved(folder):
    """When state.pt was written; 0 where there is none, also for the moment in which a new one takes its place."""
    try:
        return (folder / 'state.pt').stat().st_mtime_ns
    except FileNotFoundError:
        return 0


long = pytest.mark.long


@pytest.mark.parametrize('arch, nproc, kills', [('decoder', 0, 1), ('ffn', 0, 1), ('decoder', 2, 1)] + [
    pytest.param(*case, 50, marks=long) for case in (('decoder', 0), ('ffn', 0), ('decoder', 2))])
def test_killed_and_resumed_is_never_having_stopped(arch, nproc, kills, demo, tmp_path):
    """Killed at random instants of a run that saves at every second step, so that many fall into a save."""
    epochs = 1 + kills // 25
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.06', f'--epochs={epochs}', '--dropout=0.1', '--micro_batch=2', '--eval_interval=2', '--log_interval=10', '--eval_tokens=0.002']
    run('train.py', *flags, f'--out_dir={tmp_path / "whole"}', nproc=nproc, timeout=900)
    broken, chance, at = tmp_path / 'broken', random.Random(0), set()
    for kill in range(kills):
        begun = any((broken / name).exists() for name in ('state.pt', 'state.before.pt'))
        running = start(broken, *(['--init_from=resume'] if begun else flags), nproc=nproc)
        before = saved(broken)
        wait_for(lambda: saved(broken) not in (0, before) or running.poll() is not None, running)
        time.sleep(chance.random() * 0.1)
        kill_all(broken)
        running.wait()
        at.add(torch.load(broken / ('state.pt' if (broken / 'state.pt').exists() else 'state.before.pt'), weights_only=True)['step'])
    assert 0 < min(at) and len(at) > 0.8 * kills and max(at) < 117 * epochs
    run('train.py', '--init_from=resume', f'--out_dir={broken}', nproc=nproc, timeout=900)
    assert same(last_weights(tmp_path / 'whole'), last_weights(broken))
    assert (tmp_path / 'whole/model.safetensors').read_bytes() == (broken / 'model.safetensors').read_bytes()
    strip = lambda folder: [{k: v for k, v in r.items() if k != 'seconds'} for r in log(folder)]
    assert strip(tmp_path / 'whole') == strip(broken)


@pytest.mark.parametrize('nproc, number', [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(nproc, number, demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50', '--log_interval=5']
    running = start(tmp_path, *flags, nproc=nproc, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in running.stdout:
        if line.startswith('step'):
            break
    second = run('train.py', *flags, f'--out_dir={tmp_path}', ok=False).stderr
    assert 'another run is writing' in second or 'already holds a run' in second
    os.killpg(running.pid, number)  # as a terminal does: torchrun hears it too, and tells its processes again
    said, error = running.communicate(timeout=60)
    assert running.returncode and '--init_from=resume' in said and 'train.py", line' not in error, error
    assert nproc or running.returncode == 128 + number
    assert torch.load(tmp_path / 'state.pt', weights_only=True)['step'] == int(log(tmp_path)[-1]['step']) > 0


def test_asked_twice_it_stops_at_once(demo, tmp_path):
    running = start(tmp_path, f'--data_dir={demo}', *SMALL, '--d_model=256', '--n_layers=8', '--batch_size=900', '--micro_batch=1', stdout=subprocess.PIPE)
    for line in running.stdout:
        if ' steps of ' in line:
            break
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert running.poll() is None, 'one step was meant to take longer'
    running.send_signal(signal.SIGINT)
    assert running.wait(5) == 130


def test_where_one_process_dies_the_others_end_and_fewer_go_on(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.03', '--eval_interval=5', '--lr=1e-3', '--log_interval=5']
    run('train.py', *flags, f'--out_dir={tmp_path / "whole"}', nproc=2)
    for nproc, then in ((2, 0), (0, 2)):
        folder = tmp_path / f'from{nproc}'
        running = start(folder, *flags, nproc=nproc, stderr=subprocess.PIPE)
        wait_for((folder / 'state.pt').exists, running)
        victim = next(int(p.parent.name) for p in Path('/proc').glob('[0-9]*/environ')
                      if p.parent.name != str(running.pid) and readable(p) and f'--out_dir={folder}' in (p.parent / 'cmdline').read_text() and 'RANK=1\0' in p.read_text()) if nproc else running.pid
        os.kill(victim, signal.SIGKILL)
        _, error = running.communicate(timeout=60)
        assert running.returncode and (not nproc or 'SIGKILL' in error and 'another process has ended' in error and 'train.py", line' not in error), error
        run('train.py', '--init_from=resume', f'--out_dir={folder}', nproc=then)
        for a, b in zip(log(tmp_path / 'whole'), log(folder), strict=True):
            assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)


def readable(path):
    try:
        return bool(path.read_text())
    except OSError:
        return False


def test_a_damaged_state_is_seen_and_the_one_before_used(models, tmp_path):
    for name in ('state.pt', 'state.before.pt', 'model.safetensors', 'log.csv'):
        shutil.copy(models / 'decoder' / name, tmp_path)
    state = bytearray((tmp_path / 'state.pt').read_bytes())
    state[len(state) // 2] ^= 1
    (tmp_path / 'state.pt').write_bytes(state)
    done = run('train.py', f'--out_dir={tmp_path}', '--init_from=resume')
    assert 'state.pt is damaged' in done.stdout and same(last_weights(tmp_path), last_weights(models / 'decoder'))
    for name in ('state.pt', 'state.before.pt'):
        (tmp_path / name).write_bytes(state[:len(state) // 2])
    assert 'holds no state.pt that could be resumed' in run('train.py', f'--out_dir={tmp_path}', '--init_from=resume', ok=False).stderr


def test_other_data_under_a_run_is_noticed(demo, models, tmp_path):
    shutil.copytree(demo, tmp_path / 'demo')
    shutil.copytree(models / 'decoder', tmp_path / 'out')
    state = torch.load(tmp_path / 'out/state.pt', weights_only=True)
    text = (tmp_path / 'demo/train.txt').read_text('utf-8').splitlines(keepends=True)
    (tmp_path / 'demo/train.txt').write_text(''.join(reversed(text)), 'utf-8')
    run('prepare.py', f'--data_dir={tmp_path / "demo"}', f'--model_name={models / "decoder"}')
    assert state['settings']['data_dir'] == str(demo)
    error = run('train.py', '--init_from=resume', f'--out_dir={tmp_path / "out"}', f'--data_dir={tmp_path / "demo"}', ok=False).stderr
    assert 'was started with data_dir' in error
    state['settings']['data_dir'] = str(tmp_path / 'demo')
    rewrite(tmp_path / 'out/state.pt', state)
    assert 'is not what the run' in run('train.py', '--init_from=resume', f'--out_dir={tmp_path / "out"}', ok=False).stderr


def rewrite(path, state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue() + zlib.crc32(buffer.getvalue()).to_bytes(4))


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_nothing(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.03', '--eval_interval=1', '--optimizer=adamw', '--grad_clip=0', '--warmup=1']
    done = subprocess.run([sys.executable, str(ROOT / 'train.py'), *flags, f'--out_dir={tmp_path}', '--lr=1e19'], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1 and re.search(r'the loss is (nan|inf) by step \d+, learning rate \d', done.stdout) and 'Traceback' not in done.stderr, done.stderr
    if (tmp_path / 'state.pt').exists():
        assert all(torch.isfinite(w).all() for w in last_weights(tmp_path).values())


@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='no limit on the size of files here')
def test_a_full_disk_is_a_sentence_and_the_state_before_stays(demo, tmp_path):
    flags = [f'--data_dir={demo}', *SMALL, f'--out_dir={tmp_path}', '--n_tokens=0.06', '--epochs=50', '--eval_interval=20']
    running = subprocess.Popen([sys.executable, str(ROOT / 'train.py'), *flags], stdout=subprocess.DEVNULL)
    while not (tmp_path / 'state.pt').exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    running.wait()
    before = (tmp_path / 'state.pt').read_bytes()
    small = 'import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
    done = subprocess.run([sys.executable, '-c', small, str(ROOT / 'train.py'), '--init_from=resume', f'--out_dir={tmp_path}'], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and 'what was saved before is there still' in done.stderr and 'Traceback' not in done.stderr, done.stderr[-2000:]
    assert (tmp_path / 'state.pt').read_bytes() == before and not list(tmp_path.glob('*.part'))


def test_a_folder_that_vanishes_is_a_sentence(demo, tmp_path):
    running = start(tmp_path / 'out', f'--data_dir={demo}', *SMALL, '--n_tokens=0.06', '--epochs=50', '--log_interval=1', stderr=subprocess.PIPE)
    wait_for((tmp_path / 'out/state.pt').exists, running)
    os.rename(tmp_path / 'out', tmp_path / 'elsewhere')
    _, error = running.communicate(timeout=60)
    assert running.returncode == 2 and error.count('\n') == 1 and 'what was saved before is there still' in error
    assert torch.load(tmp_path / 'elsewhere/state.pt', weights_only=True)['step'] > 0


@long
def test_memory_does_not_grow(demo, tmp_path):
    running = start(tmp_path, f'--data_dir={demo}', *SMALL, '--n_tokens=0.0512', '--epochs=20', '--log_interval=100', '--eval_interval=100', stdout=subprocess.PIPE)
    seen = {}
    for line in running.stdout:
        if step := re.match(r'step ([\d,]+)/', line):
            seen[int(step[1].replace(',', ''))] = int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{running.pid}/status').read_text())[1])
    assert running.wait() == 0 and max(seen) == 2000 and seen[1900] < 1.05 * seen[200], seen
