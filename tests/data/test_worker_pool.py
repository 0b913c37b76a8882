"""Prefetching: the same arrays with any workers, and a clean end in every case."""

import collections
import contextlib
import itertools
import os
import pathlib
import re
import signal
import sys
import time
import types

import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.worker_pool import read_ahead
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunData
from tests.helpers import forked_processes, noise_images
from tests.helpers.noise_images import Noise, same, train_transform
from tests.helpers.reading_tasks import Filled, train
from tests.helpers.small_runs import configured


@pytest.fixture(autouse=True)
def _short_work(monkeypatch):
    monkeypatch.setattr(worker_pool, "MIN_TASKS", 1)


def proc(pid, name=""):
    """A file of Linux about a process; elsewhere the test is skipped."""
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs Linux's /proc")
    return pathlib.Path(f"/proc/{pid}/{name}")


def workers_of(pid):
    path = proc(pid, f"task/{pid}/children")
    return {int(child) for child in path.read_text().split() if is_worker(child)}


def is_worker(pid):
    return b"worker_pool" in proc(pid, "cmdline").read_bytes()


def workers():
    return workers_of(os.getpid())


def shared_memory(pid="self"):
    """Nameless, so that nothing can stay; without semaphores of other packages."""
    maps = proc(pid, "maps").read_text()
    found = set(re.findall(r"/dev/shm/(?!sem\.)\S+.*", maps))
    assert all(line.endswith(" (deleted)") for line in found)
    return found


