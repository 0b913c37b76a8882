"""The exported program, run without this package: the same logits."""

import dataclasses
import datetime
import importlib.util
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flatbuffers import builder

import imagepiece_jax
from imagepiece_jax.commands import export
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import jax_export, onnx_model
from imagepiece_jax.inference.features import features
from imagepiece_jax.inference.onnx_graph import stored_dtype
from imagepiece_jax.inference.program_outputs import ProgramOutputs
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction.methods import METHODS
from tests.command import call, sentence, start
from tests.models import tiny
from tests.models.test_families import few
from tests.refused import refused
from tests.runs import ROOT, configured

MODEL = {"model.embed_dim": 8, "model.depth": 2, "model.num_heads": 2}
MODEL |= {"model.dtype": "float32", "reduction.merge_blocks": (0,)}
MODEL |= {"reduction.prune_blocks": (1,)}
WORDS = ["--name=vit_mini", "--model=num_heads=2", "--dtype=float32"]
WORDS += ["--reduction=imagepiece:merge_blocks=(0,):prune_blocks=(1,)"]

# A program of a user who has JAX alone.
READER = """
import sys
sys.modules["imagepiece_jax"] = sys.modules["flax"] = None  # importing them fails
import jax, numpy as np
with open(sys.argv[1], "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
images = np.load(sys.argv[2])
logits = {str(b): jax.jit(program.call)(images[:b]) for b in (1, 3)}
np.savez(sys.argv[3], **logits)
"""


@pytest.fixture(scope="module")
def model():
    return RunConfig.from_config(configured(MODEL)).create_model()


@pytest.fixture(scope="module")
def variables(model):
    return tiny.fill(tiny.shapes(model, 16))


@pytest.fixture(scope="module")
def weights_file(variables, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("weights") / "w.npz", variables)


@pytest.mark.parametrize(
    "problem_type, activation",
    [
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", None),
    ],
)
def test_the_facts_say_what_images_and_logits_are(problem_type, activation):
    vit = tiny.pretrained(depth=1)
    prepared = Preprocessing(tiny.SIDE, crop=0.9, rule="transformers")
    vit = dataclasses.replace(vit, preprocessing=prepared, problem_type=problem_type)
    images = jax_export.exported_images(vit)
    facts = jax_export.program_facts(vit, images)
    assert facts["problem_type"] == problem_type
    assert facts["activation"] == activation
    assert Preprocessing.from_fields(20, crop_of(facts["preprocessing"])) == prepared
    assert facts["preprocessing"]["resized"] == [22, 22]


def test_the_facts_say_what_arrays_a_file_has():
    """ONNX has wide integers; what are no logits becomes no probabilities."""
    vit = tiny.pretrained(depth=1)
    outputs = ProgramOutputs(vit, output="patches", tokens=tiny.TOKENS)
    images = jax_export.exported_images(vit, 2)
    for stored, integers in ((np.dtype, "int32"), (stored_dtype, "int64")):
        facts = jax_export.program_facts(vit, images, outputs, stored)
        found = {a["name"]: (a["shape"], a["dtype"]) for a in facts["output"]}
        assert found == {
            "patches": ([2, 5, 5, tiny.WIDTH], "float32"),
            "tokens": ([2, tiny.TOKENS, tiny.WIDTH], "float32"),
            "size": ([2, tiny.TOKENS], "float32"),
            "source": ([2, 5, 5], integers),
            "coordinates": ([2, tiny.TOKENS, 2], "float32"),
        }
        assert facts["activation"] is None
        assert facts["classes"] == tiny.CLASSES


def crop_of(facts):
    sizes = ("image_size", "resized")
    return {name: value for name, value in facts.items() if name not in sizes}


# A signal comes when the first of two files is in its place.
SIGNALED = """
import os, runpy, sys

def signaled(*paths, replace=os.replace):
    replace(*paths)
    os.kill(os.getpid(), 15)

os.replace = signaled
sys.argv[0] = "imagepiece"
runpy.run_module("imagepiece_jax", run_name="__main__", alter_sys=True)
"""


