"""The table of feature maps: every method, every way to fill, and the bounds."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import patch_features
from imagepiece_jax.pretrained import convert
from tests.command import call, sentence
from tests.models import tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Weights, and images of other classes, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("set")
    model = tiny.model(embed_dim=64, num_heads=4, depth=1)
    np.savez(folder / "vit_mini.npz", **convert.to_timm(tiny.variables(model)))
    rng, rows = np.random.default_rng(0), ["filename,label"]
    for i in range(5):
        pixels = rng.integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{tiny.CLASSES + i}")
    (folder / "2.png").write_bytes(b"nothing")
    (folder / "set.csv").write_text("\n".join(rows))
    return ["--weights", folder / "vit_mini.npz", "--data", f"csv:{folder}/set.csv"]


@pytest.mark.slow
def test_table_has_every_way_to_fill(tmp_path, words):
    out = tmp_path / "out"
    ended = call(
        patch_features.main,
        *(*words, "--out", out, "--images", 5),
        *("--sweep", "tome:r=1", "--sweep", "evit:blocks=(0,)"),
    )
    assert ended.status == 0, ended
    rows = json.loads((out / "patch_features.json").read_text())
    assert [(row["setting"], row.get("fill")) for row in rows] == [
        ("dense", None),
        ("position alone", None),
        ("tome r=1", None),
        *(("evit blocks=(0,)", fill) for fill in ("last", "zero", "class")),
    ]
    assert [row.get("tokens") for row in rows] == [25, None, 24, 18, 18, 18]
    assert rows[0]["self_similarity"] == pytest.approx([1, 1, 1], abs=1e-6)
    assert all(-1 <= row["self_similarity"][0] < 0.9999 for row in rows[1:])
    tome, last, zero, _ = rows[2:]
    assert set(tome["cosine"]) == {"alone", "merged"}
    assert set(last["cosine"]) == {"alone", "dropped"}
    assert last["cosine"]["alone"] == zero["cosine"]["alone"] > 0.5
    assert last["cosine"]["dropped"] > zero["cosine"]["dropped"] == 0
    table = (out / "patch_features.md").read_text()
    assert (
        "4 images of csv:" in table
        and "/set.csv (images as they are, 20x20), weights vit_mini.npz; 95 %" in table
        and table.count("\n| ") == 1 + 6
    )
    assert "| evit blocks=(0,) | zero | 18 |" in table
    assert len(ended.out.splitlines()) == 1 + 6 + 1


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "--sweep is missing: name methods, such as --sweep tome:r=8"),
        (["--sweep=tome:r=1", "--images=3"], "--images is 3; allowed are 4 or more"),
        (["--sweep=tome:r=1", "--images=4"], "has 3 readable images; allowed are 4 or"),
        (["--sweep=tome:r=1", "--data=digit"], "config.data.name is 'digit': allowed"),
    ],
)
def test_mistakes(words, more, message):
    assert message in sentence(call(patch_features.main, *words, *more))


def test_flags_that_are_needed_are_named():
    message = sentence(call(patch_features.main))
    assert message.startswith("--weights is missing: a .npz, .safetensors or .pth file")
    message = sentence(call(patch_features.main, "--weights=w.npz"))
    assert message.startswith("--data is missing: csv:FILE, folder:PATH")
