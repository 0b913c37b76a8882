"""Predicted speed on a CPU: work by hand, and beside times that were measured."""

import json

import pytest

from imagepiece_jax.models import cpu_time
from imagepiece_jax.models.architecture import Architecture
from tests.models import tiny
from tests.runs import ROOT
from tools import cpu_time as tool

FIXTURES = ROOT / "tests" / "fixtures"
# Of tools.cpu_time: what the costs were fitted to, and times of a CPU twice as fast,
# which no cost has seen.
FITTED, UNSEEN = "cpu_times.jsonl", "cpu_times_unseen.jsonl"


def test_work_by_hand():
    """25 patches and a class token, width 30, 3 heads; 15 and 9 patches are left."""
    found = cpu_time.work(tiny.model(tiny.EVIT), tiny.SIDE, batch_size=2)
    attention, mlp = (26, 26, 16), (26, 16, 10)
    squares = sum(n * n for n in attention)
    assert found == {
        "call": 1,
        "weights": 3 * (4 + 8) * 30 * 30,
        "steps": 2,
        "products": 2 * ((4 * sum(attention) + 8 * sum(mlp)) * 900 + 25 * 48 * 30),
        "stem_pixels": 0,
        "attention": 2 * 3 * squares,
        "tokens": 2 * 30 * (sum(attention) + sum(mlp)),
    }
    assert found.keys() == cpu_time.COSTS.keys()


def measured(name):
    """{(size, stem, method, batch): seconds}."""
    lines = map(json.loads, (FIXTURES / name).read_text().splitlines())
    return {tuple(key): seconds for key, seconds in lines}


@pytest.mark.parametrize("name", [FITTED, UNSEEN])
def test_nine_of_ten_ratios_are_within_a_tenth_of_the_measured_ones(name):
    found = tool.ratios(measured(name))
    assert len(found) == 72 and tool.near(found) >= 0.9 * len(found)


@pytest.mark.parametrize("batches", [(1, 4, 16), (2, 8, 32)])
def test_half_of_the_times_predict_the_other(monkeypatch, batches):
    times = measured(FITTED)
    half = {key: times[key] for key in times if key[-1] in batches}
    monkeypatch.setattr(cpu_time, "COSTS", tool.fit(half))
    unseen = tool.ratios({key: times[key] for key in times if key not in half})
    assert len(unseen) == 36 and tool.near(unseen) >= 0.85 * len(unseen)


def test_the_conv_stems_pixels_by_hand():
    """Two convolutions halve 20 pixels twice; patches are 4 wide."""
    found = cpu_time.work(tiny.model(stem="conv", embed_dim=32, num_heads=4), 20, 1)
    assert found["stem_pixels"] == 10 * 10 * 16 + 5 * 5 * 32


def test_the_sentence(monkeypatch):
    left = {tiny.model(): 26.0, tiny.model(tiny.EVIT): 10.0}
    monkeypatch.setattr(cpu_time, "seconds", lambda model, *_: left[model])
    assert cpu_time.line(tiny.model(tiny.EVIT), tiny.model(), tiny.SIDE) == (
        "predicted speed on a CPU, relative to dense: 2.60x at batch size 1, 2.60x at "
        "batch size 8, 2.60x at batch size 32"
    )


def test_a_gate_is_a_third_layer():
    plain, gated = (
        cpu_time.work(tiny.model(arch=Architecture(mlp=mlp)), tiny.SIDE, 1)
        for mlp in ("gelu", "swiglu")
    )
    assert gated["weights"] - plain["weights"] == 3 * 120 * 30
    assert gated["products"] - plain["products"] == 3 * 26 * 120 * 30


@pytest.mark.parametrize("batch_size", [1, 32])
def test_more_work_takes_longer(batch_size):
    dense, reduced = tiny.model(), tiny.model(tiny.EVIT | {"keep_rate": 0.3})
    seconds = [cpu_time.seconds(m, tiny.SIDE, batch_size) for m in (dense, reduced)]
    assert seconds[0] > 0 and seconds[1] > 0
