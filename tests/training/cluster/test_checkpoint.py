import contextlib
import gc
import resource
import shutil
import sys

import pytest
from absl import logging

from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training.cluster.checkpoint import Checkpoints, RunProgress
from tests.helpers import small_runs
from tests.helpers.small_states import abstract, assert_same, folders, make_state, save


@pytest.fixture
def noisy(monkeypatch):
    """Orbax closes its event loop before arrays behind a damaged one have arrived."""
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    yield
    gc.collect()


@pytest.fixture
def workdir(tmp_path):
    """A run with steps 1 and 2."""
    save(tmp_path / "run", [1, 2])
    return tmp_path / "run"


def assert_restored(checkpoints, step):
    state, meta, restored_step = checkpoints.restore(abstract(make_state()))
    assert (restored_step, meta) == (step, {"epoch": step / 2})
    assert_same(state, make_state(step))


def test_state_is_restored_exactly_though_it_changes_after_save(tmp_path):
    state = make_state(7, width=40_000)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, {})
    state.params["head"]["kernel"][:] = 0
    checkpoints.close()
    restored, _, _ = checkpoints.restore(abstract(state))
    assert_same(restored, make_state(7, width=40_000))


def test_the_newest_two_every_nth_and_the_best_step_are_kept(tmp_path):
    """The first save removes a killed run's unfinished steps."""
    stale = tmp_path / "checkpoints" / "latest" / "9.orbax-checkpoint-tmp" / "state"
    stale.mkdir(parents=True)
    (stale / "data").write_text("half")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1), {"acc1": 90.0}, "best")
    checkpoints.close()
    save(tmp_path, range(1, 6), keep_every=2)
    assert folders(tmp_path) == ["2", "4", "5"]
    assert_same(small_runs.arrays(tmp_path, "best")["params"], make_state(1).params)


def test_reading_changes_no_file(workdir):
    (workdir / "checkpoints" / "latest" / "3.orbax-checkpoint-tmp").mkdir()
    before = sorted(workdir.rglob("*"))
    assert_restored(Checkpoints(workdir), 2)
    with pytest.raises(InputError, match="latest holds no intact checkpoint"):
        Checkpoints(workdir / "none").restore(abstract(make_state()))
    assert sorted(workdir.rglob("*")) == before


def flip_bit(step_folder):
    files = (step_folder / "state").rglob("d/*")
    path = max(files, key=lambda p: p.stat().st_size)  # of the largest array
    data = bytearray(path.read_bytes())
    data[len(data) // 8] ^= 4  # further back a node may be unused
    path.write_bytes(data)


@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("is_half", [False, True])
def test_a_damaged_step_is_skipped_and_replaced(workdir, caplog, is_half):
    step_folder = workdir / "checkpoints" / "latest" / "2"
    if is_half:
        shutil.rmtree(step_folder / "meta")
    else:
        flip_bit(step_folder)  # Orbax restores it
    assert_restored(Checkpoints(workdir), 1)
    assert "latest/2" in caplog.text
    assert_restored(save(workdir, [2]), 2)
    assert folders(workdir) == ["1", "2"]


def test_saving_an_earlier_step_replaces_it_and_removes_later_ones(workdir):
    assert_restored(save(workdir, [1]), 1)
    assert folders(workdir) == ["1"]


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 1,000 bytes: write() fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_reported_and_loses_no_checkpoint(workdir, monkeypatch):
    """A background thread writes, so the next call raises the error."""
    monkeypatch.setattr(logging.get_absl_logger(), "disabled", True)  # as in train.py
    checkpoints = Checkpoints(workdir)
    with full_disk():
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(RunError, match=r"cannot be written \(File too large\)"):
            checkpoints.save(4, make_state(4), {})
    with contextlib.suppress(RunError):
        checkpoints.close()
    assert_restored(Checkpoints(workdir), 2)
    save(workdir, [3])  # the disk has room again
    assert folders(workdir) == ["2", "3"]


@pytest.mark.parametrize(
    "may_choose, best_steps", [(True, [1, 1, 3, 3]), (False, [1, 2, 3, 4])]
)
def test_the_first_of_the_highest_is_the_best(may_choose, best_steps):
    """Without images that may choose, the last step is the best."""
    progress = RunProgress([])
    for i, acc1 in enumerate((50, 40, 55, 55)):
        metrics = {"acc1": acc1, "throughput": 9}
        progress = progress.with_evaluation(i + 1, metrics, may_choose)
        assert progress.last == {"acc1": acc1}
        assert progress.best["step"] == best_steps[i]
