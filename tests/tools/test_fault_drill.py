"""The fault drill: its table, what counts as damage, and refusals."""

import shutil

import jax
import numpy as np
import pytest

from imagepiece_jax.common import checksums
from imagepiece_jax.training.cluster.checkpoint import KINDS, Checkpoints
from imagepiece_jax.training.logging import MetricWriter
from tests.command import call, sentence
from tests.training.states import make_state
from tools import fault_drill, tiny_runs


@pytest.fixture
def run(tmp_path):
    """What a run with two checkpoints of each kind leaves behind."""
    workdir = tmp_path / "run"
    writer = MetricWriter(workdir)
    checkpoints = Checkpoints(workdir)
    for step in (1, 2):
        writer.write_line("train", step, loss=1 / step, throughput=7.0 * step)
        checkpoints.save(step, make_state(step), {})
        checkpoints.save(step, make_state(step), {}, "best")
    writer.close()
    checkpoints.close()
    return tiny_runs.TinyRun(workdir, tmp_path / "cache", {})


def copied(run):
    workdir = run.workdir.with_name("copy")
    shutil.copytree(run.workdir, workdir)
    return tiny_runs.TinyRun(workdir, None, {})


def test_outcomes_are_equal_but_for_clocks(run):
    copy = copied(run)
    path = copy.path("metrics.jsonl")
    path.write_text(path.read_text().replace("14.0", "15.5"))
    assert "15.5" in path.read_text()
    assert run.outcome() == copy.outcome()
    path.write_text(path.read_text().replace("0.5", "0.625"))
    assert run.outcome() != copy.outcome()
    assert run.outcome().losses_apart(copy.outcome()) == 0.125


@pytest.mark.parametrize("kind", KINDS)
def test_one_other_bit_makes_another_outcome(run, kind):
    copy = copied(run)
    state = jax.tree.map(np.array, make_state(2))
    state.opt_state[1][0].mu["head"]["kernel"].view(np.uint32)[3, 5] ^= 1
    checkpoints = Checkpoints(copy.workdir)
    checkpoints.save(2, state, {}, kind)
    checkpoints.close()
    assert run.outcome() != copy.outcome()


def test_damages_are_counted_and_undone(run):
    before = run.outcome()
    counts = {}
    for fault, changes in fault_drill.damages(run, np.random.default_rng(0), bits=6):
        row, (path, content) = fault_drill.damage(run, fault, changes)
        assert row.passed and row.on_disk == 2
        assert run.outcome() == before
        counts[fault] = len(changes)
    assert counts["flipped bit"] == 6
    assert counts["file cut in half"] > 4
    path.write_bytes(content)
    assert run.arrays()["step"] == 1


def test_damage_that_is_not_noticed_does_not_pass(run, monkeypatch):
    """As it would be without our checksums."""
    monkeypatch.setattr(checksums.zlib, "crc32", lambda data: 0)
    checkpoints = Checkpoints(run.workdir)
    for step in (3, 4):
        checkpoints.save(step, make_state(step), {})
    checkpoints.close()
    fault, changes = next(fault_drill.damages(run, np.random.default_rng(0), bits=40))
    of_arrays = [(path, data) for path, data in changes if path.parent.name == "d"]
    row, _ = fault_drill.damage(run, fault, of_arrays)
    assert not row.passed
    assert ", 0 read wrong" not in row.result


def test_a_package_without_its_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_runs, "ROOT", tmp_path)
    message = sentence(call(fault_drill.main))
    assert message.startswith(f"{tmp_path} has no train.py; allowed: a clone")
