"""The same work on all cores, item after item, in order, and never much of it in memory.

    items  →  process 0, 1, 2, 0, 1, 2, …  →  results, in the order of the items

Python threads share one interpreter, so processes do the work. Each holds one item at a time.
"""
import gc
import multiprocessing
import os
import signal
import traceback
from collections import deque
from contextlib import contextmanager

from parts.errors import UserError

MOST_PROCESSES = 8  # more would wait for the one that reads the items and writes the results


def count_cores():
    """How many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # on Linux fewer than there are, in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ordered(function, items):
    """Yield function(item) for every item, in order. Raises what function raises, and UserError.

    function, items and results travel between processes, so they are made of what pickle can take.
    """
    n_processes = min(count_cores(), MOST_PROCESSES)
    workers = []
    busy = deque()  # the longest busy first: its result is the next to come
    try:
        for item in items:
            if len(workers) < n_processes:
                worker = Worker(function)
                workers.append(worker)
                worker.send(item)
                busy.append(worker)
            else:
                worker = busy.popleft()
                result = worker.receive()
                worker.send(item)
                busy.append(worker)
                yield result
        while busy:
            yield busy.popleft().receive()
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process that computes function(item) for one item after the other."""

    def __init__(self, function):
        self.connection, its_connection = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=work, args=(function, self.connection, its_connection), daemon=True)
        with signals_ignored():
            self.process.start()
        its_connection.close()

    def send(self, item):
        try:
            self.connection.send(item)
        except OSError:
            self.lost()

    def receive(self):
        try:
            succeeded, result = self.connection.recv()
        except (EOFError, OSError):
            self.lost()
        if not succeeded:
            raise result
        return result

    def lost(self):
        raise UserError('a process ended before its work was done; is there enough memory?')

    def stop(self):
        """End the process, whatever it does. It has opened no files."""
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def signals_ignored():
    """A process that is started here ignores Ctrl-C, which a terminal sends to it too."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def work(function, parents_connection, connection):
    """The life of a worker. It ends by stop(), or when its parent has ended."""
    gc.disable()  # a tenth of the time went into looking for cycles, and batches have none
    parents_connection.close()  # as long as a copy is open here, the end of the parent goes unseen
    try:
        while True:
            item = connection.recv()
            try:
                answer = (True, function(item))
            except Exception as error:
                if not isinstance(error, UserError):
                    error.add_note(traceback.format_exc())  # it happened here; it is raised there
                answer = (False, error)
            connection.send(answer)
    except (EOFError, OSError):
        return
