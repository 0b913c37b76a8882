"""Tools without a file of tests."""

import importlib

import jax
import pytest

from tests.tools.test_compile_only import COPY, TEXT
from tools import h200, large_models, onnx_speed


@pytest.mark.parametrize("name", ["public_models", "fixtures"])
def test_tools_that_read_other_libraries_start(name):
    pytest.importorskip("timm")
    importlib.import_module(f"tools.{name}")


def test_a_row_of_large_models_is_matched_in_cost(monkeypatch):
    monkeypatch.setattr(h200, "device", lambda: jax.devices("cpu")[0])
    text = TEXT.replace("LINES", COPY)
    monkeypatch.setattr(h200, "compile_for", lambda *args, **options: text)
    rows = large_models.compared("deit_ti", 64)
    dense, tome, imagepiece = rows
    assert dense[:4] == ["deit_ti", 64, "dense", 17]
    assert [row[5:8] for row in rows] == [[1, "0.004", "1.00"]] * 3
    for row in (tome, imagepiece):
        assert 1.4 < float(row[8]) < 2 and row[3] < 17


def test_the_table_of_runtimes_has_a_column_for_each_batch_size():
    row = {"model": "dense", "runtime": "JAX", "macs": 1.0, "ratio": [1, 1, 1]}
    rows = [row | {"batch": batch, "rate": [batch * 10.0, 0, 0]} for batch in (8, 1)]
    rows.append(
        row
        | {"model": "EViT .7", "batch": 8, "rate": [120.0, 0, 0], "macs": 1.5}
        | {"ratio": [1.5, 1.4, 1.6]}
    )
    head, _, *lines = onnx_speed.table(rows).splitlines()
    assert head == "| runtime | model | batch 1 | batch 8 | by MACs |"
    assert lines == [
        "| JAX | dense | 10.0 | 80.0 | 1.00 |",
        "| JAX | EViT .7 |  | 120.0 (1.50 [1.40, 1.60]) | 1.50 |",
    ]
