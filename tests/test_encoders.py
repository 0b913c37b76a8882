"""Commands on weights without classes: pooled vectors, or a sentence where none fit."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import export, predict
from imagepiece_jax.data.normalize import normalize
from tests.command import call
from tests.models import tiny
from tests.pictures import write_csv


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An encoder that reads the mean, in a folder, with four images of its size."""
    folder = tmp_path_factory.mktemp("encoder")
    encoder = tiny.pretrained(num_classes=0, class_token=False, depth=2)
    imagepiece_jax.save(encoder, folder / "weights")
    (folder / "images").mkdir()
    picture_set(folder, "images/")
    return folder


def picture_set(folder, inside="", count=4, side=tiny.SIDE):
    """Images of noise in a folder, with a label each in set.csv."""
    rng = np.random.default_rng(0)
    shape = (count, side, side, 3)
    write_csv(folder, rng.integers(0, 256, shape, np.uint8), range(count), inside)


def pooled(saved, reduction=None):
    """Pooled vectors of the four images by the plain model, [4, D]."""
    vit = imagepiece_jax.load(saved / "weights", reduction=reduction)
    images = normalize(pixels(saved), vit.model.config.mean, vit.model.config.std)
    return np.asarray(jax.jit(vit.model.apply)(vit.variables, images).pooled)


def pixels(saved):
    files = sorted((saved / "images").iterdir())
    return np.stack([np.asarray(Image.open(file)) for file in files])


def done(main, saved, *words):
    return call(main, saved / "weights", *words).quiet().out


def test_predict_gives_pooled_vectors(saved, tmp_path):
    out = tmp_path / "pooled.json"
    tome = ["--reduction=tome:r=4", f"--json={out}"]
    said = done(predict.main, saved, saved / "images", *tome)
    assert f"0.png: a vector of {tiny.WIDTH} features" in said
    found = json.loads(out.read_text())
    vectors = [found[str(saved / "images" / f"{n}.png")]["pooled"] for n in range(4)]
    want = pooled(saved, "tome:r=4")
    np.testing.assert_allclose(vectors, want, rtol=1e-4, atol=1e-5)


def outputs(path, images, names=None):
    """What an exported program gives."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(names, {"images": np.asarray(images)})


def test_export_names_the_output(saved, tmp_path):
    out = tmp_path / "model.onnx"
    done(export.main, saved, out, "--pixels")
    facts = json.loads((tmp_path / "model.onnx.json").read_text())
    assert facts["output"]["name"] == "pooled"
    assert facts["classes"] == 0
    (found,) = outputs(out, pixels(saved), ["pooled"])
    np.testing.assert_allclose(found, pooled(saved), rtol=1e-4, atol=1e-5)
