"""Worker processes that read ahead, with pixels in shared memory.

Workers are plain Python processes: they import neither JAX nor the main script. Worker
`number % workers` does task `number`. Pixels are in one block of shared memory, whose
buffers are used again.
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
from collections.abc import Callable
from typing import Any

import numpy as np

from imagepiece_jax.common.signals import blocked_signals
from imagepiece_jax.data.batches import BatchChunk, Batches, BatchReader
from imagepiece_jax.errors import InputError, RunError

# grain 0.2.18 was built in place of this pool and measured on two cores, with JPEGs of
# 500 x 375 in batches of 256. Images per CPU second: 0.89 and 0.89 times as many over
# 96 batches, 0.75 to 0.78 over 24. First batch: 3.5 to 4.4 s, here 0.8 to 1.0 s.
# Memory: twice as much. Its workers import JAX and the main script, and end at Ctrl-C.

MIN_TASKS = 16  # least tasks per worker process
SHARED_FOLDER = "/dev/shm"  # shared memory on Linux; a container may have little


def read_ahead(batches: Batches, workers: int = 0, threads: int = 0) -> BatchReader:
    """Iterate over batches that processes read ahead; close() ends the processes.

    workers: processes, at most one for MIN_TASKS chunks; 0: threads of this process
    threads: threads in each process; without processes, 0: read on demand
    Raises the errors of `Batches.read_batches`, RunError for a dead process, and
        InputError for too little shared memory.
    """
    workers = min(workers, batches.total_chunks // MIN_TASKS)
    if not workers:
        return batches.read_batches(threads)
    return BatchReader(batches, ProcessTasks(batches, workers, max(threads, 1)))


class ProcessTasks:
    """Numbered tasks in processes, with pixels in buffers of shared memory.

    Task n uses buffer n % buffers: it may start once the result of task n - buffers is
    no longer needed.

    num_threads: threads in each process
    """

    def __init__(self, batches: Batches, num_workers: int, num_threads: int) -> None:
        self.tasks_at_a_time = num_workers * num_threads
        self._num_buffers = batches.max_buffered_chunks(self.tasks_at_a_time)
        self._buffer_bytes = batches.chunk_bytes
        # Pickled once, for all workers to read.
        pickled_function = pickle.dumps(batches.read_chunk)
        function_start = self._num_buffers * self._buffer_bytes
        memory_bytes = function_start + len(pickled_function)
        self._early_results = {}  # {task number: [pixel shape, chunk] or [None, error]}
        self._workers = []
        folder = None  # the system's folder of temporary files
        if os.path.isdir(SHARED_FOLDER):
            _check_shared_memory(memory_bytes)
            folder = SHARED_FOLDER
        # An unnamed file disappears even if all processes are killed.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(memory_bytes)
            # None once the pool is closed.
            self._memory: mmap.mmap | None = mmap.mmap(file.fileno(), memory_bytes)
            self._memory[function_start:] = pickled_function
            serve_arguments = (function_start, self._buffer_bytes, num_threads)
            for _ in range(num_workers):
                self._workers.append(_Worker(file.fileno(), *serve_arguments))

    def submit_task(self, task_number: int) -> Callable[[], BatchChunk]:
        """Start a task; return a function that waits for its result."""
        worker = self._workers[task_number % len(self._workers)]
        try:
            buffer_index = task_number % self._num_buffers
            pickle.dump((task_number, buffer_index), worker.task_stream)
            worker.task_stream.flush()
        except OSError:
            raise worker.death_error() from None
        return functools.partial(self._wait_for_result, task_number)

    def _wait_for_result(self, task_number):
        """Wait for a task's result, and keep results that its worker sends earlier."""
        worker = self._workers[task_number % len(self._workers)]
        while task_number not in self._early_results:
            try:
                arrived_number, *result = pickle.load(worker.result_stream)
            except (EOFError, OSError, pickle.UnpicklingError):
                raise worker.death_error() from None
            self._early_results[arrived_number] = result
        pixel_shape, chunk_or_error = self._early_results.pop(task_number)
        if pixel_shape is None:  # `read_chunk` has raised
            raise chunk_or_error
        offset = task_number % self._num_buffers * self._buffer_bytes
        pixels = np.ndarray(pixel_shape, np.uint8, self._memory, offset)
        return chunk_or_error._replace(pixels=pixels)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.close()
        # Not `mmap.close`, which would unmap it under a chunk's pixels in use.
        self._memory = None