def test_a_signal_leaves_both_files_or_none(weights_file, tmp_path):
    out = tmp_path / "model.jax"
    words = ["export", *WORDS, f"--weights={weights_file}", f"--out={out}"]
    ended = start("-c", SIGNALED, *words, imported=True)
    assert (ended.status, ended.err.splitlines()[-1]) == (143, "terminated")
    facts = json.loads((tmp_path / "model.jax.json").read_text())
    assert facts["dtype"] == "float32"
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.slow
def test_it_runs_without_this_package(model, variables, weights_file, tmp_path):
    out = tmp_path / "model.jax"
    images_file = tmp_path / "images.npy"
    words = [*WORDS, f"--weights={weights_file}", f"--out={out}"]
    ended = call(export.main, *words).ok()
    assert "float32" in ended.out
    assert "for cpu and cuda" in ended.out
    noise = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    np.save(images_file, noise)
    start("-I", "-c", READER, out, images_file, tmp_path / "out.npz").ok()
    want = np.asarray(tiny.jit(model.apply)(variables, jnp.asarray(noise)).logits)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["3"], want, atol=1e-5)
        np.testing.assert_allclose(found["1"], want[:1], atol=1e-5)
    facts = json.loads((tmp_path / "model.jax.json").read_text())
    entry = {"name": "images", "shape": ["batch", 16, 16, 3], "dtype": "float32"}
    assert facts["input"] == entry
    assert facts["output"]["shape"] == ["batch", 10]
    assert facts["classes"] == 10
    assert facts["normalization"]["pixels"].endswith("is (pixels - mean) / std")
    assert facts["normalization"]["mean"] == list(MEAN)
    assert facts["normalization"]["std"] == list(STD)
    assert facts["method"]["name"] == "imagepiece"
    assert facts["platforms"] == ["cpu", "cuda"]
    program = jax_export.load_program(out)
    assert facts["calling_convention"] == program.calling_convention_version
    assert facts["jax"] == jax.__version__
    age = datetime.datetime.now() - datetime.datetime.fromisoformat(facts["exported"])
    assert abs(age) < datetime.timedelta(days=3)
    assert facts["gmacs"] == pytest.approx(model_macs(model, 16) / 1e9)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_type_of_gpus_and_a_missing_package_are_named(
    weights_file, tmp_path, monkeypatch
):
    words = [*WORDS, f"--weights={weights_file}", f"--out={tmp_path / 'm'}"]
    message = sentence(call(export.main, *words, "--dtype=float16"))
    assert "dtype is 'float16', in which CPUs compute no attention" in message
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for file_format, package in (("onnx", "onnx"), ("jax", "flatbuffers")):
        said = sentence(call(export.main, *words, f"--format={file_format}"))
        assert said.startswith(f"format {file_format} needs {package}, which is not ")
    assert not list(tmp_path.iterdir())


def test_a_program_that_has_expired_is_refused_in_a_sentence(tmp_path):
    """JAX 0.7.0 wrote this mean over the pixels of each image.

    JAX 0.10 reads it still: what it refuses here is cut off.
    """
    old_program = tmp_path / "model.jax"
    shutil.copy(ROOT / "tests" / "fixtures" / "program_of_jax_0.7.0.jax", old_program)
    origin = {"jax": "0.7.0", "exported": "2025-07-22"}
    (tmp_path / "model.jax.json").write_text(json.dumps(origin))
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 12):
        program = jax_export.load_program(old_program)
        images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
        found = jax.jit(program.call)(images)
        np.testing.assert_allclose(found, images.mean((1, 2)), rtol=1e-5, atol=1e-6)
        old_program.write_bytes(old_program.read_bytes()[:1000])
    with pytest.raises(InputError) as raised:
        jax_export.load_program(old_program)
    text = str(raised.value)
    assert text.startswith(f"{old_program} is no program that jax {jax.__version__} ")
    assert "); jax 0.7.0 exported it on 2025-07-22; allowed: complete files of" in text
    assert text.endswith("export the weights again, for longer as ONNX")


