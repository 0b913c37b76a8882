"""The clock of towers: what it times, here on a tiny one, and its table."""

import json

import pytest

from experiments import results, towers
from imagepiece_jax.common.timer import Timing
from imagepiece_jax.models import registry
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from tests.helpers import tiny_vit


def test_forms_take_turns_in_each_runtime(monkeypatch):
    pytest.importorskip("openvino")
    rules = Timing(warmup=1, repeats=2, seconds=0.0)
    monkeypatch.setattr(towers, "RULES", rules)
    forms = {
        towers.DENSE: tiny_vit.pretrained(None, num_classes=0),
        "0.5": tiny_vit.pretrained("tome:macs=0.5", num_classes=0),
    }
    rows = towers.measure(forms)
    for runtime in towers.RUNTIMES:
        dense, half = [row for row in rows if row["runtime"] == runtime]
        assert dense["ratio"] == (1, 1, 1)
        assert 0 < half["ratio"][1] <= half["ratio"][0] <= half["ratio"][2]
        assert half["gmacs"] / dense["gmacs"] == pytest.approx(0.5, abs=0.1)
    table = towers.table(rows)
    assert table.count("\n| ") == 3  # the line of dashes, and two forms
    assert table.count("]") == 4 + 2


def test_forms_have_the_cost_and_the_method_of_the_published_lines():
    text = (results.ROOT / "docs/results/towers.jsonl").read_text("utf-8")
    published = {}
    for row in map(json.loads, text.splitlines()):
        published[row["tower"], row["setting"]] = row["gmacs"]
    for tower, (size, side) in towers.TOWERS.items():
        config = registry.model_config(size)
        for form, reduction in towers.reductions(config).items():
            model = create_model(config, reduction, image_size=side)
            gmacs = model_macs(model) / 1e9
            assert gmacs == pytest.approx(published[tower, form], abs=1e-3)
            if reduction:
                name = "attended" if "clip" in size else "tome"
                assert model.reduction.name == name
