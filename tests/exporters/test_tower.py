import dataclasses
import json
import os
import subprocess

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.exporters import tower
from imagepiece_jax.exporters.export import export
from imagepiece_jax.exporters.program_facts import facts_file
from imagepiece_jax.models.config import MULTI_LABEL, SINGLE_LABEL
from imagepiece_jax.models.program import open_program
from tests.helpers import small_photographs, tiny_vit
from tests.helpers.refused_calls import refused

onnxruntime = pytest.importorskip("onnxruntime")

REDUCTION = "tome:r=4"
# A Python with requirements-clients.txt: `make clients`.
CLIENTS = os.environ.get("IMAGEPIECE_CLIENTS")
# A folder in which `npm install @huggingface/transformers` has run.
TRANSFORMERS_JS = os.environ.get("IMAGEPIECE_TRANSFORMERS_JS")


def encoder(reduction=REDUCTION, **options):
    """A model without a head."""
    return tiny_vit.pretrained(reduction, num_classes=0, **options)


def clip(reduction=REDUCTION):
    """A model with a projection head."""
    return tiny_vit.with_problem_type(tiny_vit.pretrained(reduction), "projection")


def siglip(reduction=REDUCTION):
    """A model with an attention-pooling head."""
    return encoder(reduction, class_token=False, pool="map")


def nameless(reduction=REDUCTION):
    """A classifier without class names."""
    return tiny_vit.pretrained(reduction)


def classifier(reduction=REDUCTION):
    names = tuple(f"class {label}" for label in range(tiny_vit.CLASSES))
    return dataclasses.replace(tiny_vit.pretrained(reduction), class_names=names)


CASES = [
    (encoder, "immich", "visual/model.onnx", ["embedding"]),
    (clip, "immich", "visual/model.onnx", ["embedding"]),
    (encoder, "fastembed", "model.onnx", ["image_embeds"]),
    (clip, "transformers", "onnx/vision_model.onnx", ["image_embeds"]),
    (classifier, "transformers", "onnx/model.onnx", ["logits"]),
    (nameless, "transformers", "onnx/model.onnx", ["logits"]),
    (
        siglip,
        "transformers",
        "onnx/vision_model.onnx",
        ["last_hidden_state", "pooler_output"],
    ),
    (
        encoder,
        "transformers",
        "onnx/model.onnx",
        ["last_hidden_state", "pooler_output"],
    ),
]


@pytest.mark.parametrize("reduction", [None, REDUCTION])
@pytest.mark.parametrize("make, layout, file, names", CASES)
def test_a_graph_has_its_clients_inputs_and_outputs(
    tmp_path, make, layout, file, names, reduction
):
    vit = make(reduction)
    out = export(vit, tmp_path, layout=layout)
    assert out == tmp_path / file
    session = onnxruntime.InferenceSession(out)
    (images,) = session.get_inputs()
    assert images.shape == ["batch", 3, tiny_vit.SIDE, tiny_vit.SIDE]
    assert images.type == "tensor(float)"
    assert images.name == ("image" if layout == "immich" else "pixel_values")
    outputs_by_name = {value.name: value for value in session.get_outputs()}
    assert [*outputs_by_name] == names
    input_images = tiny_vit.images(2)
    pixels = np.asarray(input_images).transpose(0, 3, 1, 2)
    arrays = session.run(None, {images.name: pixels})
    outputs = vit.model.apply(vit.variables, input_images)
    expected = outputs.logits if vit.config.num_classes else outputs.pooled
    if layout == "immich":
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(arrays[-1], expected, rtol=1e-4, atol=1e-5)
    if "pooler_output" in names:
        tokens = arrays[0]
        assert tokens.shape == (2, outputs.tokens.shape[1], vit.config.embed_dim)
        np.testing.assert_allclose(tokens, outputs.tokens, rtol=1e-4, atol=1e-5)


def test_clips_tokens_are_before_the_last_norm(tmp_path):
    """transformers applies the last norm to the class token alone."""
    vit = encoder(None, pre_norm=True)
    session = onnxruntime.InferenceSession(export(vit, tmp_path, layout="transformers"))
    images = tiny_vit.images(2)
    array = np.asarray(images).transpose(0, 3, 1, 2)
    tokens, pooled = session.run(None, {"pixel_values": array})
    outputs = vit.model.apply(vit.variables, images)
    np.testing.assert_allclose(tokens, outputs.state.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled, outputs.pooled, rtol=1e-4, atol=1e-5)


