"""The notebook of docs runs from its first cell to its last, and shows what it did."""

import io
import json
import os
import pathlib
import re

import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import hub
from tests.helpers.shallow_deit import deit_ti

plt = pytest.importorskip("matplotlib.pyplot")

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "quickstart.ipynb"
NOTEBOOK = json.loads(FILE.read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
DEPTH = 2  # blocks instead of twelve: compiling them takes most of the time


def stored(cell):
    """What a stored cell has printed, and how many pictures it drew."""
    shown = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    outputs = [output.get("data", output) for output in shown]
    text = "".join("".join(output.get("text", [])) for output in outputs)
    return text, sum("image/png" in output for output in outputs)


def wording(text):
    """A text without what another machine, model or depth may say otherwise."""
    text = re.sub(r"^(trained|random) weights.*", "weights", text)
    text = re.sub(r"^(KL|change)(?= \d)", "measure", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=: ).*(?=, probability)", "class", text, flags=re.MULTILINE)
    return re.sub(r"\d+(\.\d+)?", "0", text)


# Random weights are said to be such.
@pytest.mark.filterwarnings("ignore:the head has no bias")
def test_its_cells_run_and_show_what_is_stored(tmp_path, monkeypatch, capsys):
    """On trained weights where tests have them, else on random ones."""
    deit_ti(monkeypatch, DEPTH)
    monkeypatch.chdir(tmp_path)
    drawn = []  # sizes of figures as PNG

    def show():
        with io.BytesIO() as file:
            plt.gcf().savefig(file, bbox_inches="tight")
            drawn.append(len(file.getvalue()))
        plt.close()

    def unreachable(text):
        raise InputError(f"{text}: the hub cannot be reached")

    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(hub, "fetch_repository_files", unreachable)
    assets = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", ROOT.parent / "shared"))
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(assets))
    recover = imagepiece_jax.recover

    def briefly(vit, images, steps, batch_size):
        return recover(vit, images, steps=2, batch_size=batch_size)

    monkeypatch.setattr(imagepiece_jax, "recover", briefly)
    trained = (assets / "weights" / "deit_tiny_patch16_224.pth").exists()
    space = {}
    said = []
    for cell in CODE:
        before = len(drawn)
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
        said.append(capsys.readouterr().out)
        text, pictures = stored(cell)
        assert wording(said[-1]) == wording(text), cell["id"]
        assert pictures == len(drawn) - before
    said = "".join(said)
    assert said.startswith("trained" if trained else "random")
    assert f"{196 - 13 * DEPTH} tokens; the largest stand for" in said
    assert min(drawn) > 10_000  # bytes
    assert not list(tmp_path.iterdir())
