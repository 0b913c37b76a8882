"""Processes that read: the same arrays, and an end whatever happens."""

import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from imagepiece_jax.benchmark import input_ways
from imagepiece_jax.data import loader, readers
from imagepiece_jax.data.transforms import (
    CanvasTransform,
    EvalTransform,
    TrainTransform,
)
from imagepiece_jax.errors import InputError, RunError
from tests import runs, tars
from tests.command import start
from tests.data.noise import Noise, same

SHARED = pathlib.Path("/dev/shm")


@pytest.fixture(autouse=True)
def _short_work(monkeypatch):
    monkeypatch.setattr(readers, "WORTH", 1)


def train(source, stop, transform=None, **options):
    return loader.train_batches(
        source,
        transform or CanvasTransform(24),
        batch_size=40,
        seed=3,
        start_step=0,
        stop_step=stop,
        repeats=3,
        **options,
    )


def children():
    return {process.pid for process in multiprocessing.active_children()}


def shelves(pid="self"):
    """Names of the shared memory that a process has; others have theirs there too."""
    maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    return {SHARED / name for name in re.findall(r"psm_\w+", maps)}


def ends(pids, seconds=10):
    """Whether these processes are gone, or soon will be."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_processes_do_not_matter_and_outlive_signals():
    """Ctrl-C and SIGTERM reach the whole group: the run wants to finish its step."""
    before = children()
    source, alone = Noise(300, {7, 20}), Noise(300, {7, 20})
    batches = train(source, 60, workers=2, threads=2)
    seen = [next(batches)]
    workers = children() - before
    assert len(workers) == 2
    shared = shelves()
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    seen += batches
    same(seen, list(train(alone, 60)))
    assert not any(map(pathlib.Path.exists, shared))
    assert list(source.unreadable.names) == list(alone.unreadable.names) != []
    assert ends(workers)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_sentence():
    before = children()
    batches = train(Noise(300), 10_000, workers=2)
    next(batches)
    workers = children() - before
    os.kill(min(workers), signal.SIGKILL)
    told = "ended with status -9, often for lack of memory; the same command goes on"
    with pytest.raises(RunError, match=told):
        for _ in batches:
            pass
    assert ends(workers)


@pytest.mark.slow
def test_a_mistake_in_a_process_is_told_as_in_this_one():
    transform = EvalTransform(16, resize="none")
    told = "0.jpg: the image has 8x8 pixels and is used unresized: config."
    for workers in (0, 2):
        batches = loader.eval_batches(
            Noise(100, size=8), transform, batch_size=40, workers=workers
        )
        with pytest.raises(InputError) as caught:
            next(batches)
        assert str(caught.value).startswith(told)


READS_FOREVER = """
from tests.data import test_readers as tests
if __name__ == "__main__":
    batches = tests.train(tests.Noise(300), 10**6, workers=2)
    next(batches)
    print(*tests.children(), flush=True)
    for _ in batches:
        pass
"""


def reading_forever(folder):
    """The running READS_FOREVER, in a session of its own; it prints its readers."""
    script = folder / "reads.py"
    script.write_text(READS_FOREVER)
    return subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_processes_end_with_a_run_that_is_killed(tmp_path):
    with reading_forever(tmp_path) as running:
        workers = [int(pid) for pid in running.stdout.readline().split()]
        assert len(set(workers)) == 2
        running.kill()
    assert ends(workers)


LEAVES = """
import sys
from tests.data import test_readers as tests
if __name__ == "__main__":
    batches = tests.train(tests.Noise(300), 10**6, workers=2, threads=2)
    next(batches)
    print(*tests.shelves())
    sys.exit(7)
