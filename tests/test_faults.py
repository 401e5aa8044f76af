"""What machines and people do to a run, and that nothing is lost.

Runs are killed, asked to stop, left by one of their processes, moved, given a full disk or a
damaged file. `python -m pytest -m long` runs the long forms: fifty kills a run, four processes, and
two thousand steps while the memory of the process is measured.
"""
import contextlib
import errno
import random
import re
import shutil
import signal
import time
from functools import partial

import psutil
import pytest
import torch
from conftest import (
    NO_SUCH_GPU,
    SMALL,
    end,
    killed_before,
    last_weights,
    log,
    run,
    run_ranks,
    same,
)

from parts import checkpoint as run_files
from parts.checkpoint import atomic_write, has_checkpoint, load_checkpoint, save_checkpoint
from parts.errors import UserError

long = pytest.mark.long
# a run that ends some time after a test that stops it
ENDLESS = [*SMALL, '--n_tokens=0.06', '--epochs=50', '--log_interval=5']


def wait_for(condition, running, seconds=120):
    """Wait until condition() is true; a run that ends before that fails the test."""
    latest = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, 'the run has ended'
        assert time.monotonic() < latest, 'waited in vain'
        time.sleep(0.02)


def read_until(pattern, stream):
    """Read lines of the stream, up to the first in which the pattern is found."""
    for line in stream:
        if re.search(pattern, line):
            return
    pytest.fail(f'{pattern!r} was never said')


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


def assert_same_run(folder, expected):
    """To the last bit: the last weights, the best model, the log but for its clock."""
    assert same(last_weights(folder), last_weights(expected))
    best = (expected / 'model.safetensors').read_bytes()
    assert (folder / 'model.safetensors').read_bytes() == best
    assert log_without_seconds(folder) == log_without_seconds(expected)


# --- killed ---

def kill_after_a_save(running, folder, delay):
    """Wait for the next state.pt, or the end of the run, then delay seconds; then kill it."""
    def time_saved():
        with contextlib.suppress(FileNotFoundError):  # while a new one takes its place
            return (folder / 'state.pt').stat().st_mtime_ns
        return before

    before = 0
    before = time_saved()
    wait_for(lambda: time_saved() != before or running.poll() is not None, running)
    time.sleep(delay)
    end(running)


@pytest.mark.parametrize('arch, nproc, kills', [
    ('decoder', 2, 1),
    pytest.param('ffn', 0, 1, marks=long),
    pytest.param('decoder', 4, 3, marks=long),
    pytest.param('decoder', 0, 50, marks=long),
    pytest.param('ffn', 0, 50, marks=long),
    pytest.param('decoder', 2, 50, marks=long),
])
def test_killed_and_resumed_is_never_having_stopped(arch, nproc, kills, demo, tmp_path, start):
    """The run saves at every second step and is killed at random, often in the middle of a save."""
    epochs = 1 + kills // 12
    flags = [f'--data_dir={demo}', *SMALL, f'--arch={arch}', '--n_tokens=0.02',
             f'--epochs={epochs}', '--dropout=0.1', '--micro_batch=2', '--eval_interval=2',
             '--log_interval=10', '--eval_tokens=0.001']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'

    def train(*flags):
        for done in run_ranks('train.py', *[flags] * max(1, nproc)):
            assert done.returncode == 0, done.stderr[-3000:]

    train(*flags, f'--out_dir={whole}')
    chance = random.Random(0)
    killed_at = set()
    for _ in range(kills):
        running = start('train.py', *flags, f'--out_dir={broken}', '--init_from=auto', nproc=nproc)
        kill_after_a_save(running, broken, delay=chance.random() * 0.1)
        killed_at.add(saved_step(broken))
    assert min(killed_at) > 0
    assert max(killed_at) < 39 * epochs
    assert len(killed_at) > 0.8 * kills

    train('--init_from=resume', f'--out_dir={broken}')
    assert_same_run(broken, whole)


def test_killed_in_its_first_save_the_same_command_begins_again(demo, tmp_path):
    flags = ['train.py', f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--eval_interval=5',
             '--init_from=auto']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    run(*flags, f'--out_dir={whole}')
    run(*flags, f'--out_dir={broken}', env=killed_before('state.new.pt', tmp_path),
        status=-signal.SIGKILL)      # its model is saved by then
    first_model = (broken / 'model.safetensors').read_bytes()
    (broken / 'model.safetensors.4242.part').write_text('half')     # of another kill
    run(*flags, f'--out_dir={broken}')
    assert not list(broken.glob('*.part'))
    assert_same_run(broken, whole)
    assert (broken / 'model.1.safetensors').read_bytes() == first_model


