"""Tools without a file of tests."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["public_models", "fixtures"])
def test_tools_of_other_libraries_import(name):
    pytest.importorskip("timm")
    importlib.import_module(f"tools.{name}")
