"""Rows, tables and sentences of invented readings."""

import json

import pytest

from imagepiece_jax.benchmark import report
from imagepiece_jax.benchmark.workloads import Workload
from imagepiece_jax.common.timer import TimedCall
from tests import markdown

SETTING = {
    "mode": "inference",
    "batch_size": 10,
    "dtype": "float32",
    "device": "abacus",
    "warmup": 20,
    "repeats": 3,
    "seconds": 1.0,
    "matmul_ceiling": 8e12,
    "copy_ceiling": 1e11,
}


def work(macs, skipped=0.0, **facts):
    facts = {"peak_memory": None, "compile_s": None, "gelu": "exact"} | facts
    return Workload(TimedCall(None, None), 10, macs, facts, skipped)


@pytest.fixture
def rows():
    programs = {
        "dense": work(4e12, peak_memory=2.5e9),
        "half": work(2e12, skipped=5e11, compile_s=1.25),
    }
    readings = {"dense": [2.0, 4.0, 1.0], "half": [1.0, 1.0, 1.0]}
    return report.rows(programs, readings, SETTING)


def test_rows(rows):
    dense, half = rows
    assert dense["config"] == "dense"
    assert dense["mode"] == "inference"
    # 10 images in 2 seconds; 4e12 MACs are 8e12 operations, one second at the peak rate
    assert (dense["throughput"], dense["ms"]) == (5.0, 2000.0)
    assert (dense["throughput_min"], dense["throughput_max"]) == (2.5, 10.0)
    assert (dense["gmacs"], dense["macs_per_s"]) == (400.0, 2e12)
    assert dense["ceiling_share"] == 0.5
    assert (dense["ratio"], dense["ratio_min"], dense["ratio_max"]) == (1, 1, 1)
    assert (half["ratio"], half["ratio_min"], half["ratio_max"]) == (2, 1, 4)
    assert half["mac_ratio"] == 2.0
    assert (half["macs_per_s"], half["ceiling_share"]) == (2e12, 0.375)
    assert half["seconds_a_call"] == [1.0, 1.0, 1.0]


def test_what_is_faster_than_the_matmul_rate_is_noted(rows):
    assert report.ceiling_note(rows) is None
    slower = [row | {"ceiling_share": 2.5 * row["ceiling_share"]} for row in rows]
    assert report.ceiling_note(slower).startswith("note: dense reaches 125% of the")


def test_files_keep_every_row(rows, tmp_path):
    files = report.Files(tmp_path / "a.json", tmp_path / "a.md")
    for row in rows:
        files.add([row])
        lines = (tmp_path / "a.json").read_text().splitlines()
        assert json.loads(lines[-1]) == row
        assert row["config"] in (tmp_path / "a.md").read_text()
    files.plot()  # none was asked for
    assert len(lines) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_tables_leave_unknown_cells_blank(rows):
    heading, *lines = report.text(rows).splitlines()
    assert heading.split()[:4] == ["program", "batch", "img/s", "lowest"]
    assert lines[0].split()[:6] == ["dense", "10", "5", "2", "10", "2,000.00"]
    table = report.markdown(rows).splitlines()
    assert table[0] == "### inference"
    assert table[2].startswith("| program | batch |")
    assert table[3].startswith("| ---")
    cells = markdown.cells(table[4])
    assert cells[0] == "dense" and cells[-2:] == ["2.5", ""]  # GB, and no compile time
    assert dict(zip(markdown.cells(table[2]), cells, strict=True))["GELU"] == "exact"
    assert table[5].endswith("|  | 1.2 |")
    assert "abacus, float32" in table[7]
    assert "8.000 TFLOP/s" in table[7]
    assert len({line.count("|") for line in table[2:6]}) == 1
    assert report.break_even(list(ratios(b8=2.0))) == []


def ratios(**of_batch):
    """Rows of "first" and "other", of given relative speed at each batch size."""
    shared = {"mode": "inference"}
    for batch, ratio in of_batch.items():
        size = int(batch[1:])
        yield shared | {"config": "first", "batch_size": size, "ratio": 1.0}
        yield shared | {"config": "other", "batch_size": size, "ratio": ratio}


@pytest.mark.parametrize(
    "of_batch, said, ratios_said",
    [
        ({"b8": 1.5, "b1": 0.5, "b4": 1.25}, "from batch size 4 on", "0.50 at 1, 1.25"),
        ({"b8": 1.5, "b1": 1.01}, "at every batch size measured", "1.01 at 1, 1.50"),
        (
            {"b1": 0.9, "b2": 1.5, "b4": 1.0, "b8": 2.0},
            "from batch size 8 on",
            "0.90 at 1, 1.50 at 2, 1.00 at 4, 2.00 at 8",
        ),
        ({"b8": 0.9, "b1": 1.5}, "at batch size 8, the largest measured", "1.50 at 1"),
    ],
)
def test_break_even(of_batch, said, ratios_said):
    (sentence,) = report.break_even(list(ratios(**of_batch)))
    verb = "is not faster" if of_batch["b8"] < 1 else "is faster"
    said = f"inference: other {verb} than first {said} (times as fast: {ratios_said}"
    assert sentence.startswith(said)
