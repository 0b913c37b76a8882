import contextlib
import resource

import pytest
from absl import logging

from imagepiece_jax.errors import RunError
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from tests.helpers.small_states import abstract, assert_same, folders, make_state, save


@contextlib.contextmanager
def full_disk(room=1000):
    """No file may grow beyond `room` bytes: write() fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = r"a checkpoint cannot be written \(File too large\)"


@pytest.mark.parametrize("failing_call", ["save", "close"])
def test_a_full_disk_is_reported_and_loses_no_checkpoint(
    tmp_path, capfd, monkeypatch, failing_call
):
    """A background thread writes, so the next call raises the error."""
    monkeypatch.setattr(logging.get_absl_logger(), "disabled", True)  # as in train.py
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {})
    assert checkpoints.find_latest_step() == 2
    with full_disk():
        checkpoints.save(3, make_state(3), {})
        with pytest.raises(RunError, match=FULL):
            if failing_call == "save":
                checkpoints.save(4, make_state(4), {})
            checkpoints.close()
    checkpoints.close()
    assert {"1", "2"} <= set(folders(tmp_path))
    state, _, step = Checkpoints(tmp_path).restore(abstract(make_state()))
    assert_same(state, make_state(2))
    assert step == 2
    save(tmp_path, [3])  # the disk has room again
    assert folders(tmp_path) == ["2", "3"]
    assert "Traceback" not in capfd.readouterr().err
