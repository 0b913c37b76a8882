"""The command that predicts: what it prints, its JSON, and its exit status."""

import json

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.commands import predict
from imagepiece_jax.inference.predictor import Predictor
from imagepiece_jax.pretrained import convert
from imagepiece_jax.pretrained.trained_model import Pretrained
from tests.command import call, sentence
from tests.models import tiny

SIZE = {"name": "vit_mini", "patch_size": 4, "embed_dim": 30, "depth": 3}
SIZE |= {"num_heads": 3, "dtype": "float32"}
WORDS = [f"--config.model.{name}={value}" for name, value in SIZE.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights and two photographs, between them a file that is none."""
    folder = tmp_path_factory.mktemp("predict")
    variables = tiny.variables(tiny.model())
    np.savez(folder / "w.npz", **convert.to_timm(variables))
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in ("a.png", "c.png"):
        pixels = rng.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "images" / "b.png").write_bytes(b"no image")
    return folder


def test_a_bad_image_is_named_and_the_others_answered(folder, tmp_path):
    out, images = tmp_path / "out.json", folder / "images"
    weights = f"--weights={folder / 'w.npz'}"
    words = [*WORDS, weights, "--top=2", f"--json={out}", images]
    ended = call(predict.main, *words)
    assert ended.status == 1
    assert (
        ended.err
        == f"error: {images / 'b.png'} cannot be read: no known image format\n"
    )
    lines = ended.out.splitlines()[-2:]
    assert [line.split(":")[0] for line in lines] == [
        str(images / name) for name in ("a.png", "c.png")
    ]
    found = json.loads(out.read_text())
    assert list(found) == [str(images / f"{name}.png") for name in "abc"]
    first, second = found[str(images / "a.png")]
    assert first["probability"] > second["probability"] > 0
    assert f"{first['label']} {100 * first['probability']:.1f} %" in lines[0]
    assert "cannot be read" in found[str(images / "b.png")]["error"]


def test_images_are_resized_unless_told_otherwise(tmp_path):
    model = tiny.model(image_size=40)
    np.savez(tmp_path / "w.npz", **convert.to_timm(tiny.variables(model)))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    words = [*WORDS, f"--weights={tmp_path}/w.npz", tmp_path / "a.png"]
    outs = [call(predict.main, *words, *more).out for more in ([], ["--resize=none"])]
    assert "all 1 images have 40x40 pixels, the model's size" in outs[0]
    assert "40x40" not in outs[1]
    (want,) = Predictor(Pretrained(model, tiny.variables(model)), resize="none", top=1)(
        pixels
    )
    assert f"a.png: {want.label} {100 * want.probability:.1f} %" in outs[1]


@pytest.mark.parametrize(
    "words, text",
    [
        ([], "no image is named"),
        (["--json=no/p.json", "a.png"], "--json no/p.json cannot be written"),
        (["--labels=imagenet", "images"], "labels has length 1000; the model has 7"),
    ],
)
def test_mistakes(folder, monkeypatch, words, text):
    monkeypatch.chdir(folder)
    ended = call(predict.main, *WORDS, "--weights=w.npz", *words)
    assert text in sentence(ended)
