import dataclasses
import functools
import json
import os
import subprocess

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.exporters import tower
from imagepiece_jax.exporters.export import export
from imagepiece_jax.exporters.program_facts import facts_file
from imagepiece_jax.models.config import MULTI_LABEL
from imagepiece_jax.models.program import open_program
from tests.helpers import small_photographs, tiny_vit
from tests.helpers.refused_calls import refused

onnxruntime = pytest.importorskip("onnxruntime")

REDUCTION = "tome:r=4"
# A Python with requirements-clients.txt: `make clients`.
CLIENTS = os.environ.get("IMAGEPIECE_CLIENTS")


def encoder(reduction=REDUCTION, **options):
    """A model without a head."""
    return tiny_vit.pretrained(reduction, num_classes=0, **options)


clip_encoder = functools.partial(encoder, pre_norm=True)
siglip = functools.partial(encoder, class_token=False, pool="map")


def clip(reduction=REDUCTION):
    """A model with a projection head."""
    return tiny_vit.with_problem_type(tiny_vit.pretrained(reduction), "projection")


def classifier(reduction=REDUCTION):
    names = tuple(f"class {label}" for label in range(tiny_vit.CLASSES))
    return dataclasses.replace(tiny_vit.pretrained(reduction), class_names=names)


TOKENS_AND_POOLED = ["last_hidden_state", "pooler_output"]
CASES = [
    (encoder, "immich", "visual/model.onnx", ["embedding"]),
    (clip, "immich", "visual/model.onnx", ["embedding"]),
    (encoder, "fastembed", "model.onnx", ["image_embeds"]),
    (clip, "transformers", "onnx/vision_model.onnx", ["image_embeds"]),
    (classifier, "transformers", "onnx/model.onnx", ["logits"]),
    (siglip, "transformers", "onnx/vision_model.onnx", TOKENS_AND_POOLED),
    (encoder, "transformers", "onnx/model.onnx", TOKENS_AND_POOLED),
    (clip_encoder, "transformers", "onnx/model.onnx", TOKENS_AND_POOLED),
]


def run_graph(session):
    """Outputs for two images, which are also returned as [2, H, W, 3]."""
    images = tiny_vit.images(2)
    (entry,) = session.get_inputs()
    pixels = np.asarray(images).transpose(0, 3, 1, 2)
    return images, session.run(None, {entry.name: pixels})


@pytest.mark.parametrize("reduction", [None, REDUCTION])
@pytest.mark.parametrize("make, layout, file, names", CASES)
def test_a_graph_has_its_clients_inputs_and_outputs(
    tmp_path, make, layout, file, names, reduction
):
    vit = make(reduction)
    out = export(vit, tmp_path, layout=layout)
    assert out == tmp_path / file
    session = onnxruntime.InferenceSession(out)
    (entry,) = session.get_inputs()
    assert entry.shape == ["batch", 3, tiny_vit.SIDE, tiny_vit.SIDE]
    assert entry.type == "tensor(float)"
    assert entry.name == ("image" if layout == "immich" else "pixel_values")
    assert [output.name for output in session.get_outputs()] == names
    images, arrays = run_graph(session)
    outputs = vit.model.apply(vit.variables, images)
    expected = outputs.logits if vit.config.num_classes else outputs.pooled
    if layout == "immich":
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(arrays[-1], expected, rtol=1e-4, atol=1e-5)
    if names == TOKENS_AND_POOLED:
        # transformers applies CLIP's last norm to the class token alone.
        tokens = outputs.state.x if make is clip_encoder else outputs.tokens
        np.testing.assert_allclose(arrays[0], tokens, rtol=1e-4, atol=1e-5)


def test_unsuitable_models_are_refused(tmp_path):
    """transformers.js takes a softmax of all logits; no program takes oblong images."""
    several = tiny_vit.with_problem_type(classifier(), MULTI_LABEL)
    cropped = encoder().with_preprocessing(crop=0.9)
    for vit, layout, word in (
        (classifier(), "immich", "--num-classes 0"),
        (several, "transformers", f"{tiny_vit.CLASSES} classes"),
        (cropped, "immich", "crop=1"),
        (encoder(None, pool="none"), "fastembed", "no image vector"),
        (encoder(image_size=(20, 28)), "fastembed", "square images"),
    ):
        with refused(word):
            export(vit, tmp_path, layout=layout)
    with refused("pixels"):
        export(encoder(), tmp_path, layout="fastembed", pixels=True)


def read_files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("layout", tower.PROGRAM_LAYOUTS)
def test_foreign_files_stay(tmp_path, layout):
    """A saved model has its own config.json."""
    vit = clip()
    saved = imagepiece_jax.save(vit, tmp_path / "saved")
    before = read_files(saved)
    with refused("out", "holds config.json, not of an export"):
        export(vit, saved, layout=layout)
    assert read_files(saved) == before
    out = tmp_path / "new"
    graph = tower.find_graph_file(out, layout, vit)
    graph.parent.mkdir(parents=True)  # Ctrl-C may leave it
    assert export(vit, out, layout=layout) == export(vit, out, layout=layout)
    beside = {out / name for name in tower.PROGRAM_LAYOUTS[layout].files}
    assert read_files(out).keys() == {graph, facts_file(graph), *beside}


