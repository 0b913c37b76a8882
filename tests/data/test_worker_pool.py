import collections
import os
import pathlib
import re
import signal
import time
import types

import pytest

from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.worker_pool import read_ahead
from imagepiece_jax.errors import RunError
from tests.helpers import forked_processes
from tests.helpers.noise_images import Noise, assert_same
from tests.helpers.reading_tasks import train
from tests.helpers.refused_calls import refused


@pytest.fixture(autouse=True)
def _short_work(monkeypatch):
    monkeypatch.setattr(worker_pool, "MIN_TASKS", 1)


def proc_file(pid, name=""):
    """A process's file in Linux's /proc; elsewhere the test is skipped."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs Linux's /proc")
    return pathlib.Path(f"/proc/{pid}/{name}")


def child_workers(pid=None):
    pid = pid or os.getpid()
    children = proc_file(pid, f"task/{pid}/children").read_text().split()
    command_of_child = {c: proc_file(c, "cmdline").read_bytes() for c in children}
    return {int(c) for c in children if b"worker_pool" in command_of_child[c]}


def shared_mappings(pid="self"):
    """Shared memory, which must be nameless so that nothing stays behind."""
    maps = proc_file(pid, "maps").read_text()
    mappings = set(re.findall(r"/dev/shm/(?!sem\.)\S+.*", maps))
    assert all(line.endswith(" (deleted)") for line in mappings)
    return mappings


def wait_for_end(pids):
    deadline = time.monotonic() + 10
    while any(proc_file(pid).exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_worker_processes_change_no_batch_and_outlive_signals():
    """Ctrl-C and SIGTERM reach the whole group, but the run must finish its step.

    Workers import neither JAX nor the script, which saves half a second and 100 MB.
    """
    source = Noise(300, {7, 20})
    expected_source = Noise(300, {7, 20})
    batches = train(source, 60, workers=2, threads=2)
    batches_read = [next(batches)]
    started = child_workers()
    assert len(started) == 2 and shared_mappings()
    for pid in started:
        maps = proc_file(pid, "maps").read_text()
        assert "numpy" in maps and "jaxlib" not in maps and "sklearn" not in maps
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    batches_read += batches
    assert_same(batches_read, list(train(expected_source, 60)))
    assert source.unreadable == expected_source.unreadable != {}
    assert not child_workers() and not shared_mappings()


@pytest.mark.slow
def test_a_dead_worker_ends_the_run():
    batches = train(Noise(300), 10_000, workers=2)
    next(batches)
    started = child_workers()
    os.kill(min(started), signal.SIGKILL)
    with pytest.raises(RunError, match="status -9"):
        collections.deque(batches, maxlen=0)
    wait_for_end(started)
    assert not shared_mappings()


@pytest.mark.slow
def test_a_workers_error_is_the_main_processs():
    transform = Preprocessing(16, resize="none")
    source = Noise(100, size=8)
    batches = Batches(source=source, transform=transform, batch_size=40)
    reader = read_ahead(batches, workers=2)
    with refused("0.jpg", "8x8"):
        next(reader)
    assert not child_workers()


@pytest.mark.slow
def test_workers_end_with_a_killed_run():
    reader, writer = map(open, os.pipe(), "rw")
    with reader, writer:
        words = ["-m", "tests.helpers.reading_tasks"]
        running = forked_processes.fork(words, stdout=writer)
        try:
            assert reader.readline() == "\n"  # after its first batch
            started = child_workers(running.pid)
            assert len(started) == 2 and shared_mappings(running.pid)
        finally:
            running.kill()
        running.join(timeout=20)
    wait_for_end(started)


def test_too_little_shared_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(worker_pool, "SHARED_FOLDER", str(tmp_path))
    usage = types.SimpleNamespace(free=10**5)
    monkeypatch.setattr(worker_pool.shutil, "disk_usage", lambda folder: usage)
    with refused(tmp_path):
        train(Noise(300), 9, workers=1)
