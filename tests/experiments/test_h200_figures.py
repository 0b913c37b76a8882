"""Figures of PERFORMANCE.md that were measured on an H200, from their files."""

import itertools
import json

import pytest

from tests import markdown
from tests.runs import ROOT

FOLDER = ROOT / "docs" / "tables" / "h200"
PROGRAMS, KERNELS = markdown.tables(
    markdown.section("PERFORMANCE.md", "Measured on an H200")
)
# Rows of the second table, in its order, and kinds of kernels of its columns.
TRACED = ("dense", "three", "tome", "imagepiece")
KINDS = {
    "products": "products, bfloat16",
    "attention": "attention",
    "embedding": "embedding",
    "fused reductions": "fused reductions",
    "float32 products": "products, float32",
}


def test_speeds_are_those_of_the_file():
    lines = (FOLDER / "programs.jsonl").read_text("utf-8").splitlines()
    measured = [json.loads(line) for line in lines]
    assert len(measured) == len(PROGRAMS)
    for row, found in zip(PROGRAMS, measured, strict=True):
        rates = [found[name] for name in ("throughput", "throughput_min")]
        rates.append(found["throughput_max"])
        median, low, high = (f"{rate:,.0f}" for rate in rates)
        assert row["img/s (lowest to highest)"] == f"{median} ({low} to {high})"
        ratios = markdown.interval(row["times our dense"])
        known = [found[name] for name in ("ratio", "ratio_min", "ratio_max")]
        assert ratios == pytest.approx(known[: len(ratios)], abs=0.0051)
        assert float(row["by MACs"]) == pytest.approx(found["mac_ratio"], abs=0.0051)


def test_microseconds_by_kernels_are_those_of_the_file():
    traced = json.loads((FOLDER / "kernels.json").read_text("utf-8"))
    names = itertools.product(("deit_ti", "deit_s"), TRACED)
    for row, name in zip(KERNELS, map(" ".join, names), strict=True):
        rest = {kind: us for kind, (us, _) in traced[name].items()}
        assert float(row["all"].replace(",", "")) == pytest.approx(
            sum(rest.values()), abs=1
        )
        for column, kind in KINDS.items():
            cell = float(row[column].replace(",", "") or 0)
            assert cell == pytest.approx(rest.pop(kind, 0), abs=1)
        other = float(row["other"].replace(",", ""))
        assert other == pytest.approx(sum(rest.values()), abs=2)


def test_the_time_of_exact_gelu_is_that_of_the_file():
    traced = json.loads((FOLDER / "kernels.json").read_text("utf-8"))
    text = markdown.section("PERFORMANCE.md", "Measured on an H200")
    for size in ("deit_ti", "deit_s"):
        kernels = traced[f"{size} dense"]
        gelu, _ = kernels["exact GELU"]
        total = sum(us for us, _ in kernels.values())
        assert f"{round(gelu, -1):,.0f} of {total:,.0f}" in text