@pytest.mark.parametrize("content", [b"", b"\0" * 64, bytes(range(256))])
def test_what_is_no_program_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "model.jax"
    with pytest.raises(InputError, match="model.jax cannot be read \\(No such file"):
        jax_export.load_program(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no program that .*\\); allowed: complete"):
        jax_export.load_program(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that `save` wrote, of a model whose second block prunes."""
    vit = tiny.pretrained({"name": "evit", "keep_rate": 0.6, "blocks": (1,)}, depth=2)
    return imagepiece_jax.save(tmp_path_factory.mktemp("saved") / "model", vit)


def features_of(saved, images, **options):
    """The arrays of `features` that --output features gives, in their order."""
    maps = features(imagepiece_jax.load(saved), images, **options)
    layers = []
    for layer in maps.layers:
        layers += layer
    return [maps.pooled, maps.patches, maps.prefix, maps.dropped, *layers]


def test_features_are_exported_as_they_are_computed(saved, tmp_path):
    """By both formats; the JSON names the arrays in their order."""
    images = np.asarray(tiny.images(2))
    words = [f"--weights={saved}", "--dtype=float32"]
    words += ["--output=features", "--layers=0,1", "--nonorm", "--fill=last"]
    want = features_of(saved, images, layers=[0, 1], norm=False, fill="last")
    for form in ("jax", "onnx"):
        out = tmp_path / f"model.{form}"
        call(export.main, *words, f"--format={form}", f"--out={out}").ok()
        facts = json.loads((tmp_path / f"model.{form}.json").read_text())
        assert facts["features"] == {"layers": [0, 1], "norm": False, "fill": "last"}
        if form == "jax":
            found = jax.jit(jax_export.load_program(out).call)(images)
        else:
            runtime = pytest.importorskip("onnxruntime")
            found = runtime.InferenceSession(out).run(None, {"images": images})
        names = ["pooled", "patches", "prefix", "dropped"]
        for block in (0, 1):
            names += [f"layer_{block}_{name}" for name in names[1:4]]
        assert [array["name"] for array in facts["output"]] == names
        for array, values, wanted in zip(facts["output"], found, want, strict=True):
            assert array["shape"] == ["batch", *wanted.shape[1:]]
            assert array["dtype"] == values.dtype == wanted.dtype
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)


def test_a_map_alone_is_one_array_and_tokens_follow_it(saved):
    vit = imagepiece_jax.load(saved)
    images = np.asarray(tiny.images(1))
    want = features(vit, images, tokens=9)
    for options, arrays in (
        ({}, [features(vit, images).patches]),
        ({"tokens": 9}, [want.patches, want.tokens, want.size, want.source]),
    ):
        data = jax_export.serialized(vit, output="patches", **options)
        program = jax.export.deserialize(bytearray(data))
        found = jax.tree.leaves(jax.jit(program.call)(images))
        assert isinstance(program.call(images), tuple) == bool(options)
        for values, wanted in zip(found, arrays, strict=not options):
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-5)


def test_weights_that_a_file_cannot_hold_are_named_before_any_work(saved, monkeypatch):
    """By their bytes in the dtype of the program, up to the last one."""
    vit = imagepiece_jax.load(saved, dtype="float32")
    size = 4 * tiny.count(vit.variables)
    halves = 2 * sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(vit.variables["params"])
        if not any(key.key.startswith(("norm", "head")) for key in path)
    )
    half = vit.model.clone(dtype=jnp.dtype("bfloat16"))
    half = dataclasses.replace(vit, model=half)
    programs = mock.Mock(side_effect=AssertionError("traced"))
    monkeypatch.setattr(jax.export, "export", programs)
    for model, bytes_needed, dtype in (
        (vit, size, "float32"),
        (half, size - halves, "bfloat16"),
    ):
        monkeypatch.setattr(jax_export, "LARGEST", bytes_needed)
        with pytest.raises(AssertionError, match="traced"):
            jax_export.serialized(model)
        monkeypatch.setattr(jax_export, "LARGEST", bytes_needed - 1)
        with refused("the model", bytes_needed, dtype, "as ONNX") as caught:
            jax_export.serialized(model)
        smaller = "or in bfloat16" in str(caught.value)
        assert smaller == (dtype == "float32")


def test_a_program_that_has_no_room_beside_its_weights_is_named(saved, monkeypatch):
    """What flatbuffers refuses at the very end."""
    vit = imagepiece_jax.load(saved, dtype="float32")
    size = 4 * tiny.count(vit.variables)
    monkeypatch.setattr(builder.Builder, "MAX_BUFFER_SIZE", size)
    monkeypatch.setattr(jax_export, "LARGEST", size)
    with refused("the model", size, "up to"):
        jax_export.serialized(vit)


def test_large_weights_are_beside_an_onnx_file_and_named(saved, tmp_path, monkeypatch):
    """Those of an earlier export are removed, whatever takes their place."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "model.onnx"
    facts_file = tmp_path / "model.onnx.json"
    words = [f"--weights={saved}", "--format=onnx", f"--out={out}"]

    def exported(*more):
        ended = call(export.main, *words, *more).ok()
        return json.loads(facts_file.read_text()).get("external_data"), ended.out

    with monkeypatch.context() as patch:
        patch.setattr(onnx_model, "LARGEST", 20_000)
        name, said = exported("--pixels")
        assert str(tmp_path / name) in said
        assert f"{out} and " in said
        pixels = np.zeros((1, tiny.SIDE, tiny.SIDE, 3), np.uint8)
        (logits,) = runtime.InferenceSession(out).run(None, {"images": pixels})
        assert exported("--pixels")[0] == name
        other, _ = exported("--output=patches")
        assert {*tmp_path.iterdir()} == {out, facts_file, tmp_path / other}
    assert exported("--pixels")[0] is None
    assert {*tmp_path.iterdir()} == {out, facts_file}
    again = runtime.InferenceSession(out).run(None, {"images": pixels})[0]
    np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-6)


