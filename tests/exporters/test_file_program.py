import dataclasses
import os
import pathlib

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters.file_program import FileProgram
from imagepiece_jax.exporters.program_facts import facts_file
from imagepiece_jax.models.program import open_program
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused

PIXELS = np.zeros((24, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)


def test_a_last_batch_repeats_its_last_image():
    """Black images would extend the ranges that calibrate int8."""
    vit = tiny_vit.pretrained()
    program = FileProgram(
        path=pathlib.Path("model.onnx"),
        model=vit.model,
        config=vit.config,
        origin=vit.origin,
        facts={},
        make_call=None,
        input_name="images",
        input_dtype="uint8",
        batch_size=2,
        channels_first=False,
    )
    pixels = np.arange(1, 4, dtype=np.uint8).reshape(3, 1, 1, 1)
    parts = [part.ravel().tolist() for part in program.prepared_batches(pixels)]
    assert parts == [[1, 2], [3, 3]]


def jax_logits(vit):
    images = normalize(PIXELS, vit.config.mean, vit.config.std)
    return np.asarray(vit.model.apply(vit.variables, images).logits)


@pytest.mark.parametrize("ending", ["", ".json"])
def test_a_kill_leaves_no_graph_with_other_json(tmp_path, monkeypatch, ending):
    pytest.importorskip("onnxruntime")
    old = tiny_vit.pretrained(depth=1)
    config = dataclasses.replace(old.config, mean=(0.0,) * 3, std=(1.0,) * 3)
    model = old.model.clone(config=config)
    new = dataclasses.replace(
        old, model=model, dense_variables=tiny_vit.variables(model, 1)
    )
    file = imagepiece_jax.export(old, tmp_path / "m.onnx")
    np.testing.assert_allclose(open_program(file)(PIXELS), jax_logits(old), atol=1e-3)
    replace = os.replace

    def kill(source, target):
        if target == tmp_path / f"m.onnx{ending}":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            imagepiece_jax.export(new, file)
    if not ending:
        np.testing.assert_allclose(
            open_program(file)(PIXELS), jax_logits(old), atol=1e-3
        )
    else:
        with refused("m.onnx.json", "of the same export"):
            open_program(file)
    imagepiece_jax.export(new, file)
    np.testing.assert_allclose(open_program(file)(PIXELS), jax_logits(new), atol=1e-3)


def test_a_kill_leaves_no_graph_with_other_files(tmp_path, monkeypatch):
    """Other programs check no digest, but need their JSON to start."""
    layout = "transformers"
    vit = tiny_vit.pretrained(depth=1, num_classes=0)
    graph = imagepiece_jax.export(vit, tmp_path, layout=layout)
    known = {graph, facts_file(graph)}
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files > known
    replace = os.replace

    def kill(source, target):
        replace(source, target)
        if target == graph:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            imagepiece_jax.export(vit, tmp_path, layout=layout)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == known
    imagepiece_jax.export(vit, tmp_path, layout=layout)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files


def test_an_onnxruntime_without_the_operators_is_named(tmp_path, monkeypatch):
    """onnxruntime 1.16 fails to load opset 20, and 1.17 loads it (both measured)."""
    runtime = pytest.importorskip("onnxruntime")
    file = imagepiece_jax.export(tiny_vit.pretrained(depth=1), tmp_path / "a.onnx")

    def fail(*args, **options):
        raise RuntimeError("ONNX Runtime only *guarantees* support\nfor opset 19")

    monkeypatch.setattr(runtime, "InferenceSession", fail)
    monkeypatch.setattr(runtime, "__version__", "1.16.3")
    with refused("a.onnx", "onnxruntime 1.16.3 lacks Gelu of opset 20", "1.17 has"):
        open_program(file)
    monkeypatch.setattr(runtime, "__version__", "1.17.0")
    with refused("a.onnx", "guarantees") as caught:
        open_program(file)
    assert "lacks" not in str(caught.value)
