"""Worker processes that read ahead, with pixels in shared memory.

Workers are plain Python processes: they import neither JAX nor the main script. Worker
`number % workers` does task `number`. Pixels are in one shared block with reused slots.
"""

import contextlib
import functools
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback

import numpy as np

from imagepiece_jax.common.signals import END_SIGNALS, blocked_signals
from imagepiece_jax.data.batches import Batches, Reader, parts_ahead
from imagepiece_jax.errors import InputError, RunError

# grain 0.2.18 was built in place of this pool and measured on two cores, with JPEGs of
# 500 x 375 in batches of 256. Images per CPU second: 0.89 and 0.89 times as many over
# 96 batches, 0.75 to 0.78 over 24. First batch: 3.5 to 4.4 s, here 0.8 to 1.0 s.
# Memory: twice as much. Its workers import JAX and the main script, and end at Ctrl-C.

MIN_TASKS = 16  # least tasks per worker process
SHARED = "/dev/shm"  # shared memory on Linux; a container may have little

# Usual causes of a worker's death, by signal.
_CAUSES = {
    "SIGKILL": ", often for lack of memory",
    "SIGBUS": f", often because {SHARED} is full (in a container, its shm-size)",
}


def read_ahead(batches: Batches, workers: int = 0, threads: int = 0) -> Reader:
    """Iterate over batches that processes read ahead; close() ends the processes.

    workers: processes, at most one for every 16 parts; 0: threads of this process
    threads: threads in each process; without processes, 0: read on demand
    Raises the errors of `Batches.read`, RunError for a dead process, and InputError for
        too little shared memory.
    """
    workers = _usable(batches, workers)
    if not workers:
        return batches.read(threads)
    slots = parts_ahead(batches, workers * max(threads, 1))
    size = batches.part_bytes
    return Reader(batches, Processes(batches.read_part, workers, threads, slots, size))


def shared_bytes(batches: Batches, workers: int, threads: int) -> int:
    """Shared memory for `read_ahead` in bytes; 0 without processes."""
    workers = _usable(batches, workers)
    if not workers:
        return 0
    return parts_ahead(batches, workers * max(threads, 1)) * batches.part_bytes


def _usable(batches, workers):
    """Reduce `workers` until every worker has enough tasks."""
    return min(workers, len(batches.steps) * batches.parts // MIN_TASKS)


class Processes:
    """Numbered tasks in processes, with pixels in `slots` slots of shared memory.

    Task n uses slot n % slots: it may start once the result of task n - slots is no
    longer needed.
    """

    def __init__(self, work, workers, threads, slots, max_bytes):
        self.tasks_at_a_time = workers * max(threads, 1)
        self._slots = slots
        self._max_bytes = max_bytes
        payload = pickle.dumps(work)  # once, into memory that all workers read
        size = slots * max_bytes + len(payload)
        check_space(size)
        self._arrived = {}
        self._workers = []
        # An unnamed file disappears even if all processes are killed.
        folder = SHARED if os.path.isdir(SHARED) else None
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
            self._memory[slots * max_bytes :] = payload
            arguments = (slots * max_bytes, max_bytes, max(threads, 1))
            for _ in range(workers):
                self._workers.append(_Worker(file.fileno(), *arguments))

    def submit(self, number):
        """Start a task; return a function that waits for its result."""
        worker = self._workers[number % len(self._workers)]
        try:
            pickle.dump((number, number % self._slots), worker.tasks)
            worker.tasks.flush()
        except OSError:
            raise worker.death() from None
        return functools.partial(self._result, number)

    def _result(self, number):
        """Wait for a task's result, and keep results that its worker sends earlier."""
        worker = self._workers[number % len(self._workers)]
        while number not in self._arrived:
            try:
                result_number, shape, result = pickle.load(worker.results)
            except (EOFError, OSError, pickle.UnpicklingError):
                raise worker.death() from None
            self._arrived[result_number] = shape, result
        shape, result = self._arrived.pop(number)
        if shape is None:
            raise result
        offset = number % self._slots * self._max_bytes
        pixels = np.ndarray(shape, np.uint8, self._memory, offset)
        return result._replace(pixels=pixels)

    def close(self):
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.close()
        self._memory = None


class _Worker:
    """A process running `_serve(memory, ..)`, with pipes to and from it."""

    def __init__(self, memory, *arguments):
        readable, writable = os.pipe()
        code = (
            "from imagepiece_jax.data import worker_pool; "
            f"worker_pool._serve({memory}, {writable}, *{arguments})"
        )
        path = os.pathsep.join(folder or os.curdir for folder in sys.path)
        try:
            # Signals stay blocked in the worker, which ends with its parent:
            # a stopping run needs batches until it has finished its step.
            with blocked_signals(*END_SIGNALS):
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],  # -P: no current folder
                    stdin=subprocess.PIPE,
                    pass_fds=(memory, writable),
                    env=os.environ | {"PYTHONPATH": path},
                )
        finally:
            os.close(writable)
        self.tasks = self.process.stdin
        self.results = os.fdopen(readable, "rb")

    def death(self):
        """RunError for a process that ended by itself."""
        status = self.process.wait()
        names = {-number: number.name for number in signal.Signals}
        cause = _CAUSES.get(names.get(status), "")
        return RunError(
            f"a worker process ended with status {status}{cause}; the same command "
            "resumes from the last checkpoint, also with fewer workers"
        )

    def close(self):
        self.process.wait()
        self.results.close()
        with contextlib.suppress(OSError):  # unwritten tasks
            self.tasks.close()


def check_space(size: int):
    """Raise InputError if less than `size` bytes of shared memory are free."""
    if not os.path.isdir(SHARED):
        return
    # Without this check a process would die when it writes.
    free = shutil.disk_usage(SHARED).free
    if free < size:
        raise InputError(
            f"{SHARED} has {free / 1e6:,.0f} MB free, but worker processes need "
            f"{size / 1e6:,.0f} MB; enlarge it (a container's shm-size), or read "
            "in threads with workers=0"
        )


def _serve(memory, results, payload, max_bytes, threads):
    """Run a worker process: read tasks from stdin, write results to a pipe."""
    memory = mmap.mmap(memory, 0)
    results = os.fdopen(results, "wb")
    receiving = threading.Lock()
    sending = threading.Lock()
    work = pickle.loads(memoryview(memory)[payload:])

    def serve():
        try:
            while True:
                with receiving:
                    number, slot = pickle.load(sys.stdin.buffer)
                done = number, *_done(work, number, memory, slot * max_bytes)
                with sending:
                    pickle.dump(done, results)
                    results.flush()
        except (EOFError, BrokenPipeError):  # the parent has ended
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    for _ in range(threads - 1):
        threading.Thread(target=serve).start()
    serve()


def _done(work, number, memory, offset):
    """(pixel shape, result without pixels), or (None, error that `work` raised)."""
    try:
        result = work(number, lambda shape: np.ndarray(shape, np.uint8, memory, offset))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error
    return result.pixels.shape, result._replace(pixels=None)
