"""One checkpoint over methods and rates: what is measured and written."""

import json

from PIL import Image

from imagepiece_jax.commands import compare
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.training.config import RunConfig
from tests.benchmark.small import TINY, tiny_config
from tests.command import call
from tests.models import tiny


def test_sweep_writes_rows_table_and_plot(tmp_path):
    """Of a tiny dense model's weights."""
    model = RunConfig.from_config(tiny_config()).create_dense()
    path = tmp_path / "tiny.npz"
    tiny.write(path, tiny.fill(variable_shapes(model, 16)))
    ended = call(
        compare.main,
        *(*TINY, "--weights", path, "--out", tmp_path),
        *("--sweep", "evit:blocks=(1,):keep_rate=1.0"),
        *("--sweep", "tome:r=16"),
        *("--sweep", "none:prop_attn=true,false"),
    ).ok()
    report = json.loads((tmp_path / "compare.json").read_text())
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
    dense, same, tome, _ = rows
    assert same["acc1"] == dense["acc1"] and dense["gmacs"] == same["gmacs"]
    assert tome["gmacs"] < dense["gmacs"]
    right = [decode_bits(row["right"], 359) for row in rows]
    found = {each["method"]: each for each in report["comparisons"]}
    assert [*found] == [row["method"] for row in rows[1:]]
    for row, ours in zip(rows[1:], right[1:], strict=True):
        change = statistics.paired_difference(ours, right[0])
        assert found[row["method"]]["points"] == list(change)
        assert found[row["method"]]["to"] == "dense"
    page = (tmp_path / "compare.md").read_text()
    assert page.count("\n| ") == 3 + 2 + 3 and "359 of digits" in page
    value, low, high = found["tome r=16"]["points"]
    assert f"| {value:+.1f} [{low:+.1f}, {high:+.1f}]" in page
    # Models that do not take turns have no speeds that can be compared.
    assert "img/s" not in page + ended.out
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.format == "PNG" and picture.width == 900