THERE = [
    ({"m.onnx": "mine"}, "m.onnx"),
    ({"m.onnx": "mine", "m.onnx.json": "{}"}, "m.onnx"),
    ({"m.onnx.json": '{"input": "mine"}'}, "m.onnx.json"),
    ({"m.onnx.json": "precious"}, "m.onnx.json"),
    ({"mine.py": "mine"}, "mine.py"),
    ({"config.json": "{}"}, "config.json"),
    ({"panda.jpg": "mine"}, "panda.jpg"),
    ({"m.pth": "mine"}, "m.pth"),
]


@pytest.mark.parametrize("texts, name", THERE)
def test_only_an_earlier_export_is_replaced(saved, tmp_path, texts, name):
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    out = tmp_path / name.removesuffix(".json").replace("config", "config.json")
    with refused("out", str(tmp_path / name), "already exists, and "):
        imagepiece_jax.export(imagepiece_jax.load(saved), out)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == texts


@pytest.mark.parametrize("form", ["jax", "onnx"])
def test_the_function_writes_what_the_command_writes(saved, tmp_path, form):
    """The ending decides the format of both."""
    vit = imagepiece_jax.load(saved)
    command = tmp_path / "command" / f"m.{form}"
    command.parent.mkdir()
    words = [f"--weights={saved}", f"--out={command}", "--batch=2", "--output=patches"]
    call(export.main, *words, "--dtype=float32").ok()
    own = tmp_path / f"m.{form}"
    options = {"batch_size": 2, "output": "patches"}
    assert imagepiece_jax.export(vit, own, **options) == own
    assert own.read_bytes() == command.read_bytes()
    facts = [jax_export.read_facts(file) for file in (own, command)]
    models = [each.pop("model") for each in facts]
    assert facts[0] == facts[1]
    assert facts[0]["method"]["name"] == "evit"
    assert models[0] == {field: models[1][field] for field in models[0]}
    assert models[0]["dtype"] == "float32"


def test_a_program_for_jax_has_the_dtype_that_is_asked_for(saved, tmp_path):
    vit = imagepiece_jax.load(saved)
    file = imagepiece_jax.export(vit, tmp_path / "model", dtype="bfloat16")
    assert jax_export.read_facts(file)["dtype"] == "bfloat16"
    assert vit.model.dtype == jnp.float32
    swapped = imagepiece_jax.export(str(tmp_path / "m.jax"), vit)
    assert jax_export.load_program(swapped).out_avals[0].shape[1] == tiny.CLASSES


