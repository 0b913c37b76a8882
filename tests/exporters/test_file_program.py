import contextlib
import os

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters import onnx_format, program_facts
from imagepiece_jax.exporters.program_facts import facts_file
from imagepiece_jax.models.program import open_program
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise
from tests.helpers.refused_calls import refused

PIXELS = np.zeros((24, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)


def test_a_last_batch_repeats_its_last_image(tmp_path):
    """Black images would extend the ranges that calibrate int8."""
    pytest.importorskip("onnxruntime")
    vit = tiny_vit.pretrained(depth=1)
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx", batch_size=2, pixels=True)
    pixels = noise(3, tiny_vit.SIDE, tiny_vit.SIDE)
    _, last_batch = open_program(file).prepared_batches(pixels)
    np.testing.assert_array_equal(last_batch, pixels[[2, 2]])


def test_a_damaged_graph_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    file = imagepiece_jax.export(tiny_vit.pretrained(depth=1), tmp_path / "m.onnx")
    file.write_bytes(b"no graph")
    program_facts.write_program_facts(file, program_facts.read_facts(file))
    with refused("m.onnx"):
        open_program(file)


def assert_has_logits(file, vit):
    images = normalize(PIXELS, vit.config.mean, vit.config.std)
    expected = tiny_vit.logits(vit.model)(vit.variables, images)
    np.testing.assert_allclose(open_program(file)(PIXELS), expected, atol=1e-3)


@contextlib.contextmanager
def killed_before(monkeypatch, file):
    """A kill before a new file takes the place of `file`."""
    replace = os.replace

    def kill(source, target):
        if target == file:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", kill)
        yield


@pytest.mark.parametrize("ending, size", [("", 2**31), ("", 20_000), (".json", 2**31)])
def test_a_kill_leaves_no_graph_with_other_json(tmp_path, monkeypatch, ending, size):
    """Nor with other weights, which are in a second file above `size` bytes."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_format, "MAX_PROTOBUF_BYTES", size)
    old = tiny_vit.pretrained(depth=1)
    new = old.with_variables(tiny_vit.variables(old.model, 1))
    file = imagepiece_jax.export(old, tmp_path / "m.onnx")
    assert_has_logits(file, old)
    with killed_before(monkeypatch, tmp_path / f"m.onnx{ending}"):
        imagepiece_jax.export(new, file)
    if ending:
        with refused("m.onnx.json", "of the same export"):
            open_program(file)
    else:
        assert_has_logits(file, old)
    imagepiece_jax.export(new, file)
    assert_has_logits(file, new)
    assert len([*tmp_path.iterdir()]) == (3 if size == 20_000 else 2)


def test_a_kill_leaves_no_graph_with_other_files(tmp_path, monkeypatch):
    """Other programs check no digest, but need their JSON to start."""

    def find_files():
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    vit = tiny_vit.pretrained(depth=1, num_classes=0)
    graph = imagepiece_jax.export(vit, tmp_path, layout="transformers")
    files = find_files()
    with killed_before(monkeypatch, facts_file(graph)):
        imagepiece_jax.export(vit, tmp_path, layout="transformers")
    assert find_files() == {graph, facts_file(graph)} < files
    imagepiece_jax.export(vit, tmp_path, layout="transformers")
    assert find_files() == files