class _Worker:
    """A process running `_serve_tasks`, with pipes to and from it."""

    def __init__(self, memory_fd, *serve_arguments):
        read_end, write_end = os.pipe()
        code = (
            "from imagepiece_jax.data import worker_pool; "
            f"worker_pool._serve_tasks({memory_fd}, {write_end}, *{serve_arguments})"
        )
        # "" in sys.path is the current folder, and in PYTHONPATH nothing.
        python_path = os.pathsep.join(folder or os.curdir for folder in sys.path)
        try:
            # Signals stay blocked in the worker, which ends with its parent:
            # a stopping run needs batches until it has finished its step.
            with blocked_signals():
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],  # -P: no current folder
                    stdin=subprocess.PIPE,
                    pass_fds=(memory_fd, write_end),
                    env=os.environ | {"PYTHONPATH": python_path},
                )
        finally:
            os.close(write_end)  # the pipe ends with the worker, which has a copy
        self.process = process
        self.task_stream: Any = process.stdin
        self.result_stream = os.fdopen(read_end, "rb")

    def death_error(self):
        """RunError for a process that ended by itself."""
        status = self.process.wait()
        cause = ", often for lack of memory" if status == -signal.SIGKILL else ""
        return RunError(
            f"a worker process ended with status {status}{cause}; the same command "
            "resumes from the last checkpoint, also with fewer workers"
        )

    def close(self):
        self.process.wait()
        self.result_stream.close()
        with contextlib.suppress(OSError):  # of tasks that nobody will read
            self.task_stream.close()


def _check_shared_memory(needed_bytes):
    """Refuse too little shared memory: a process would die when it writes."""
    free_bytes = shutil.disk_usage(SHARED_FOLDER).free
    if free_bytes < needed_bytes:
        sizes = f"{free_bytes / 1e6:,.0f} of {needed_bytes / 1e6:,.0f} MB"
        raise InputError(
            f"{SHARED_FOLDER} has {sizes} that workers need; enlarge it (a container's "
            "shm-size), or set workers=0"
        )


def _serve_tasks(memory_fd, result_fd, function_start, buffer_bytes, threads):
    """Run a worker process: read tasks from stdin, write results to a pipe."""
    memory = mmap.mmap(memory_fd, 0)  # 0: the whole file
    result_stream = os.fdopen(result_fd, "wb")
    # Threads share both pipes, and a message is more than one read or write.
    receive_lock = threading.Lock()
    send_lock = threading.Lock()
    read_chunk = pickle.loads(memoryview(memory)[function_start:])

    def serve_until_end():
        try:
            while True:
                with receive_lock:
                    task_number, buffer_index = pickle.load(sys.stdin.buffer)
                offset = buffer_index * buffer_bytes
                array_options = {"buffer": memory, "offset": offset, "dtype": np.uint8}
                allocate = functools.partial(np.ndarray, **array_options)
                try:
                    chunk = read_chunk(task_number, allocate)
                    result = chunk.pixels.shape, chunk._replace(pixels=None)
                except Exception as error:
                    error.add_note(traceback.format_exc())  # pickle drops tracebacks
                    result = None, error
                with send_lock:
                    pickle.dump((task_number, *result), result_stream)
                    result_stream.flush()
        # `os._exit` ends the process from any of its threads.
        except (EOFError, BrokenPipeError):  # the parent has ended
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    for _ in range(threads - 1):
        threading.Thread(target=serve_until_end).start()
    serve_until_end()
