"""Processes that do numbered tasks ahead, with pixels in shared memory.

Task `number` is done by worker `number % workers`.

Workers are plain Python processes that import neither JAX nor the script that is run.
Their pixels are in one block of shared memory, divided into slots that are reused.
grain 0.2.18 was built in their place and measured beside them on two cores, on JPEGs of
500 x 375 in batches of 256 (images a CPU second; first batch; memory): .89 and .89
times as many over 96 batches, .75 to .78 over 24, 3.5 to 4.4 s for .8 to 1.0 s, and
twice the memory. Its workers import JAX and the script that is run, and end at Ctrl-C.
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

from imagepiece_jax.common.signals import SIGNALS, blocked
from imagepiece_jax.data.batches import Batches, Reader, parts_ahead
from imagepiece_jax.errors import InputError, RunError

MIN_TASKS = 16  # tasks for each worker process, at least
SHARED = "/dev/shm"  # where Linux keeps shared memory; a container may have little

# Usual causes of the signals that end a worker.
_CAUSES = {
    "SIGKILL": ", often for lack of memory",
    "SIGBUS": f", often because {SHARED} is full (in a container, its shm-size)",
}


def read_ahead(batches: Batches, workers: int = 0, threads: int = 0) -> Reader:
    """Iterator over batches, which processes read ahead; its close() ends them.

    Processes end with this one, however it ends, and ignore Ctrl-C and SIGTERM.

    workers: number of processes, at most one for every 16 parts of batches. 0: threads
        of this process
    threads: number of threads in each process. 0 without processes: the calling thread
        reads on demand
    Raises what `Batches.read` raises; RunError where a process has died; InputError for
        too little shared memory.
    """
    workers = _usable(batches, workers)
    if not workers:
        return batches.read(threads)
    slots = parts_ahead(batches, workers * max(threads, 1))
    size = batches.part_bytes
    return Reader(batches, Processes(batches.read_part, workers, threads, slots, size))


def shared_bytes(batches: Batches, workers: int, threads: int) -> int:
    """Bytes of shared memory that `read_ahead` takes; 0 without processes."""
    workers = _usable(batches, workers)
    if not workers:
        return 0
    return parts_ahead(batches, workers * max(threads, 1)) * batches.part_bytes


def _usable(batches, workers):
    """At most `workers` processes, each with enough to do."""
    return min(workers, len(batches.steps) * batches.parts // MIN_TASKS)


class Processes:
    """Does tasks in processes, whose pixels are in `slots` slots of shared memory.

    Task n has slot n % slots: it may start when the result of task n - slots is no
    longer needed.
    """

    def __init__(self, work, workers, threads, slots, max_bytes):
        self.tasks_at_a_time = workers * max(threads, 1)
        self._slots = slots
        self._max_bytes = max_bytes
        payload = pickle.dumps(work)  # once, in memory that all of them read
        size = slots * max_bytes + len(payload)
        check_space(size)
        self._arrived = {}
        self._workers = []
        # A file without a name disappears even if all processes are killed.
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
        """Wait for the result of a task; others of its worker may arrive before it."""
        worker = self._workers[number % len(self._workers)]
        while number not in self._arrived:
            try:
                other, shape, result = pickle.load(worker.results)
            except (EOFError, OSError, pickle.UnpicklingError):
                raise worker.death() from None
            self._arrived[other] = shape, result
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
    """A process that runs `_serve(memory, ..)`, and the pipes to and from it.

    The process receives no signals: a run that stops still needs batches until it has
    finished its step.
    """

    def __init__(self, memory, *arguments):
        readable, writable = os.pipe()
        code = (
            "from imagepiece_jax.data import worker_pool; "
            f"worker_pool._serve({memory}, {writable}, *{arguments})"
        )
        path = os.pathsep.join(folder or os.curdir for folder in sys.path)
        try:
            with blocked(*SIGNALS):
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
        """The RunError for a process that has ended by itself."""
        status = self.process.wait()
        names = {-number: number.name for number in signal.Signals}
        cause = _CAUSES.get(names.get(status), "")
        return RunError(
            f"a process that reads images has ended with status {status}"
            f"{cause}; the same command resumes from the last "
            "checkpoint, with fewer workers, too"
        )

    def close(self):
        self.process.wait()
        self.results.close()
        with contextlib.suppress(OSError):  # what was not written yet
            self.tasks.close()


def check_space(size: int):
    """Raise InputError where less than `size` bytes of shared memory are free.

    Without this check a process would die when it writes.
    """
    if not os.path.isdir(SHARED):
        return
    free = shutil.disk_usage(SHARED).free
    if free < size:
        raise InputError(
            f"{SHARED} has {free / 1e6:,.0f} MB free, but reading in processes needs "
            f"{size / 1e6:,.0f} MB; give it more room (a container's shm-size), or "
            "workers=0, which are threads"
        )


def _serve(memory, results, payload, max_bytes, threads):
    """The program of a worker process: it reads tasks on stdin, and pipes results."""
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
    """(shape of the pixels, the rest of the result) or (None, what `work` raises)."""
    try:
        result = work(number, lambda shape: np.ndarray(shape, np.uint8, memory, offset))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error
    return result.pixels.shape, result._replace(pixels=None)
