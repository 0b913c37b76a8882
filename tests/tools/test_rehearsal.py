"""The rehearsal of a run on two hosts: its short form, comparisons and refusals."""

import re
import subprocess

import numpy as np
import pytest

from imagepiece_jax.training.cluster.checkpoint import KINDS, Checkpoints
from imagepiece_jax.training.cluster.job import find_job
from imagepiece_jax.training.logging import MetricWriter
from tests import compiling, forked, programs
from tests.command import call
from tools import rehearsal

NAMES = ("evit_two", "evit_one")  # runs of the short form


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_a_run_moves_from_two_hosts_to_one(tmp_path, monkeypatch):
    """Killed on two, stopped, finished on one; and all of it on one."""
    monkeypatch.setenv("XLA_FLAGS", compiling.QUICK)
    monkeypatch.setattr(subprocess, "Popen", forked.Process)
    programs.of_processes(tmp_path / "cache")
    ended = call(rehearsal.main, "--short", "--devices=4", "--folder", tmp_path)
    assert (ended.status, ended.err) == (0, ""), ended.out
    rows = ended.out.splitlines()[2:]
    assert len(rows) == 11
    assert all(row.endswith("| yes |") for row in rows)

    # The process that is left reports why it ends; only process 0 prints the rest.
    second = (tmp_path / "evit_two.1.log").read_text()
    lost = "error: process 1 of 2 stops: another one has ended or cannot be reached"
    stopped = re.findall(r"^(?:error: .*|stopped at step .*)", second, re.MULTILINE)
    assert len(stopped) == 2
    assert stopped[0].startswith(lost)
    assert stopped[1].startswith("stopped at step ")
    first = (tmp_path / "evit_two.log").read_text()
    assert "test accuracy" in first and "attention" in first
    assert "accuracy" not in second and "attention" not in second
    files = [{path.name for path in (tmp_path / n).iterdir()} for n in NAMES]
    assert files[0] == files[1]
    assert len(list((tmp_path / "evit_two/tensorboard").iterdir())) == 3  # starts


@pytest.fixture
def stage(tmp_path):
    return rehearsal.HostRuns(tmp_path, "cpu", 8)


def left(stage, name, loss=1.0, right=500, images=1000, weight=2.0):
    """What a run leaves: three steps, an evaluation and two checkpoints."""
    run = stage.run("evit", name)
    writer = MetricWriter(run.workdir)
    for step in (1, 2, 3):
        writer.write_line(
            "train", step, loss=1.0 if step < 3 else loss, throughput=step
        )
    accuracy = 100 * right / images
    found = {"acc1": accuracy, "loss": 1.0, "ema_acc1": 50.0, "ema_loss": 1.0}
    writer.write_line("eval", 3, images=images, **found)
    writer.close()
    checkpoints = Checkpoints(run.workdir)
    for kind in ("latest", "best"):
        checkpoints.save(3, {"w": np.float32([weight, 0])}, {}, kind)
    checkpoints.close()
    return run


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return left(rehearsal.HostRuns(tmp_path_factory.mktemp("runs"), "cpu", 8), "theirs")


@pytest.mark.parametrize(
    "fields, broken",
    [
        ({}, []),
        ({"loss": 1.0004}, []),
        ({"loss": 1.0006}, ["3 of 3 train loss"]),
        ({"loss": float("nan")}, ["3 of 3 train loss"]),
        ({"right": 501}, []),
        ({"weight": 2.0009}, []),
        ({"weight": 2.002}, [f"1 of 1 arrays, {kind} checkpoint" for kind in KINDS]),
        ({"right": 498}, ["images right by acc1, of 1000"]),
    ],
)
def test_two_layouts_may_differ_by_rounding_alone(stage, theirs, fields, broken):
    rows = list(rehearsal.layouts_agree(left(stage, "ours", **fields), theirs))
    assert len(rows) == 7
    assert [row.promise for row in rows if not row.kept] == broken


def test_a_step_that_is_missing_is_no_agreement(stage, theirs):
    ours = left(stage, "ours")
    path = ours.path("metrics.jsonl")
    path.write_text(path.read_text().partition("\n")[2])
    row = next(rehearsal.layouts_agree(ours, theirs))
    assert (row.promise, row.kept) == ("2 of 3 train loss", False)


def test_the_same_layout_may_not_differ_at_all(stage, theirs):
    assert rehearsal.identical(left(stage, "same"), theirs).kept
    other = left(stage, "other", weight=np.nextafter(np.float32(2), np.float32(3)))
    assert not rehearsal.identical(other, theirs).kept
    assert not rehearsal.identical(left(stage, "loss", loss=1.0000001), theirs).kept


def test_tasks_on_gpus_take_their_shares(tmp_path):
    stage = rehearsal.HostRuns(tmp_path, "gpu", 8)
    jobs = [find_job(environment=found) for found in stage.environments(2)]
    assert [job.local_devices for job in jobs] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert [job.process_id for job in jobs] == [0, 1]
    assert jobs[0].coordinator == jobs[1].coordinator
    (single,) = stage.environments(1)
    assert find_job(environment=single) is None


def test_a_promise_that_is_not_kept_ends_with_status_1(tmp_path, monkeypatch):
    row = rehearsal.Row("run", "promise", "found", "allowed", False)
    monkeypatch.setattr(rehearsal, "rehearse", lambda stage, short: [row])
    ended = call(rehearsal.main, "--folder", tmp_path)
    assert ended.status == 1
    assert ended.out.splitlines()[-1] == "| run | promise | found | allowed | NO |"


def test_a_scenario_that_ends_early_is_reported_and_the_next_starts(stage, monkeypatch):
    def ends(stage):
        raise rehearsal.RunError("a run ended before step 3: see x.log")
        yield

    monkeypatch.setattr(rehearsal, "evit", ends)
    monkeypatch.setattr(rehearsal, "masked", lambda stage: ["a row"])
    first, second = rehearsal.rehearse(stage, short=False)
    assert "before step 3" in str(first.found)
    assert not first.kept
    assert second == "a row"
