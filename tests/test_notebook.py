"""The notebook of docs runs from its first cell to its last."""

import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np
import pytest

from imagepiece_jax.models import public

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))
DEPTH = 3  # blocks instead of twelve: compiling them takes most of the time


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


def run(folder, monkeypatch):
    """Run the code cells in `folder`, and return what they defined."""
    monkeypatch.chdir(folder)
    space = {}
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
    return space


def test_its_cells_run_in_their_order(tmp_path, monkeypatch, drawn, capsys):
    """On random weights; those of DeiT-Ti, where they are, differ in depth alone."""
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(tmp_path))
    monkeypatch.setitem(public.table()["deit_tiny_patch16_224"], "depth", DEPTH)
    space = run(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "random weights" in said and "times as fast" in said
    assert f"{196 - 13 * DEPTH} tokens; the largest stand for" in said
    assert space["times"].keys() == {"dense", "ToMe"}
    photograph = len(np.unique(space["pixels"].reshape(-1, 3), axis=0))
    assert len(drawn) == 2 and photograph > 1000
    assert all(len(np.unique(picture)) > 1 for picture in drawn)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_runs_on_trained_weights(assets, tmp_path, monkeypatch, drawn, capsys):
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(assets))
    run(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "trained weights" in said and "40 tokens; the largest" in said
    # The photograph shows a pagoda of the Summer Palace.
    assert said.count(": palace, probability") == 2 and len(drawn) == 2
