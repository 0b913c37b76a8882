"""The notebook of docs runs from its first cell to its last."""

import json
import os
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from imagepiece_jax.models.variables import variable_shapes
from tests.shallow import deit_ti

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
DEPTH = 2  # blocks instead of twelve: compiling them takes most of the time


def test_it_is_a_notebook_without_results():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"]["language"] == "python"
    cells = NOTEBOOK["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["metadata"] == {} and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        else:
            assert cell["cell_type"] == "markdown"


@pytest.fixture
def drawn(monkeypatch):
    """What plt.show() would show: an array of pixels for each figure."""
    figures = []

    def show():
        canvas = plt.gcf().canvas
        canvas.draw()
        figures.append(np.asarray(canvas.buffer_rgba())[..., :3])
        plt.close()

    monkeypatch.setattr(plt, "show", show)
    plt.switch_backend("agg")
    return figures


@pytest.fixture
def shallow(tmp_path, monkeypatch):
    """DeiT-Ti of DEPTH blocks, trained or not, and an empty folder to stand in."""
    deit_ti(monkeypatch, DEPTH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(codes):
    """What the code cells define, run one after the other."""
    space = {}
    for cell in codes:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
    return space


def test_its_cells_run_in_their_order(shallow, monkeypatch, drawn, capsys):
    """On trained weights where tests have them, else on random ones."""
    assets = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", ROOT.parent / "shared"))
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(assets))
    trained = (assets / "weights" / "deit_tiny_patch16_224.pth").exists()
    space = run(CODE)
    said = capsys.readouterr().out
    assert said.startswith("trained" if trained else "random")
    assert "times as fast" in said
    assert f"{196 - 13 * DEPTH} tokens; the largest stand for" in said
    assert said.count(", probability ") == 2
    assert space["times"].keys() == {"dense", "ToMe"}
    photograph = len(np.unique(space["pixels"].reshape(-1, 3), axis=0))
    assert len(drawn) == 2 and photograph > 1000
    assert all(len(np.unique(picture)) > 1 for picture in drawn)
    assert not list(shallow.iterdir())


def test_random_weights_take_the_place_of_trained_ones(shallow, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(shallow))
    space = run(CODE[:2])
    assert capsys.readouterr().out == "random weights\n"
    reduced = space["reduced"]
    found = jax.tree.map(np.shape, reduced.variables)
    needed = variable_shapes(reduced.model, 224)
    assert found == jax.tree.map(lambda leaf: leaf.shape, needed)
    assert len(reduced.model.plan) == DEPTH
