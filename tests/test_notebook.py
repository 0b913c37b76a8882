"""The notebook of docs runs from its first cell to its last."""

import json
import pathlib

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest

from imagepiece_jax.models import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "quickstart.ipynb"
DEPTH = 2  # blocks instead of twelve: compiling them is most of the time


def cells(kind):
    notebook = json.loads(PAGE.read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_a_notebook_without_results():
    notebook = json.loads(PAGE.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len({*ids}) == len(ids)
    for cell in notebook["cells"]:
        assert cell["metadata"] == {} and all(type(s) is str for s in cell["source"])
        assert cell["cell_type"] in ("markdown", "code")
    assert all(c["outputs"] == [] and not c["execution_count"] for c in cells("code"))


def test_its_cells_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(tmp_path))
    monkeypatch.setitem(registry.MODELS["deit_ti"], "depth", DEPTH)
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    space = {}
    for number, cell in enumerate(cells("code")):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    said = capsys.readouterr().out
