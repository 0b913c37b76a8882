"""One checkpoint over methods and rates: what is parsed, measured and written."""

import json

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import __main__ as evaluate
from imagepiece_jax.evaluate import sweep
from imagepiece_jax.models import convert
from imagepiece_jax.training import from_config, initial_weights
from tests.command import call


def test_lists_of_several_fields_are_combined():
    assert sweep.parse("evit:keep_rate=.9,.5:fuse_token=True,False") == [
        {"name": "evit", "keep_rate": rate, "fuse_token": fuse}
        for rate in (0.9, 0.5)
        for fuse in (True, False)
    ]


def test_values_may_be_tuples_words_and_fields_of_the_model():
    (found,) = sweep.parse("imagepiece:prune_blocks=(2,5):schedule=A:prop_attn=True")
    assert found == {
        "name": "imagepiece",
        "prune_blocks": (2, 5),
        "schedule": "A",
        "prop_attn": True,
    }
    assert sweep.parse("none") == [{"name": "none"}]


@pytest.mark.parametrize(
    "text, told",
    [
        ("evit:keep_rate", "allowed is FIELD=VALUE"),
        ("evit:keep_rate=", "allowed is FIELD=VALUE"),
        ("tome:r=1:r=2", "r is there twice; allowed is one list"),
        ("evot:keep_rate=.5", "the methods are"),
        ("evit:r=8", "config.reduction.r is not a field of 'evit'"),
        ("evit:rate_warmup_epochs=3", "rate_warmup_epochs changes training alone; al"),
    ],
)
def test_what_cannot_be_read_is_named(text, told):
    with pytest.raises(InputError, match=told):
        sweep.parse(text)


def test_paired_difference():
    """Right on 3 of 4 where dense is right on 2: one gained, none lost."""
    row = sweep.paired_difference(np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]))
    assert row["difference"] == 25
    # Differences 0 0 1 0: deviation sqrt(3) / 4, over sqrt(4).
    np.testing.assert_allclose(row["difference_error"], 196 * 3**0.5 / 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny dense model's weights as a file, and words that fit it."""
    config = quickstart.get_config()
    config.model.depth, config.model.embed_dim, config.model.num_heads = 4, 8, 2
    variables = initial_weights.fresh(from_config.dense(config), 16, seed=0)
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(path, **convert.to_timm(variables))
    fields = ("depth=4", "embed_dim=8", "num_heads=2")
    words = [f"--config.model.{field}" for field in fields]
    return path, [*words, "--config.reduction.merge_blocks=(0,)"]


def test_sweep_writes_rows_table_and_plot(tmp_path, checkpoint):
    path, words = checkpoint
    ended = call(
        evaluate.main,
        *("--config", "configs/quickstart.py", *words),
        "--config.reduction.prune_blocks=(1,)",
        *("--weights", path, "--out", tmp_path / "out"),
        *("--sweep", "evit:blocks=(1,):keep_rate=1.0,.5"),
        *("--sweep", "tome:r=8"),
    )
    assert ended.status == 0, ended
    text = (tmp_path / "out" / "sweep.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["setting"] for row in rows] == [
        "dense",
        "evit blocks=(1,) keep_rate=1.0",
        "evit blocks=(1,) keep_rate=0.5",
        "tome r=8",
    ]
    assert [row["tokens"] for row in rows] == [65, 65, 33, 33]
    assert all(row["images"] == 359 and row["throughput"] > 0 for row in rows)
    dense, same = rows[:2]
    assert same["acc1"] == dense["acc1"] and same["difference"] == 0
    assert dense["gmacs"] == same["gmacs"] > rows[2]["gmacs"]
    table = (tmp_path / "out" / "sweep.md").read_text()
    assert table.count("\n| ") == 5 - 1 and "359 images" in table
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert picture.format == "PNG" and picture.width == 700
