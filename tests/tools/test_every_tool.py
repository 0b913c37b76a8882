"""Tools without a file of tests."""

import importlib

import jax
import pytest

from tests.tools.test_compile_only import COPY, TEXT
from tools import h200, large_models


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
        assert 1.4 < float(row[8]) < 2
        assert row[3] < 17
