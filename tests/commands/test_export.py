import json
import shutil

import pytest

import imagepiece_jax
from imagepiece_jax.commands import benchmark, describe, evaluate, export
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.exporters import onnx_format, program_facts
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import tiny_vit
from tests.helpers.run_command import call, sentence


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    vit = tiny_vit.pretrained("evit:keep_rate=0.6:blocks=(0,)", depth=1)
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("weights") / "w")


@pytest.mark.parametrize(
    "problem_type, activation",
    [("regression", None), ("multi_label_classification", "sigmoid")],
)
def test_facts_describe_images_and_logits(problem_type, activation):
    vit = tiny_vit.pretrained(depth=1)
    prepared = Preprocessing(tiny_vit.SIDE, crop=0.9, rule="transformers")
    vit = tiny_vit.with_problem_type(vit, problem_type)
    vit = vit.with_preprocessing(**vars(prepared))
    facts = program_facts.collect_facts(ProgramInterface(vit))
    assert (facts["problem_type"], facts["activation"]) == (problem_type, activation)
    crop = dict(facts["preprocessing"])
    del crop["image_size"]
    assert crop.pop("resized") == [22, 22]
    assert Preprocessing(20, **crop) == prepared


def test_large_weights_are_beside_an_onnx_file(weights, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    out = tmp_path / "model.onnx"
    facts_file = tmp_path / "model.onnx.json"
    monkeypatch.setattr(onnx_format, "MAX_PROTOBUF_BYTES", 20_000)
    printed = call(export.main, weights, out).ok().out
    weights_file = tmp_path / json.loads(facts_file.read_text())["external_data"]
    assert f"{out} and {weights_file}" in printed
    assert {*tmp_path.iterdir()} == {out, facts_file, weights_file}
    monkeypatch.undo()
    call(export.main, weights, out).ok()
    assert {*tmp_path.iterdir()} == {out, facts_file}
    # A name that no export gives stays, whatever the JSON says.
    other = tmp_path / "model.onnx.notes"
    other.touch()
    facts = json.loads(facts_file.read_text()) | {"external_data": other.name}
    facts_file.write_text(json.dumps(facts))
    call(export.main, weights, out).ok()
    assert {*tmp_path.iterdir()} == {out, facts_file, other}


def test_only_an_earlier_export_is_replaced(weights, tmp_path):
    (tmp_path / "m.onnx").write_text("mine")
    ended = call(export.main, weights, tmp_path / "m.onnx")
    assert "export did not write it" in sentence(ended)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("fields", [{}, {"pixels": True, "batch_size": 7}])
def test_a_file_is_evaluated_like_its_model(tmp_path, fields):
    pytest.importorskip("onnxruntime")
    vit = tiny_vit.pretrained("tome:r=3", num_classes=10, image_size=16, depth=2)
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx", **fields)
    words = ["digits", "--limit=40", "--workers=0", "--json", tmp_path / "a.json"]
    call(evaluate.main, file, *words).ok()
    facts = program_facts.read_facts(file)
    size = fields.get("batch_size", "batch")
    dtype = "uint8" if fields else "float32"
    entry = {"name": "images", "shape": [size, 16, 16, 3], "dtype": dtype}
    assert (facts["input"], facts["output"]["shape"]) == (entry, [size, 10])
    assert facts["gmacs"] == pytest.approx(vit.gmacs)
    if not fields:
        normalization = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        assert facts["normalization"].items() >= normalization.items()
    result = json.loads((tmp_path / "a.json").read_text())
    model_result = imagepiece_jax.evaluate(vit, "digits", limit=40, workers=0)
    assert result["acc1"] == model_result["acc1"]
    assert result["loss"] == pytest.approx(model_result["loss"], rel=1e-5)
    assert result["gmacs"] == model_result["gmacs"]
    assert result["reduction"] == "tome:r=3"
    words = ["--warmup=1", "--repeats=1", "--seconds=0"]
    *_, row = call(benchmark.main, file, *words).ok().out.splitlines()
    assert row.split()[:2] == ["m.onnx", str(fields.get("batch_size", 1))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file with a digits model for two images."""
    pytest.importorskip("onnxruntime")
    vit = tiny_vit.pretrained(num_classes=10, image_size=16, depth=1)
    file = tmp_path_factory.mktemp("exported") / "m.onnx"
    return imagepiece_jax.export(vit, file, batch_size=2)


@pytest.mark.parametrize(
    "main, words, message",
    [
        (evaluate.main, ["digits", "--crop=.9"], "crop is 0.9"),
        (evaluate.main, ["digits", "--optimized"], "optimized is for weights"),
        (benchmark.main, ["--reductions=0.5"], "are for weights"),
        (benchmark.main, ["--batch-size=3"], "batch_size is 3, not 2"),
        (describe.main, [], "m.onnx ends in none of"),
    ],
)
def test_arguments_of_weights_are_refused_for_a_file(exported, main, words, message):
    assert message in sentence(call(main, exported, *words))


@pytest.mark.parametrize(
    "text, removed",
    [
        *((None, None), ("[1]", None), ('{"model": {"depth": 3}}', None)),
        *((None, "input"), (None, "preprocessing"), (None, "model"), (None, "digest")),
    ],
)
def test_a_missing_or_damaged_description_is_refused(exported, tmp_path, text, removed):
    file = shutil.copy(exported, tmp_path / "m.onnx")
    if removed:
        facts = json.loads(exported.with_name("m.onnx.json").read_text())
        del facts[removed]
        text = json.dumps(facts)
    if text is not None:
        (tmp_path / "m.onnx.json").write_text(text)
    assert "m.onnx.json" in sentence(call(evaluate.main, file, "digits"))