def test_where_one_process_dies_the_others_end_and_one_goes_on(demo, tmp_path, start):
    flags = [f'--data_dir={demo}', *SMALL, '--n_tokens=0.02', '--eval_interval=5', '--lr=1e-3',
             '--log_interval=5']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    run('train.py', *flags, f'--out_dir={whole}')
    running = start('train.py', *flags, f'--out_dir={broken}', nproc=2)
    wait_for((broken / 'state.pt').exists, running)
    for worker in psutil.Process(running.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.send_signal(signal.SIGKILL if worker.environ().get('RANK') == '1' else 0)
    _, error = running.communicate(timeout=120)
    assert running.returncode != 0
    assert 'SIGKILL' in error, error
    # once in some fifty times gloo does not see it, and torchrun ends the other after half a minute
    assert 'another process has ended' in error or 'forcefully exiting' in error, error
    assert 'train.py", line' not in error, error  # no traceback
    run('train.py', '--init_from=resume', f'--out_dir={broken}')
    for a, b in zip(log(broken), log(whole), strict=True):
        assert float(a['train_loss']) == pytest.approx(float(b['train_loss']), rel=1e-3)


# --- asked to stop ---

# as a shell does for what it starts with `&`, and nohup
ignore_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize('nproc, number', [(0, signal.SIGTERM), (2, signal.SIGINT)])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(nproc, number, demo, tmp_path, start):
    """Also where SIGINT was ignored as it began."""
    out = tmp_path / 'two words'
    running = start('train.py', f'--data_dir={demo}', *ENDLESS, f'--out_dir={out}', nproc=nproc,
                    preexec_fn=ignore_interrupts)
    read_until('^step', running.stdout)
    running.send_signal(number)
    said, error = running.communicate(timeout=120)
    assert running.returncode == (1 if nproc else 128 + number)  # torchrun has a status of its own
    assert f"--out_dir='{out}' --init_from=resume" in said       # to be pasted as it is
    assert 'train.py", line' not in error, error  # no traceback
    assert error.count('finishing this step, then saving') == 1
    last_step = int(log(out)[-1]['step'])
    assert last_step > 0
    assert saved_step(out) == last_step


def test_asked_twice_it_stops_at_once(demo, tmp_path, start):
    long_steps = ['--d_model=256', '--n_layers=8', '--batch_size=900', '--micro_batch=1']
    running = start('train.py', f'--data_dir={demo}', *SMALL, *long_steps, f'--out_dir={tmp_path}',
                    preexec_fn=ignore_interrupts)
    read_until(' steps of ', running.stdout)
    running.send_signal(signal.SIGINT)
    time.sleep(1.5)                               # sooner, it is taken for torchrun's echo
    assert running.poll() is None, 'one step was meant to take longer'
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    assert not (tmp_path / 'state.pt').exists(), 'it did not leave in the middle of a step'


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(demo, tmp_path, start):
    flags = [f'--data_dir={demo}', *ENDLESS, f'--out_dir={tmp_path}', '--init_from=auto']
    first = start('train.py', *flags)
    read_until('^step', first.stdout)
    assert 'another process is writing to' in run('train.py', *flags, ok=False).stderr
    read_until('^step', first.stdout)
    first.terminate()
    said, _ = first.communicate(timeout=120)
    assert '--init_from=resume' in said
    assert saved_step(tmp_path) == int(log(tmp_path)[-1]['step'])


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_is_no_other_run(number, tmp_path, monkeypatch, capsys):
    def lockf(file, how):
        raise OSError(number, 'no locks')

    monkeypatch.setattr(run_files.fcntl, 'lockf', lockf)
    run_files.lock_folder(tmp_path)
    assert 'is on a disk that knows no locks (no locks)' in capsys.readouterr().out


def test_a_reader_that_has_read_enough_is_no_failure(demo, tmp_path, start):
    running = start('train.py', f'--data_dir={demo}', *ENDLESS, f'--out_dir={tmp_path}')
    read_until('^step', running.stdout)
    running.stdout.close()                        # as `| head` does
    running.stdout = None
    _, error = running.communicate(timeout=120)
    assert (running.returncode, error) == (0, '')
    assert load_checkpoint(tmp_path)['step'] > 0              # and nothing is lost


# --- what a run goes on with ---

@pytest.fixture
def unfinished(models, tmp_path):
    """A folder with what resuming the run in models/decoder needs, four steps before its end."""
    folder = tmp_path / 'unfinished'
    folder.mkdir()
    for name in ('model.safetensors', 'log.csv'):
        shutil.copy(models / 'decoder' / name, folder)
    shutil.copy(models / 'decoder/state.before.pt', folder / 'state.pt')
    return folder


def change_state(folder, settings=None, **facts):
    """Write state.pt anew with other settings of the run, {name: value}, or other facts of it."""
    state = load_checkpoint(folder)
    state['settings'].update(settings or {})
    save_checkpoint(folder, {**state, **facts})
    (folder / 'state.before.pt').unlink()


def test_auto_goes_on_where_there_is_a_run_and_ends_with_it(unfinished, models, demo):
    flags = [f'--out_dir={unfinished}', '--init_from=auto', f'--data_dir={demo}']
    run('train.py', *flags)
    assert_same_run(unfinished, models / 'decoder')
    assert 'is complete: 234 steps' in run('train.py', *flags).stdout


def test_the_device_of_a_run_that_goes_on_is_the_one_it_found(unfinished):
    """Unless another one is named."""
    change_state(unfinished, settings={'device': 'auto'}, device='cuda:9')
    flags = [f'--out_dir={unfinished}', '--init_from=resume']
    assert NO_SUCH_GPU in run('train.py', *flags, ok=False).stderr
    run('train.py', *flags, '--device=auto')


def test_the_format_of_a_run_that_goes_on_is_not_measured_again(unfinished):
    """A clock must not change the run."""
    change_state(unfinished, settings={'dtype': 'auto'}, dtype='bfloat16')
    said = run('train.py', f'--out_dir={unfinished}', '--init_from=resume').stdout
    assert 'in bfloat16' in said


def test_nor_is_what_was_given_up_tried_again(unfinished):
    """A run in float16 whose gradients were not finite went on in float32."""
    change_state(unfinished, settings={'dtype': 'float16', 'compile': 'true'}, dtype='float32')
    said = run('train.py', f'--out_dir={unfinished}', '--init_from=resume').stdout
    assert 'in float32 as asked, not compiled' in said


def test_a_run_may_go_on_in_float16(unfinished):
    """With a loss scale, which it had none of before."""
    flags = [f'--out_dir={unfinished}', '--init_from=resume', '--dtype=float16']
    said = run('train.py', *flags).stdout
    assert 'in float16' in said and 'best validation loss' in said


def test_a_run_keeps_its_vocabulary_whatever_becomes_of_the_data(demo, tmp_path, start):
    data, out = shutil.copytree(demo, tmp_path / 'data'), tmp_path / 'out'
    running = start('train.py', f'--data_dir={data}', *ENDLESS, '--eval_interval=20',
                    '--show=true', f'--out_dir={out}')
    wait_for((out / 'state.pt').exists, running)
    shutil.rmtree(data)
    step = saved_step(out)
    wait_for(lambda: saved_step(out) > step, running)
    running.terminate()
    said, error = running.communicate(timeout=120)
    assert '--init_from=resume' in said, error
    name = 'tokenizer.model'
    assert (out / name).read_bytes() == (demo / 'tokenizer' / name).read_bytes()


def test_data_that_were_moved_are_named_and_the_run_goes_on(unfinished, models, demo, tmp_path):
    moved = shutil.copytree(demo, tmp_path / 'moved')
    change_state(unfinished, settings={'data_dir': str(tmp_path / 'gone')})
    flags = [f'--out_dir={unfinished}', '--init_from=resume']
    assert f'{tmp_path / "gone"}' in run('train.py', *flags, ok=False).stderr
    run('train.py', *flags, f'--data_dir={moved}')
    assert same(last_weights(unfinished), last_weights(models / 'decoder'))


def test_other_data_under_a_run_are_noticed(unfinished, tmp_path):
    run('prepare.py', '--source=demo', f'--output_dir={tmp_path / "other"}', '--n_reviews=2500',
        '--vocab_size=600')
    error = run('train.py', '--init_from=resume', f'--out_dir={unfinished}',
                f'--data_dir={tmp_path / "other"}', ok=False).stderr
    assert 'holds other tokens than the run in' in error
    assert '--data_dir=' in error


# --- damaged files ---

def test_a_damaged_state_is_seen_and_the_one_before_used(unfinished, models):
    state = bytearray((models / 'decoder/state.pt').read_bytes())
    state[len(state) // 2] ^= 1  # one bit
    (unfinished / 'state.pt').rename(unfinished / 'state.before.pt')
    (unfinished / 'state.pt').write_bytes(state)
    said = run('train.py', f'--out_dir={unfinished}', '--init_from=resume').stdout
    assert 'state.pt is damaged' in said
    assert_same_run(unfinished, models / 'decoder')


def test_two_damaged_states_are_a_sentence(unfinished):
    state = (unfinished / 'state.pt').read_bytes()
    for name in ('state.pt', 'state.before.pt'):
        (unfinished / name).write_bytes(state[:len(state) // 2])
    error = run('train.py', f'--out_dir={unfinished}', '--init_from=resume', ok=False).stderr
    assert 'holds no state.pt that could be resumed' in error


@pytest.mark.parametrize('damage', [
    lambda text: ('\ufeff' + text).encode(),                   # saved as 'CSV UTF-8'
    lambda text: text.replace(',', ';').encode(),              # saved in a country of commas
    lambda text: text.replace('step', '걸음').encode('cp949'),
    lambda text: text[:200].encode() + bytes(500),             # the power failed
    lambda text: text.encode() + b'23',                        # and later
], ids=['BOM', 'semicolons', 'cp949', 'NULs', 'cut'])
def test_a_log_that_cannot_be_read_is_set_aside_and_the_run_goes_on(unfinished, models, damage):
    damaged = damage((unfinished / 'log.csv').read_text())
    (unfinished / 'log.csv').write_bytes(damaged)
    (unfinished / 'log.1.csv').write_text('of another day')
    said = run('train.py', f'--out_dir={unfinished}', '--init_from=resume').stdout
    assert 'a new one begins' in said
    assert (unfinished / 'log.2.csv').read_bytes() == damaged
    assert (unfinished / 'log.1.csv').read_text() == 'of another day'
    assert log_without_seconds(unfinished) == log_without_seconds(models / 'decoder')[-1:]


# --- numbers, disks, memory ---

def test_a_loss_that_is_no_number_ends_the_run_and_spoils_nothing(unfinished):
    change_state(unfinished, settings={'lr': 1e30})
    before = {path: path.read_bytes() for path in unfinished.glob('*.[ps]*t*')}
    done = run('train.py', f'--out_dir={unfinished}', '--init_from=resume', status=1)
    assert re.search(r'the loss is NaN or infinite by step \d+, learning rate \d', done.stdout)
    assert 'keeps the last good state' in done.stdout
    assert done.stderr == ''
    assert {path: path.read_bytes() for path in before} == before


def test_where_nothing_was_saved_nothing_good_is_claimed(demo, tmp_path):
    said = run('train.py', f'--data_dir={demo}', *SMALL, '--n_tokens=0.01', '--lr=1e30',
               f'--out_dir={tmp_path}', status=1).stdout
    assert 'the loss is NaN or infinite' in said
    assert 'good state' not in said
    assert not has_checkpoint(tmp_path)


# The process can write no file longer than 20,000 bytes.
ON_A_FULL_DISK = '''
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
'''


@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='no limit on the size of files here')
def test_a_full_disk_is_a_sentence_and_the_state_before_stays(unfinished, tmp_path):
    before = (unfinished / 'state.pt').read_bytes()
    (tmp_path / 'sitecustomize.py').write_text(ON_A_FULL_DISK)
    error = run('train.py', '--init_from=resume', f'--out_dir={unfinished}', ok=False,
                env={'PYTHONPATH': str(tmp_path)}).stderr
    assert 'cannot be written: File too large; what was there before is there still' in error
    assert (unfinished / 'state.pt').read_bytes() == before
    assert not list(unfinished.glob('*.part'))


def test_a_folder_that_vanishes_is_a_sentence(demo, tmp_path, start):
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    running = start('train.py', f'--data_dir={demo}', *ENDLESS, '--log_interval=1',
                    '--eval_interval=20', f'--out_dir={out}')
    wait_for((out / 'state.pt').exists, running)
    out.rename(elsewhere)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 2
    assert error.count('\n') == 1, error
    assert 'what was there before is there still' in error
    assert saved_step(elsewhere) > 0


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write('half of the ne')
        raise ZeroDivisionError
    with pytest.raises(UserError, match='cannot be written: '), atomic_write(path) as file:
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert path.read_text() == 'old'
    assert [found.name for found in tmp_path.iterdir()] == ['file']


@long
def test_memory_does_not_grow(demo, tmp_path, start):
    running = start('train.py', f'--data_dir={demo}', *SMALL, '--n_tokens=0.0512', '--epochs=20',
                    '--log_interval=100', '--eval_interval=100', f'--out_dir={tmp_path}')
    memory = {}
    for line in running.stdout:
        step = re.match(r'step ([\d,]+)/', line)
        if step:
            number = int(step[1].replace(',', ''))
            memory[number] = psutil.Process(running.pid).memory_info().rss
    assert running.wait() == 0
    assert max(memory) == 2000
    assert memory[1900] < 1.05 * memory[200], memory