def test_unsuitable_models_are_refused(tmp_path):
    with refused("layout"):
        export(encoder(), tmp_path, layout="photos")
    with refused("layout", f"{tiny_vit.CLASSES} classes"):
        export(classifier(), tmp_path, layout="immich")
    with refused("layout", f"{tiny_vit.CLASSES} classes"):
        export(nameless(), tmp_path, layout="fastembed")
    for problem_type, classes in (
        ("regression", 3),
        (MULTI_LABEL, 3),
        (SINGLE_LABEL, 1),
    ):
        vit = tiny_vit.pretrained(REDUCTION, num_classes=classes)
        with refused("transformers", f"{classes} classes", "--num-classes 0"):
            vit = tiny_vit.with_problem_type(vit, problem_type)
            export(vit, tmp_path, layout="transformers")
    with refused("output"):
        export(encoder(), tmp_path, layout="fastembed", output="patches")
    with refused("pixels"):
        export(encoder(), tmp_path, layout="fastembed", pixels=True)
    with refused("immich", "crop=1"):
        export(encoder().with_preprocessing(crop=0.9), tmp_path, layout="immich")
    with refused("pool", "no image vector"):
        export(encoder(None, pool="none"), tmp_path, layout="fastembed")
    with refused("image_size", "square images"):
        export(encoder(image_size=(20, 28)), tmp_path, layout="fastembed")


@pytest.mark.parametrize("layout", tower.PROGRAM_LAYOUTS)
def test_foreign_files_stay(tmp_path, layout):
    """A saved model has its own config.json."""
    vit = clip()
    saved = imagepiece_jax.save(vit, tmp_path / "saved")
    before = {file: file.read_bytes() for file in saved.iterdir()}
    with refused("out", "holds config.json, not of an export"):
        export(vit, saved, layout=layout)
    assert {file: file.read_bytes() for file in saved.iterdir()} == before
    out = tmp_path / "new"
    graph = tower.find_graph_file(out, layout, vit)
    graph.parent.mkdir(parents=True)  # Ctrl-C may leave it
    assert export(vit, out, layout=layout) == export(vit, out, layout=layout)
    files = {file for file in out.rglob("*") if file.is_file()}
    beside = {out / name for name in tower.PROGRAM_LAYOUTS[layout].files(vit)}
    assert files == {graph, facts_file(graph), *beside}


NAMES = {
    "immich": ["visual/model.onnx"] * 2,
    "fastembed": ["model.onnx"] * 2,
    "transformers": ["onnx/vision_model_fp16.onnx", "onnx/vision_model_quantized.onnx"],
}


@pytest.mark.parametrize("layout", tower.PROGRAM_LAYOUTS)
def test_small_types_have_their_clients_file_names(tmp_path, layout):
    """transformers.js reads dtype "fp16" and "q8"; other programs have one name."""
    vit = clip()
    if layout == "transformers":  # beside the file in float32
        export(vit, tmp_path, layout=layout)
    images = small_photographs.draw(40)
    input_images = np.asarray(tiny_vit.images(2)).transpose(0, 3, 1, 2)
    expected = vit.model.apply(vit.variables, tiny_vit.images(2)).logits
    for dtype, name in zip(("float16", "int8"), NAMES[layout], strict=True):
        out = export(vit, tmp_path, layout=layout, dtype=dtype, images=images)
        assert out == tmp_path / name
        session = onnxruntime.InferenceSession(out)
        (entry,) = session.get_inputs()
        vectors = session.run(None, {entry.name: input_images})[-1]
        assert vectors.dtype == np.float32
        assert_near(vectors, expected, dtype)
        assert open_program(out).model.execution.dtype == dtype  # for reports
        assert name.rpartition("/")[2] in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("make", [classifier, encoder])
def test_types_of_two_models_do_not_share_a_folder(tmp_path, make):
    """The files beside the graphs are the first one's: its size, its classes."""
    first = export(make(), tmp_path, layout="transformers")
    before = read_files(tmp_path)
    second = make()
    if make is encoder:
        second = encoder(depth=2)
    else:
        names = tuple(f"car {label}" for label in range(tiny_vit.CLASSES))
        second = dataclasses.replace(second, class_names=names)
    with refused("another model", "config.json"):
        export(second, tmp_path, layout="transformers", dtype="float16")
    assert read_files(tmp_path) == before
    export(second, tmp_path, layout="transformers")  # in the first one's place
    assert export(second, tmp_path, layout="transformers", dtype="float16") != first


