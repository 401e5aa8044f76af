"""Work on all cores: in order, a little at a time, and with every way it can end."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parts.errors import UserError
from parts.parallel import map_ordered

ROOT = Path(__file__).resolve().parent.parent


def slow_square(x):
    """Even numbers take longer, so that the results are ready in another order."""
    time.sleep(0.02 if x % 2 == 0 else 0)
    return x * x


@pytest.mark.parametrize('n', [0, 1, 2, 3, 50])
def test_results_come_in_the_order_of_the_items(n):
    assert list(map_ordered(slow_square, range(n))) == [x * x for x in range(n)]


def test_items_are_taken_only_as_they_are_needed():
    taken = []

    def numbers():
        for x in range(1000):
            taken.append(x)
            yield x

    results = map_ordered(slow_square, numbers())
    for n_results in range(1, 20):
        next(results)
        assert len(taken) <= n_results + 8  # as many as there are processes
    results.close()


def fail_at_3(x):
    if x == 3:
        raise ZeroDivisionError('three')
    return x


def refuse_3(x):
    if x == 3:
        raise UserError('three is not welcome')
    return x


def test_an_error_is_raised_where_the_results_are_read():
    results = map_ordered(fail_at_3, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError) as error:
        next(results)
    assert 'in fail_at_3' in error.value.__notes__[0]  # where it happened


def test_a_mistake_stays_one_sentence():
    with pytest.raises(UserError) as error:
        list(map_ordered(refuse_3, range(10)))
    assert str(error.value) == 'three is not welcome'
    assert not hasattr(error.value, '__notes__')


def die_at_3(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as a system does that is out of memory
    return x


def test_a_process_that_was_killed_is_missed():
    with pytest.raises(UserError, match='memory'):
        list(map_ordered(die_at_3, range(100)))


NEVER_READY = r"""
import os, time
from parts.parallel import map_ordered

def report(x):
    os.write(1, f'{os.getpid()}\n'.encode())  # at once, not between the halves of another
    time.sleep(0.01)

for _ in map_ordered(report, range(10 ** 9)):
    pass
"""


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f'/proc/{pid}/stat')
    return not stat.exists() or stat.read_text().split()[2] != 'Z'  # Z: ended, not yet reaped


@pytest.mark.skipif(sys.platform == 'win32', reason='signal 0 asks whether a process runs')
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(NEVER_READY)
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True,
                           env={**os.environ, 'PYTHONPATH': str(ROOT)})
    workers = {int(run.stdout.readline()) for _ in range(40)}
    run.kill()
    run.wait()
    end = time.time() + 10
    while any(is_running(pid) for pid in workers) and time.time() < end:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)
