import json

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands import export, predict
from imagepiece_jax.data.normalize import normalize
from tests.helpers import tiny_vit
from tests.helpers.picture_files import write_csv
from tests.helpers.run_command import call

PIXELS = np.random.default_rng(0).integers(
    0, 256, (4, *[tiny_vit.SIDE] * 2, 3), np.uint8
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    encoder = tiny_vit.pretrained(num_classes=0, class_token=False, depth=2)
    return imagepiece_jax.save(encoder, tmp_path_factory.mktemp("encoder") / "weights")


def pooled(saved, reduction=None):
    """Pooled vectors of the four images by the plain model, [4, D]."""
    vit = imagepiece_jax.load(saved, reduction=reduction)
    images = normalize(PIXELS, vit.config.mean, vit.config.std)
    return np.asarray(tiny_vit.jit(vit.model.apply)(vit.variables, images).pooled)


def test_predict_gives_pooled_vectors(saved, tmp_path):
    write_csv(tmp_path, PIXELS, range(4))
    out = tmp_path / "pooled.json"
    files = [tmp_path / f"{n}.png" for n in range(4)]
    words = [saved, *files, "--reduction=tome:r=4", f"--json={out}"]
    printed = call(predict.main, *words).quiet().out
    assert f"0.png: a vector of {tiny_vit.WIDTH} features" in printed
    results = json.loads(out.read_text())
    vectors = [results[str(file)]["pooled"] for file in files]
    np.testing.assert_allclose(vectors, pooled(saved, "tome:r=4"), rtol=1e-4, atol=1e-5)


def test_export_names_the_output(saved, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    call(export.main, saved, out, "--pixels").quiet()
    facts = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (facts["output"]["name"], facts["classes"]) == ("pooled", 0)
    (vectors,) = onnxruntime.InferenceSession(out).run(["pooled"], {"images": PIXELS})
    np.testing.assert_allclose(vectors, pooled(saved), rtol=1e-4, atol=1e-5)
