"""The command that compares: tiny runs and a sweep to their files."""

import json

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.commands import compare
from imagepiece_jax.common import xla_options
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.source import Subset
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare as comparing
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models.variables import variable_shapes
from tests.benchmark.small import OF_WEIGHTS, tiny_config
from tests.command import call
from tests.experiments import tiny_paper
from tests.experiments.tiny_paper import NAMED
from tests.models import tiny

DENSE = OF_WEIGHTS[:2]


def test_the_setting_of_a_part_has_the_content_of_its_images(tmp_path, monkeypatch):
    """30 images, evenly spaced, are not the first 30; all images are no part."""
    seen = []

    def stop(checkpoint, *_):
        seen.append(checkpoint.images.setting)
        raise InputError("stopped")

    monkeypatch.setattr(comparing, "compare", stop)
    path = tiny_paper.pretrained(tmp_path).source.path
    words = [*NAMED, "--weights", path, "--data=digits", "--resize=none"]
    for more in ([], ["--limit=400"], ["--limit=30"]):
        call(compare.main, *words, *more, "--out", tmp_path / "out")
    full = open_source("digits", "val")
    size = {"image_size": [16, 16], "resize": "none", "data": "digits"}
    whole = size | {"digest": full.digest, "images": len(full)}
    assert seen[:2] == [whole | {"limit": None}, whole | {"limit": 400}]
    first = Subset(full, np.arange(30))
    assert seen[2]["images"] == 30
    assert seen[2]["digest"] != first.digest


@pytest.mark.slow
def test_a_small_comparison_leaves_its_files(tmp_path):
    path = tiny_paper.pretrained(tmp_path).source.path
    words = [*NAMED, "--weights", path, "--limit=30"]
    words += ["--data=digits", "--resize=none"]
    words += ["--methods=random", "--shares=0.9", "--out", tmp_path / "out"]
    ended = call(compare.main, *words).ok()
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["dense"]["images"] == 30
    assert report["images"]["limit"] == 30
    assert {line["method"] for line in report["settings"]} <= {"tome", "random"}
    assert report["fields"]["dtype"] == xla_options.fast_dtype() == "float32"
    assert (tmp_path / "out" / "compare.md").read_text() in ended.out
    assert (tmp_path / "out" / "compare.png").exists()
    again = call(compare.main, *words)
    assert again.status == 0
    assert "measuring" not in again.err


def test_sweep_writes_rows_table_and_plot(tmp_path):
    """Of a tiny dense model's weights, over methods and rates."""
    model = RunConfig.from_config(tiny_config()).create_dense()
    path = tmp_path / "tiny.npz"
    tiny.write(path, tiny.fill(variable_shapes(model, 16)))
    out = tmp_path / "compared"
    ended = call(
        compare.main,
        *(*DENSE, "--weights", path, "--data=digits", "--out", out),
        *("--sweep", "evit:blocks=(1,):keep_rate=1.0"),
        *("--sweep", "tome:r=16"),
        *("--sweep", "none:prop_attn=true,false"),
    ).ok()
    report = json.loads((out / "compare.json").read_text())
    rows = [{"method": "dense"} | report["dense"], *report["settings"]]
    assert [row["method"] for row in rows] == [
        "dense",
        "evit blocks=(1,) keep_rate=1.0",
        "tome r=16",
        "dense prop_attn=True",
    ]
    assert [row["tokens"] for row in rows] == [65, 65, 33, 65]
    assert all(row["images"] == 359 for row in rows)
    assert all(row["acc5"] > row["acc1"][0] for row in rows)
    assert report["num_classes"] == 10
    dense, same, tome, _ = rows
    assert same["acc1"] == dense["acc1"]
    assert dense["gmacs"] == same["gmacs"]
    assert tome["gmacs"] < dense["gmacs"]
    right = [decode_bits(row["right"], 359) for row in rows]
    found = {each["method"]: each for each in report["comparisons"]}
    assert [*found] == [row["method"] for row in rows[1:]]
    for row, ours in zip(rows[1:], right[1:], strict=True):
        change = statistics.paired_difference(ours, right[0])
        assert found[row["method"]]["points"] == list(change)
        assert found[row["method"]]["to"] == "dense"
    page = (out / "compare.md").read_text()
    assert page.count("\n| ") == 3 + 2 + 4
    assert "359 of digits" in page
    value, low, high = found["tome r=16"]["points"]
    assert f"| {value:+.1f} [{low:+.1f}, {high:+.1f}]" in page
    # Models that do not take turns have no speeds that can be compared.
    assert "img/s" not in page + ended.out
    with Image.open(out / "compare.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 950
