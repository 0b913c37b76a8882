"""What a step of a recovery costs: the page's tables, and their claims."""

import numpy as np
import pytest

from experiments import recovery_steps, results
from imagepiece_jax.common.files import read_json
from imagepiece_jax.data.pictures import ArraySource
from tests.models import tiny

MERGING = {"name": "tome", "r": 5}


def test_the_page_has_the_tables():
    page = recovery_steps.PAGE.read_text("utf-8")
    assert results.filled(page, recovery_steps.tables()) == page


def test_a_step_costs_what_the_page_says():
    """Seven tenths of the student's operations, five sixths of the time."""
    found = read_json(recovery_steps.FOLDER / "steps.json")
    forward = found["forward"]
    own, whole = (found["steps"][part] for part in recovery_steps.PARTS)
    student = own["gflop"] - forward["dense"]
    students = whole["gflop"] - forward["dense"]
    assert student < 2.4 * forward["student"]
    assert student / students == pytest.approx(0.7, abs=0.01)
    assert forward["dense"] / own["gflop"] == pytest.approx(0.475, abs=0.02)
    ratio, low, _ = own["ratio"]
    assert ratio == pytest.approx(6 / 5, abs=0.03)
    assert low > 1.1


def test_fixed_views_save_a_fifth_and_gain_nothing():
    runs = read_json(recovery_steps.FOLDER / "views.json")["runs"]
    core = {}
    other = {}
    for row in runs:
        core[row["kind"]] = core.get(row["kind"], 0) + row["core"]
        other[row["kind"]] = other.get(row["kind"], 0) + row["other"] / 2
    assert core["views"] / core["fresh"] == pytest.approx(0.8, abs=0.03)
    assert round(other["views"] - other["fresh"], 3) == 0.006


@pytest.mark.slow
def test_both_ways_of_a_tiny_model(monkeypatch):
    monkeypatch.setattr(recovery_steps, "BATCH", 8)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 20, 20, 3), np.uint8)
    vit = tiny.pretrained(MERGING, depth=2)
    rows = recovery_steps.try_views(vit, ArraySource([*pixels]), 4, seed=0)
    assert [row["kind"] for row in rows] == ["fresh", "views"]
    assert all(0 < row["other"] < 1 and row["steps"] == 4 for row in rows)
