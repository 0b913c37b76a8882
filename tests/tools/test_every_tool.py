"""Tools without a file of tests."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["public_models", "fixtures"])
def test_tools_that_read_other_libraries_start(name):
    pytest.importorskip("timm")
    importlib.import_module(f"tools.{name}")
