"""One checkpoint over methods and rates: what is measured and written."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from imagepiece_jax.benchmark import sweep
from imagepiece_jax.commands import evaluate
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.pretrained import convert
from imagepiece_jax.training.config import RunConfig
from tests.command import call
from tests.models import tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny dense model's weights as a file, and words that fit it."""
    config = quickstart.get_config()
    config.model.depth, config.model.embed_dim, config.model.num_heads = 2, 8, 2
    variables = tiny.fill(
        variable_shapes(RunConfig.from_config(config).create_dense(), 16)
    )
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(path, **convert.to_timm(variables))
    fields = ("depth=2", "embed_dim=8", "num_heads=2")
    words = [f"--config.model.{field}" for field in fields]
    return path, [*words, "--config.reduction.merge_blocks=(0,)"]


def test_sweep_writes_rows_table_and_plot(tmp_path, checkpoint):
    path, words = checkpoint
    ended = call(
        evaluate.main,
        *("--config", "configs/quickstart.py", *words),
        "--config.reduction.prune_blocks=(1,)",
        *("--weights", path, "--out", tmp_path / "out"),
        *("--sweep", "evit:blocks=(1,):keep_rate=1.0"),
        *("--sweep", "tome:r=16"),
        *("--sweep", "none:prop_attn=true,false"),
    )
    assert ended.status == 0, ended
    text = (tmp_path / "out" / "sweep.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["setting"] for row in rows] == [
        "dense",
        "evit blocks=(1,) keep_rate=1.0",
        "tome r=16",
        "dense prop_attn=True",
    ]
    assert [row["tokens"] for row in rows] == [65, 65, 33, 65]
    assert all(row["images"] == 359 for row in rows)
    assert all(row["acc5"] > row["acc1"] for row in rows)
    dense, same = rows[:2]
    assert same["acc1"] == dense["acc1"] and same["difference"] == 0
    assert same["difference_low"] < 0 < same["difference_high"]
    assert dense["acc1_low"] < dense["acc1"] < dense["acc1_high"]
    assert dense["gmacs"] == same["gmacs"] > rows[2]["gmacs"]
    table = (tmp_path / "out" / "sweep.md").read_text()
    assert table.count("\n| ") == 1 + 4 and "359 images" in table
    # Models that do not take turns have no speeds that can be compared.
    assert "img/s" not in table + ended.out and "throughput" not in text
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.format == "PNG" and picture.width == 700


def test_differences_are_those_to_the_dense_model(tmp_path, monkeypatch):
    """Right on 3 of 4 where the dense model is right on 2."""
    rights = {"none": [1, 1, 0, 0], "tome": [1, 1, 1, 0]}
    figures = {"acc5": 100.0, "loss": 1.0, "images": 4, "tokens": 9}

    def measure(reduction, seed, batches):
        right = np.array(rights[reduction["name"]], bool)
        row = figures | {"untrained": False, "gmacs": 0.1}
        return row | sweep._estimate("acc1", statistics.accuracy(right)), right

    monkeypatch.setattr(sweep, "_measure", measure)
    weights = types.SimpleNamespace(model=dict, pretrained=dict, seed=0)
    rows = sweep.run(weights, [{"name": "tome"}], list, tmp_path)
    assert [row["acc1"] for row in rows] == [50, 75]
    assert [row["difference"] for row in rows] == [0, 25]
    expected = statistics.paired_difference(*map(np.array, reversed(rights.values())))
    assert rows[1]["difference_low"] == expected.low
    assert "| tome | 75.0 [" in (tmp_path / "sweep.md").read_text()
