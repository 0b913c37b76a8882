"""The notebook of docs runs from its first cell to its last, and shows what it did."""

import base64
import io
import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.deploy.weights import hub
from imagepiece_jax.errors import InputError
from tests.shallow import deit_ti

plt = pytest.importorskip("matplotlib.pyplot")

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "quickstart.ipynb"
NOTEBOOK = json.loads(FILE.read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
DEPTH = 2  # blocks instead of twelve: compiling them takes most of the time


def stored(cell):
    """What a cell printed and drew when the notebook was stored: text, pictures."""
    shown = [o for o in cell["outputs"] if o.get("name") != "stderr"]
    outputs = [output.get("data", output) for output in shown]
    text = "".join("".join(output.get("text", [])) for output in outputs)
    pictures = [base64.b64decode(o["image/png"]) for o in outputs if "image/png" in o]
    return text, [pixels(io.BytesIO(picture)) for picture in pictures]


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


def wording(text):
    """A text without what another machine, model or depth may say otherwise."""
    text = re.sub(r"^(trained|random) weights.*", "weights", text)
    text = re.sub(r"^(KL|change)(?= \d)", "measure", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=: ).*(?=, probability)", "class", text, flags=re.MULTILINE)
    return re.sub(r"\d+(\.\d+)?", "0", text)


@pytest.fixture
def drawn(monkeypatch):
    """What plt.show() shows in a notebook: the pixels of each figure."""
    figures = []

    def show():
        with io.BytesIO() as file:
            plt.gcf().savefig(file, bbox_inches="tight")
            figures.append(pixels(file))
        plt.close()

    monkeypatch.setattr(plt, "show", show)
    plt.switch_backend("agg")
    return figures


@pytest.fixture
def shallow(tmp_path, monkeypatch):
    """DeiT-Ti of DEPTH blocks, trained or not, and an empty folder to stand in."""
    deit_ti(monkeypatch, DEPTH)
    monkeypatch.chdir(tmp_path)

    def unreachable(text):
        raise InputError(f"{text}: the hub cannot be reached")

    monkeypatch.setattr(hub, "repository_files", unreachable)
    return tmp_path


# Random weights are said to be such.
@pytest.mark.filterwarnings("ignore:the head has no bias")
def test_its_cells_run_in_their_order_and_show_what_is_stored(
    shallow, monkeypatch, drawn, capsys
):
    """On trained weights where tests have them, else on random ones."""
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
        assert len(pictures) == len(drawn) - before
        for shown, picture in zip(drawn[before:], pictures, strict=True):
            # Letters of another font differ by some pixels.
            np.testing.assert_allclose(shown.shape, picture.shape, rtol=0.05)
            assert len(np.unique(shown)) > 1
    said = "".join(said)
    assert said.startswith("trained" if trained else "random")
    assert f"{196 - 13 * DEPTH} tokens; the largest stand for" in said
    assert len(drawn) == 2
    assert not list(shallow.iterdir())