@pytest.mark.parametrize("form", ["jax", "onnx"])
def test_a_form_of_gelu_is_that_of_a_model_loaded_with_it(saved, tmp_path, form):
    own = tmp_path / f"own.{form}"
    words = [f"--weights={saved}", f"--out={own}", "--gelu=tanh", "--dtype=float32"]
    call(export.main, *words).ok()
    tanh = imagepiece_jax.load(saved, gelu="tanh")
    loaded = imagepiece_jax.export(tanh, tmp_path / f"loaded.{form}")
    assert own.read_bytes() == loaded.read_bytes()
    assert jax_export.read_facts(own)["model"]["arch"]["gelu"] == "tanh"
    exact = imagepiece_jax.export(imagepiece_jax.load(saved), tmp_path / f"m.{form}")
    assert own.read_bytes() != exact.read_bytes()


@pytest.mark.parametrize(
    "name, options, field, value, said",
    [
        ("m.pth", {}, "out", "m.pth", "save writes weights"),
        ("m.onnx", {"format": "jax"}, "out", "m.onnx", "allowed: format onnx"),
        ("m.jax", {"format": "tf"}, "format", "tf", "allowed: jax, onnx"),
        (
            "m.onnx",
            {"dtype": "bfloat16"},
            "dtype",
            "bfloat16",
            "'float32' with format='onnx'",
        ),
        ("m.jax", {"dtype": "float16"}, "dtype", "float16", "CPUs compute no"),
        ("m.jax", {"batch_size": 0}, "batch_size", 0, "whole numbers"),
        ("m.jax", {"dtype": "x"}, "dtype", "x", "float32, bfloat16"),
        ("m.jax", {"dtype": "float64"}, "dtype", "float64", "float32, bfloat16"),
        ("m.jax", {"gelu": "quick"}, "gelu", "quick", "'exact' and 'tanh'"),
        ("m.jax", {"pixels": "yes"}, "pixels", "yes", "allowed: True, False"),
        ("no/m.jax", {}, "out", "no/m.jax", "No such file"),
        (7, {}, "out", 7, "of type int"),
    ],
)
def test_files_that_are_not_written(
    saved, tmp_path, monkeypatch, name, options, field, value, said
):
    monkeypatch.chdir(tmp_path)
    with refused(field, value, said):
        imagepiece_jax.export(imagepiece_jax.load(saved), name, **options)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "options, field, value",
    [
        ({"output": "maps"}, "output", "maps"),
        ({"layers": 1}, "layers", (1,)),
        ({"norm": False}, "norm", False),
        ({"fill": "zero"}, "fill", "zero"),
        ({"output": "features", "layers": 3}, "layers", 3),
        ({"output": "features", "layers": [0, 0]}, "layers", (0, 0)),
        ({"output": "features", "fill": "mean"}, "fill", "mean"),
        ({"output": "features", "norm": 1}, "norm", 1),
    ],
)
def test_outputs_that_no_program_has_are_refused(saved, options, field, value):
    with refused(field, value):
        ProgramOutputs(imagepiece_jax.load(saved), **options)


def test_what_draws_has_no_onnx_file_of_any_batch(saved, tmp_path):
    """The sentence does not send one to --batch, with which it is refused again."""
    words = [f"--weights={saved}", "--format=onnx", f"--out={tmp_path / 'm.onnx'}"]
    random = ["--reduction=random:blocks=(1,)"]
    assert "has no ONNX graph" in sentence(call(export.main, *words, *random))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_an_open_batch_unless_it_draws(name):
    depth, fields, _ = few(name)
    vit = tiny.pretrained({"name": name} | fields, depth=depth, attention="xla")
    if name == "random":
        with pytest.raises(InputError, match=r"open, but random blocks=\(0,\) draws"):
            jax_export.serialized(vit)
        return
    program = jax.export.deserialize(bytearray(jax_export.serialized(vit)))
    assert str(program.out_avals[0].shape) == f"(batch, {tiny.CLASSES})"
