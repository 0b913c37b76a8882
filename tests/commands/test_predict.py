import json

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.commands import predict, visualize
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters import program_facts
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from tests.helpers import named_models, tiny_vit
from tests.helpers.picture_files import noise, write_damaged, write_images
from tests.helpers.run_command import call


def test_an_encoder_gives_pooled_vectors(tmp_path):
    vit = tiny_vit.pretrained(num_classes=0, class_token=False, depth=2)
    weights = imagepiece_jax.save(vit, tmp_path / "w")
    (file,) = write_images(tmp_path / "images", noise(1, tiny_vit.SIDE, tiny_vit.SIDE))
    out = tmp_path / "a.json"
    ended = call(predict.main, weights, file, "--reduction=tome:r=4", f"--json={out}")
    assert f"00.png: a vector of {tiny_vit.WIDTH} features" in ended.quiet().out
    images = normalize(np.asarray(Image.open(file))[None], IMAGENET_MEAN, IMAGENET_STD)
    reduced = vit.reduced_model("tome:r=4")
    pooled = tiny_vit.jit(reduced.apply)(vit.variables, images).pooled
    found = json.loads(out.read_text())[str(file)]["pooled"]
    np.testing.assert_allclose(found, pooled[0], rtol=1e-4, atol=1e-5)


def test_a_model_without_a_pool_gives_a_vector_per_token(tmp_path):
    vit = tiny_vit.pretrained(num_classes=0, pool="none", depth=1)
    weights = imagepiece_jax.save(vit, tmp_path / "w")
    (file,) = write_images(tmp_path / "images", noise(1, tiny_vit.SIDE, tiny_vit.SIDE))
    ended = call(predict.main, weights, file)
    num_tokens = vit.config.num_tokens
    assert f"00.png: {num_tokens} vectors of {tiny_vit.WIDTH} features" in ended.out


def test_a_damaged_image_is_named_and_others_are_predicted(tmp_path):
    out = tmp_path / "out.json"
    images = tmp_path / "images"
    write_damaged(images, tiny_vit.SIDE)
    weights = imagepiece_jax.save(tiny_vit.pretrained(), tmp_path / "w")
    words = [weights, images, "--top=2", f"--json={out}"]
    ended = call(predict.main, *words)
    assert ended.status == 1
    reason = "cannot be read (no known image format)"
    assert ended.err == f"error: {images}/b.png {reason}\n"
    predictions = json.loads(out.read_text())
    names = [str(images / f"{name}.png") for name in "abc"]
    assert list(predictions) == names
    lines = ended.out.splitlines()[-2:]
    assert [line.split(":")[0] for line in lines] == names[::2]
    first, second = predictions[names[0]]
    assert first["probability"] > second["probability"] > 0
    assert f"{first['label']} {100 * first['probability']:.1f} %" in lines[0]
    assert "cannot be read" in predictions[names[1]]["error"]


@pytest.fixture(scope="module")
def panda(tmp_path_factory):
    """Weights under a public name that predict class 388 for every image."""
    folder = tmp_path_factory.mktemp("public")
    model = create_model(named_models.config("test_vit", num_classes=1000))
    tensors = timm_tensors.to_timm(tiny_vit.fill(variable_shapes(model)))
    tensors["head.bias"] = 100 * np.eye(1000, dtype=np.float32)[388]
    np.savez(folder / "test_vit.npz", **tensors)
    Image.new("RGB", (160, 160)).save(folder / "a.png")
    return folder


def test_public_weights_name_their_classes(panda, tmp_path, monkeypatch):
    monkeypatch.chdir(panda)
    words = ["test_vit.npz", "a.png"]
    ended = call(predict.main, *words, f"--json={tmp_path}/p.json")
    assert ended.out.startswith("a.png: giant panda 100.0 %; "), ended
    first, *_ = json.loads((tmp_path / "p.json").read_text())["a.png"]
    assert (first["label"], first["index"]) == ("giant panda", 388)
    assert call(visualize.main, *words, f"--out={tmp_path}/page").status == 0
    assert "giant panda, 100 % sure" in (tmp_path / "page" / "index.html").read_text()
    vit = imagepiece_jax.load(panda / "test_vit.npz")
    saved = imagepiece_jax.load(imagepiece_jax.save(vit, tmp_path / "saved"))
    facts = program_facts.collect_facts(ProgramInterface(saved))
    assert facts["class_names"][388] == "giant panda"