def read_files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def photographs(tmp_path):
    """Files of the model's size, so no client resizes."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(map(str, folder.iterdir()))


def uncropped(vit):
    """The model with a crop of the whole image."""
    return vit.with_preprocessing(crop=1.0)


CLOSE = {"float32": 1 - 1e-5, "float16": 0.999, "int8": 0.9}
THEIRS = {"float32": "fp32", "float16": "fp16", "int8": "q8"}  # in transformers.js


def assert_near(vectors, expected, dtype):
    """Cosines of rows are as close to 1 as the type allows."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert (np.sum(vectors * expected, axis=1) / lengths > CLOSE[dtype]).all()


def assert_client_outputs(vit, photographs, dtype, printed):
    """A client printed a row per image: the vector."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in photographs])
    images = imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)
    vectors = np.array([json.loads(line) for line in printed.splitlines()])
    assert_near(vectors, vit.model.apply(vit.variables, images).logits, dtype)


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
def test_a_client_gets_the_models_outputs(tmp_path, photographs, dtype):
    vit = uncropped(clip())
    options = {"dtype": dtype, "images": small_photographs.draw(40)}
    export(vit, tmp_path / "out", layout="fastembed", **options)
    command = [CLIENTS, "-c", FASTEMBED_SCRIPT, tmp_path / "out", *photographs]
    # The client has its own packages.
    variables = os.environ | {"PYTHONPATH": ""}
    ended = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert ended.returncode == 0, ended.stderr
    assert_client_outputs(vit, photographs, dtype, ended.stdout)


SCRIPT = """
import { AutoModel, AutoProcessor, RawImage, env } from '@huggingface/transformers';
env.allowRemoteModels = false;
const [root, file, dtype, ...images] = process.argv.slice(2);
env.localModelPath = root;
const model = await AutoModel.from_pretrained(
  'out', {dtype, model_file_name: file});
const processor = await AutoProcessor.from_pretrained('out');
for (const path of images) {
  const found = await model(await processor(await RawImage.read(path)));
  const [vector] = ['pooler_output', 'image_embeds'].flatMap(name => found[name] ?? []);
  console.log(JSON.stringify(Array.from(vector.data)));
}
"""


@pytest.mark.skipif(not TRANSFORMERS_JS, reason="IMAGEPIECE_TRANSFORMERS_JS is not set")
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("make", [encoder, clip])
def test_transformers_js_gets_the_models_vectors(tmp_path, photographs, make, dtype):
    vit = uncropped(make())
    images = small_photographs.draw(40)
    file = export(
        vit, tmp_path / "out", layout="transformers", dtype=dtype, images=images
    )
    name = file.stem.removesuffix(tower.DTYPE_SUFFIXES[dtype])
    script = os.path.join(TRANSFORMERS_JS, "tower.mjs")
    with open(script, "w", encoding="utf-8") as opened:
        opened.write(SCRIPT)
    command = ["node", script, f"{tmp_path}/", name, THEIRS[dtype], *photographs]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert_client_outputs(vit, photographs, dtype, ended.stdout)


def test_a_config_has_transformers_fields(tmp_path):
    vit = classifier()
    export(vit, tmp_path, layout="transformers")
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["id2label"]["2"] == "class 2"
    assert tower.transformers_config_fields(nameless())["id2label"][2] == "LABEL_2"
    assert fields["patch_size"] == vit.config.patch_size


def test_only_a_config_of_transformers_is_copied(tmp_path):
    vit = encoder()
    content = {"model_type": "dinov2", "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    origin = dataclasses.replace(vit.origin, path=tmp_path)
    config = tower.transformers_config_fields(dataclasses.replace(vit, origin=origin))
    assert config == content
    saved = imagepiece_jax.load(imagepiece_jax.save(vit, tmp_path / "saved"))
    assert tower.transformers_config_fields(saved)["model_type"] == "vit"


def test_a_copied_config_gets_the_models_size_and_classes(tmp_path):
    vit = classifier()
    content = {"model_type": "vit", "image_size": 8, "id2label": {"0": "cat"}}
    content["architectures"] = ["ViTModel"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    origin = dataclasses.replace(vit.origin, path=tmp_path)
    config = tower.transformers_config_fields(dataclasses.replace(vit, origin=origin))
    assert config["id2label"] == dict(enumerate(vit.class_names))
    assert config["label2id"]["class 1"] == 1
    assert config["architectures"] == ["ViTForImageClassification"]
    assert config["problem_type"] == "single_label_classification"
    assert config["image_size"] == tiny_vit.SIDE
    config = tower.transformers_config_fields(
        dataclasses.replace(encoder(), origin=origin)
    )
    assert config == {"model_type": "vit", "image_size": tiny_vit.SIDE}
