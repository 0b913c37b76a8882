"""The notebook of docs runs, and prints its stored outputs."""

import json
import os
import pathlib
import re
from unittest import mock

import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import location
from tests.helpers.shallow_deit import deit_ti

plt = pytest.importorskip("matplotlib.pyplot")

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "quickstart.ipynb"
NOTEBOOK = json.loads(FILE.read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
DEPTH = 2  # blocks instead of twelve: compiling them takes most of the time


def mask_varying_parts(text):
    """Mask the parts of a text that depend on machine, model or depth."""
    text = re.sub(r"^(trained|random) weights.*", "weights", text)
    text = re.sub(r"^(KL|change)(?= \d)", "measure", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=: ).*(?=, probability)", "class", text, flags=re.MULTILINE)
    return re.sub(r"\d+(\.\d+)?", "0", text)


# Random weights have no bias of the head.
@pytest.mark.filterwarnings("ignore:the head has no bias")
def test_cells_print_their_stored_outputs(tmp_path, monkeypatch, capsys):
    """With trained weights where tests have them, else with random ones."""
    deit_ti(monkeypatch, DEPTH)
    monkeypatch.chdir(tmp_path)
    shown = []
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()) or plt.close())
    unreachable = mock.Mock(side_effect=InputError("the hub cannot be reached"))
    monkeypatch.setattr(location, "fetch_folder", unreachable)
    assets = pathlib.Path(os.environ.get("IMAGEPIECE_ASSETS", ROOT.parent / "shared"))
    monkeypatch.setenv("IMAGEPIECE_ASSETS", str(assets))
    recover = imagepiece_jax.recover
    briefly = lambda vit, images, **_: recover(vit, images, steps=2, batch_size=8)  # noqa: E731
    monkeypatch.setattr(imagepiece_jax, "recover", briefly)
    trained = (assets / "weights" / "deit_tiny_patch16_224.pth").exists()
    space = {}
    printed = ""
    for cell in CODE:
        shown.clear()
        exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
        text = capsys.readouterr().out
        stored = ""
        for output in cell["outputs"]:
            if output.get("name") == "stdout":
                stored += "".join(output["text"])
        assert mask_varying_parts(text) == mask_varying_parts(stored), cell["id"]
        assert len(shown) == str(cell["outputs"]).count("image/png")
        printed += text
    assert printed.startswith("trained" if trained else "random")
    assert f"{196 - 13 * DEPTH} tokens; the largest stand for" in printed
    assert not list(tmp_path.iterdir())