def test_small_types_have_their_clients_file_names(tmp_path):
    """transformers.js reads dtype "fp16" and "q8"; other programs have one name."""
    vit = clip()
    export(vit, tmp_path, layout="transformers")  # beside the file in float32
    images = small_photographs.draw(40)
    for dtype, ending in (("float16", "fp16"), ("int8", "quantized")):
        options = {"layout": "transformers", "dtype": dtype, "images": images}
        out = export(vit, tmp_path, **options)
        assert out == tmp_path / "onnx" / f"vision_model_{ending}.onnx"
        inputs, (vectors,) = run_graph(onnxruntime.InferenceSession(out))
        assert vectors.dtype == np.float32
        assert_near(vectors, vit.model.apply(vit.variables, inputs).logits, dtype)
        assert open_program(out).model.execution.dtype == dtype  # for reports
        assert out.name in (tmp_path / "README.md").read_text()


def test_types_of_two_models_do_not_share_a_folder(tmp_path):
    """The files beside the graphs are the first one's: its classes."""
    first = export(classifier(), tmp_path, layout="transformers")
    before = read_files(tmp_path)
    names = tuple(f"car {label}" for label in range(tiny_vit.CLASSES))
    second = dataclasses.replace(classifier(), class_names=names)
    with refused("another model", "config.json"):
        export(second, tmp_path, layout="transformers", dtype="float16")
    assert read_files(tmp_path) == before
    export(second, tmp_path, layout="transformers")  # in the first one's place
    assert export(second, tmp_path, layout="transformers", dtype="float16") != first


CLOSE = {"float32": 1 - 1e-5, "float16": 0.999, "int8": 0.9}


def assert_near(vectors, expected, dtype):
    """Cosines of rows are as close to 1 as the type allows."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert (np.sum(vectors * expected, axis=1) / lengths > CLOSE[dtype]).all()


FASTEMBED_SCRIPT = """
import sys
import fastembed
folder, *images = sys.argv[1:]
model = fastembed.ImageEmbedding("Qdrant/resnet50-onnx", specific_model_path=folder)
for vector in model.embed(images):
    print(vector.tolist())
"""


@pytest.mark.skipif(not CLIENTS, reason="IMAGEPIECE_CLIENTS is not set")
@pytest.mark.parametrize("dtype", CLOSE)
def test_a_client_gets_the_models_outputs(tmp_path, dtype):
    vit = clip().with_preprocessing(crop=1.0)
    options = {"dtype": dtype, "images": small_photographs.draw(40)}
    export(vit, tmp_path / "out", layout="fastembed", **options)
    # Files of the model's size, so the client does not resize.
    folder = small_photographs.write_photographs(tmp_path / "photographs", 3)
    photographs = sorted(folder.iterdir())
    command = [CLIENTS, "-c", FASTEMBED_SCRIPT, tmp_path / "out", *photographs]
    # The client has its own packages.
    variables = os.environ | {"PYTHONPATH": ""}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert ended.returncode == 0, ended.stderr
    vectors = np.array([json.loads(line) for line in ended.stdout.splitlines()])
    pixels = small_photographs.draw(3)
    images = imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)
    assert_near(vectors, vit.model.apply(vit.variables, images).logits, dtype)


def test_a_config_has_transformers_fields(tmp_path):
    """Also of a model that was loaded from a folder of this package."""
    vit = classifier()
    fields = tower.config_fields(vit)
    assert fields["id2label"][2] == "class 2"
    assert fields["patch_size"] == vit.config.patch_size
    nameless = dataclasses.replace(vit, class_names=None)
    assert tower.config_fields(nameless)["id2label"][2] == "LABEL_2"
    saved = imagepiece_jax.load(imagepiece_jax.save(encoder(), tmp_path / "saved"))
    assert tower.config_fields(saved)["model_type"] == "vit"


def test_a_copied_config_gets_the_models_size_and_classes(tmp_path):
    content = {"model_type": "dinov2", "image_size": 8, "id2label": {"0": "cat"}}
    content["architectures"] = ["Dinov2Model"]
    (tmp_path / "config.json").write_text(json.dumps(content))

    def copied_config(vit):
        origin = dataclasses.replace(vit.origin, path=tmp_path)
        return tower.config_fields(dataclasses.replace(vit, origin=origin))

    config = copied_config(classifier())
    assert config["id2label"] == dict(enumerate(classifier().class_names))
    assert config["label2id"]["class 1"] == 1
    assert config["architectures"] == ["ViTForImageClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert config["image_size"] == tiny_vit.SIDE
    encoder_fields = {"model_type": "dinov2", "image_size": tiny_vit.SIDE}
    assert copied_config(encoder()) == encoder_fields