"""


@pytest.mark.slow
def test_an_iterator_that_nobody_closes_does_not_disturb_the_end(tmp_path):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    ended = start(script, PYTHONPATH=os.getcwd())
    assert (ended.status, ended.err) == (7, "")
    (shared,) = ended.out.split()
    assert not os.path.exists(shared)


@pytest.mark.slow
def test_nothing_stays_in_memory_when_all_are_killed_at_once(tmp_path):
    """As a scheduler or the kernel does, for lack of memory: nobody can clean up."""
    with reading_forever(tmp_path) as running:
        running.stdout.readline()
        (shared,) = shelves(running.pid)
        os.killpg(running.pid, signal.SIGKILL)
    assert not shared.exists()


TURNS = ((4, False), (3, True), (5, False), (3, True), (3, True), (2, False))


@pytest.mark.slow
@pytest.mark.parametrize("workers, threads", [(0, 0), (2, 2)])
def test_passes_that_take_turns_are_the_same_alone(workers, threads):
    """Training on canvases of 24 and evaluation of 16: images of two sizes."""
    sources = [Noise(300, {7, 20}), Noise(100, {4}, size=40)]
    options = dict(batch_size=40, seed=3, start_step=2, stop_step=13, repeats=3)
    training = loader.training(sources[0], CanvasTransform(24), **options)
    evaluation = loader.evaluation(sources[1], EvalTransform(48), batch_size=40)
    done, turns = 0, []
    for steps, evaluates in TURNS:
        turns.append((evaluation, 0, 3) if evaluates else (training, done, steps))
        done += 0 if evaluates else steps
    feed = loader.Feed(turns, workers, threads)
    batches, trained, evaluated, readers_seen = feed.batches(training), [], [], set()
    before = children()
    for steps, evaluates in TURNS:
        if evaluates:
            evaluated.append(list(feed.batches(evaluation)))
        else:
            trained += itertools.islice(batches, steps)
        readers_seen |= children() - before
    feed.close()
    assert len(readers_seen) == workers  # none is started for an evaluation
    names = [list(source.unreadable.names) for source in sources]
    for source in sources:
        source.unreadable.names.clear()
    alone = loader.train_batches(sources[0], CanvasTransform(24), **options)
    same(trained, list(alone))
    alone = list(loader.eval_batches(sources[1], EvalTransform(48), batch_size=40))
    for one in evaluated:
        same(one, alone)
    assert len(evaluated) == 3 and len(trained) == 11
    assert names == [list(source.unreadable.names) for source in sources] != [[], []]


def test_batches_out_of_turn_are_a_mistake():
    training = loader.training(
        Noise(9), TrainTransform(8), batch_size=3, seed=0, start_step=0, stop_step=2
    )
    evaluation = loader.evaluation(Noise(9), EvalTransform(48), batch_size=3)
    feed = loader.Feed([(training, 0, 2), (evaluation, 0, 3)])
    with pytest.raises(RuntimeError, match="out of turn"):
        next(feed.batches(evaluation))
    feed.close()


@pytest.mark.slow
def test_memory_does_not_grow():
    """Batches have 5 MB: one kept in each epoch would be 100 MB at the end."""
    batches = loader.train_batches(
        Noise(64, size=64),
        TrainTransform(160),
        batch_size=64,
        seed=0,
        start_step=0,
        stop_step=10_000,
        workers=2,
        threads=2,
    )
    epochs = [input_ways.memory() for _, _ in zip(range(40), batches, strict=False)]
    batches.close()
    if None in epochs:
        pytest.skip("only Linux tells the memory of processes")
    assert min(epochs[30:]) - min(epochs[10:20]) < 5, epochs


def test_short_work_starts_no_process(monkeypatch):
    monkeypatch.setattr(readers, "WORTH", 16)
    before = children()
    batches = train(Noise(300), 7, workers=8)  # 14 bundles
    next(batches)
    assert children() == before
    batches.close()


def test_an_error_of_the_work_is_not_taken_for_a_death():
    def work(number, room):
        raise RuntimeError("of its own")

    results = readers.read(work, [(4, 1)], join=tuple, largest=8, threads=1)
    with pytest.raises(RuntimeError, match="of its own") as caught:
        next(results)
    assert not isinstance(caught.value, RunError)


@pytest.mark.slow
def test_a_training_that_stops_for_damaged_images_ends_as_documented(tmp_path):
    """Every tenth image is torn; processes read ahead while steps run and end."""
    whole = tars.encoded(tars.photo(0, 16, 16))
    for split, count in (("train", 400), ("val", 40)):
        for i in range(count):
            path = tmp_path / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = split == "train" and i % 10 == 0
            path.write_bytes(whole[:200] if torn else whole)
    fields = runs.DENSE | {
        "data.name": f"folder:{tmp_path}",
        "num_classes": 2,
        "batch_size": 16,
        "data.workers": 2,
        "data.threads": 2,
    }
    running = runs.start(tmp_path / "run", fields, tmp_path / "cache", quick=True)
    assert running.wait(timeout=120) == 2
    *_, last = (tmp_path / "run.log").read_text().splitlines()
    assert last.startswith("error: 5 of 400 images cannot be read, the first is ")
