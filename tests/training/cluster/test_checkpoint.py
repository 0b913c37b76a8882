import gc
import os
import shutil
import sys
import time

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from tests.helpers import forked_processes, small_runs
from tests.helpers.small_states import (
    State,
    abstract,
    assert_same,
    folders,
    make_state,
    save,
)


@pytest.fixture(scope="module")
def steps_1_2(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, [1, 2])
    return workdir


@pytest.fixture
def noisy(monkeypatch):
    """Orbax closes its event loop before arrays behind a damaged one have arrived."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()


@pytest.fixture
def workdir(steps_1_2, tmp_path):
    """A copy of a run with steps 1 and 2."""
    return shutil.copytree(steps_1_2, tmp_path / "run")


def data_files(workdir, step):
    """A step's files of arrays, the largest first."""
    files = (workdir / "checkpoints" / "latest" / str(step) / "state").rglob("*")
    array_files = [p for p in files if p.is_file() and p.parent.name == "d"]
    return sorted(array_files, key=lambda p: -p.stat().st_size)


def assert_restored(checkpoints, step):
    state, meta, restored_step = checkpoints.restore(abstract(make_state()))
    assert (restored_step, meta) == (step, {"epoch": step / 2})
    assert_same(state, make_state(step))


def test_state_is_restored_exactly_though_it_changes_after_save(tmp_path):
    state = make_state(7, width=40_000)
    meta = {"best_acc1": 97.25, "seen": [1, 2], "note": None}
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find_latest_step() is None
    checkpoints.save(7, state, meta)
    state.params["head"]["kernel"][:] = 0
    checkpoints.close()
    restored, restored_meta, step = checkpoints.restore(abstract(state))
    assert_same(restored, make_state(7, width=40_000))
    assert (restored_meta, step, checkpoints.find_latest_step()) == (meta, 7, 7)


def test_the_newest_two_and_every_nth_step_are_kept(tmp_path):
    """The first save removes a killed run's unfinished steps."""
    stale = tmp_path / "checkpoints" / "latest" / "9.orbax-checkpoint-tmp" / "state"
    stale.mkdir(parents=True)
    (stale / "data").write_text("half")
    save(tmp_path, range(1, 6), keep_every=2)
    assert folders(tmp_path) == ["2", "4", "5"]


def test_the_best_step_outlives_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"acc1": 90.0}, "best")
    for step in (2, 3, 4):
        checkpoints.save(step, make_state(step), {})
    checkpoints.close()
    assert_same(small_runs.arrays(tmp_path, "best")["params"], make_state(1).params)
    assert folders(tmp_path) == ["3", "4"]


def test_reading_changes_no_file(workdir):
    (workdir / "checkpoints" / "latest" / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(workdir.rglob("*"))
    reader = Checkpoints(workdir)
    assert reader.restore(abstract(make_state()))[2] == 2
    with pytest.raises(InputError, match="latest holds no intact checkpoint"):
        Checkpoints(workdir / "none").restore(abstract(make_state()))
    assert sorted(workdir.rglob("*")) == before


def flip_bit(workdir):
    path = data_files(workdir, 2)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 4  # further back a node may be unused
    path.write_bytes(data)


def truncate(workdir):
    for path in data_files(workdir, 2):
        os.truncate(path, path.stat().st_size // 2)


def remove_half(workdir):
    shutil.rmtree(workdir / "checkpoints" / "latest" / "2" / "meta")


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("damage", [flip_bit, truncate, remove_half])
def test_a_damaged_step_is_skipped_and_replaced(workdir, caplog, damage):
    damage(workdir)  # Orbax restores a flipped bit silently
    assert_restored(Checkpoints(workdir), 1)
    assert "latest/2" in caplog.text
    assert_restored(save(workdir, [2]), 2)
    assert folders(workdir) == ["1", "2"]


def test_saving_an_earlier_step_replaces_it_and_removes_later_ones(workdir):
    checkpoints = Checkpoints(workdir)
    checkpoints.save(1, make_state(5), {"epoch": 1.0})
    checkpoints.close()
    assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(5))
    assert folders(workdir) == ["1"]


def large_state(step):
    """A step's state of 8 MB that do not compress."""
    rng = np.random.default_rng(step)
    params = {"a": rng.normal(size=1_000_000)}
    return State(step=np.asarray(step), params=params, batch_stats={}, opt_state=())


def save_until_killed(workdir):
    checkpoints = Checkpoints(workdir)
    for step in range(1, 1000):
        checkpoints.save(step, large_state(step), {"step": step})
        if step > 1:
            print(step - 1, flush=True)  # `save` has waited for the step before


@pytest.mark.slow
def test_kill_while_saving_loses_no_finished_step(tmp_path):
    reader, writer = map(open, os.pipe(), "rw")
    with reader:
        with writer:
            command = [sys.executable, __file__, tmp_path]
            child = forked_processes.Process(command, stdout=writer)
        for _ in range(4):
            assert reader.readline()
        time.sleep(0.013)
        child.kill()
        child.wait()
        *_, finished = [4, *reader]
    finished = int(finished)
    checkpoints = Checkpoints(tmp_path)
    state, meta, step = checkpoints.restore(abstract(large_state(0)))
    assert step in (finished, finished + 1)
    assert meta == {"step": step}
    assert_same(state, large_state(step))
    checkpoints.save(step + 1, large_state(step + 1), {})
    checkpoints.close()
    assert all(name.isdecimal() for name in folders(tmp_path))


if __name__ == "__main__":
    save_until_killed(sys.argv[1])