def end(pids, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(proc(pid).exists() for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_processes_do_not_matter_and_outlive_signals():
    """Ctrl-C and SIGTERM reach the whole group: the run wants to finish its step.

    Workers import neither JAX nor the script: half a second and 100 MB of each.
    """
    source = Noise(300, {7, 20})
    expected = Noise(300, {7, 20})
    batches = train(source, 60, workers=2, threads=2)
    seen = [next(batches)]
    started = workers()
    assert len(started) == 2 and shared_memory()
    for pid in started:
        maps = proc(pid, "maps").read_text()
        assert "numpy" in maps and "jaxlib" not in maps and "sklearn" not in maps
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    seen += batches
    same(seen, list(train(expected, 60)))
    assert source.unreadable == expected.unreadable != {}
    assert not workers() and not shared_memory()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum, cause",
    [
        (signal.SIGKILL, ", often for lack of memory"),
        (signal.SIGBUS, r", often because /dev/shm is full \(in a container, its shm-"),
        (signal.SIGSEGV, "; the same command resumes from the last checkpoint"),
    ],
)
def test_a_process_that_dies_ends_the_run_with_a_sentence(signum, cause):
    batches = train(Noise(300), 10_000, workers=2)
    next(batches)
    started = workers()
    os.kill(min(started), signum)
    with pytest.raises(RunError, match=f"ended with status -{signum:d}{cause}"):
        collections.deque(batches, maxlen=0)
    assert end(started) and not shared_memory()


@pytest.mark.slow
def test_an_error_in_a_process_is_the_same_as_in_this_one():
    transform = Preprocessing(16, resize="none")
    message = "0.jpg: the image has 8x8 pixels and is not resized; scale it to"
    for count in (0, 2):
        source = Noise(100, size=8)
        batches = Batches(source=source, transform=transform, batch_size=40)
        reader = read_ahead(batches, count)
        with pytest.raises(InputError) as caught:
            next(reader)
        assert str(caught.value).startswith(message)
        with pytest.raises(StopIteration):
            next(reader)
    assert not workers()


@contextlib.contextmanager
def reading_forever(*words):
    """`tasks.read_forever` in a process after its first batch, and its output."""
    reader, writer = map(open, os.pipe(), "rw")
    with reader:
        with writer:
            command = [sys.executable, "-m", "tests.helpers.reading_tasks", *words]
            running = forked_processes.Process(command, stdout=writer, stderr=writer)
        try:
            assert reader.readline() == "\n"
            yield running, reader
        finally:
            running.kill()


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed():
    with reading_forever() as (running, _):
        started = workers_of(running.pid)
        assert len(started) == 2 and shared_memory(running.pid)
        running.kill()
        running.wait(timeout=20)
    assert end(started)


@pytest.mark.slow
def test_an_iterator_that_is_never_closed_does_not_disturb_the_end():
    with reading_forever("leave") as (running, output):
        assert running.wait(timeout=20) == 7
        assert output.read() == ""


@pytest.mark.slow
def test_evaluations_between_steps_change_no_batch():
    """While readers of the training wait, an evaluation has as many of its own."""
    sources = [Noise(300, {7, 20}), Noise(100, {4}, size=40)]
    options = {"transform": train_transform(24), "seed": 3, "repeats": 3}
    options |= {"batch_size": 40, "steps": range(2, 13)}
    training = Batches(source=sources[0], **options)
    evaluation = Batches(source=sources[1], transform=Preprocessing(48), batch_size=40)
    reader = read_ahead(training, 2, threads=2)
    evaluated = []
    trained = [next(reader)]
    started = workers()
    assert len(started) == 2
    for steps in (3, 5, 2):
        trained += itertools.islice(reader, steps)
        other = read_ahead(evaluation, 2, threads=2)
        found = [next(other)]
        assert started < workers() and len(workers()) == 4
        evaluated.append([*found, *other])
        assert workers() == started
    assert not [*reader]
    assert not workers()
    damaged = [dict(source.unreadable) for source in sources]
    for source in sources:
        source.unreadable.clear()
    same(trained, list(training.read_batches()))
    expected = list(evaluation.read_batches())
    for one in evaluated:
        same(one, expected)
    assert len(trained) == 11
    assert damaged == [source.unreadable for source in sources] != [{}, {}]


def own_memory():
    """MB of this process and its workers, without files that other programs map too."""
    total = 0
    for pid in {os.getpid(), *workers()}:
        text = proc(pid, "smaps_rollup").read_text()
        total += sum(map(int, re.findall(r"Pss_(?:Anon|Shmem): +(\d+)", text)))
    return total / 1e3


@pytest.mark.slow
def test_memory_does_not_grow():
    """Batches have 5 MB: one kept in each epoch would be 75 MB more at the end."""
    options = {"transform": train_transform(160), "workers": 2, "threads": 2}
    batches = noise_images.train_batches(Noise(64, size=64), 10_000, 64, **options)
    epochs = [own_memory() for _, _ in zip(range(40), batches, strict=False)]
    batches.close()
    assert epochs[0] > 20
    assert min(epochs[30:]) - min(epochs[10:20]) < 20, epochs


@pytest.mark.slow
@pytest.mark.parametrize("count, threads", [(0, 2), (1, 0), (3, 2)])
def test_slots_are_used_in_turn_and_never_while_they_are_read(count, threads):
    joined = []
    for group in read_ahead(Filled(40), count, threads):
        time.sleep(0.001 * (len(joined) % 5))
        joined.append(group)
    assert [len(group) for group in joined] == [3] * 40
    for number, pixels in enumerate(itertools.chain(*joined)):
        assert pixels.tolist() == [number % 200] * 5


def with_free(monkeypatch, free):
    usage = types.SimpleNamespace(free=free)
    monkeypatch.setattr(worker_pool.shutil, "disk_usage", lambda folder: usage)


def test_too_little_shared_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(worker_pool, "SHARED_FOLDER", str(tmp_path))
    with_free(monkeypatch, 2 * 10**6)
    monkeypatch.setattr(Filled, "chunk_bytes", 10**6)
    message = f"{tmp_path} has 2 MB free, but .* 9 MB; .*workers=0"
    with pytest.raises(InputError, match=message):
        read_ahead(Filled(9), workers=1)


def test_training_and_an_evaluation_have_room_together(monkeypatch, tmp_path):
    """Before the first step; 6 MB for training, of three groups, and 3 MB beside it."""
    monkeypatch.setattr(worker_pool, "SHARED_FOLDER", str(tmp_path))
    fields = {"data.workers": 1, "image_size": 100, "model.patch_size": 4}
    fields |= {"data.resize": "deit", "data.crop": "random_resized"}
    config = configured(fields, batch_size=64, eval_batch_size=32)
    data = RunData(RunConfig.from_config(config), Placement())
    training = data.train_batches(steps=range(data.length.steps))
    assert worker_pool.shared_bytes(training, 1, 1) == 3 * 64 * 100 * 100 * 3
    assert worker_pool.shared_bytes(data.val_batches, 1, 1) == 3 * 32 * 100 * 100 * 3
    needed = 3 * (64 + 32) * 100 * 100 * 3
    with_free(monkeypatch, needed)
    data.check_space()
    with_free(monkeypatch, needed - 1)
    with pytest.raises(InputError, match="9 MB free, but .* need 9 MB"):
        data.check_space()
