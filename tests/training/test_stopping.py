"""A run that is asked to stop saves first, and goes on from there."""

import signal
import time

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.training.checkpoint import Checkpoints
from imagepiece_jax.training.metrics import read_metrics
from imagepiece_jax.training.record import hold
from imagepiece_jax.training.stopping import StopRequest
from tests import runs


def test_a_signal_is_noted_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as request:
        assert request.signum is None
        signal.raise_signal(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    first = hold(tmp_path / "run")
    with pytest.raises(InputError, match="another process is training in"):
        hold(tmp_path / "run")
    first.close()
    hold(tmp_path / "run").close()


def test_a_workdir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match=r"run cannot be made \(is a file\)"):
        hold(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("asked, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_what_was_done(tmp_path, asked, status):
    """Far from any checkpoint: 44 steps an epoch, one every 1000 steps."""
    workdir = tmp_path / "run"
    process = runs.start(workdir, runs.SMALL | {"epochs": 2}, tmp_path / "cache")
    deadline = time.monotonic() + 200
    while not read_metrics(workdir):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(asked)
    assert process.wait(timeout=60) == status
    step = Checkpoints(workdir).latest_step()
    assert read_metrics(workdir)[-1]["step"] == step > 0
    last = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert last == f"error: stopped at step {step}; the same command goes on from there"
