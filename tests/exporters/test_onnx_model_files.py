import os

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.exporters import onnx_model as onnx_model_file
from imagepiece_jax.exporters.onnx_model import (
    build_onnx_model,
    write_onnx,
)
from tests.helpers import tiny_vit
from tests.helpers.onnx_runs import EVIT, run_onnxruntime, run_openvino

onnx = pytest.importorskip("onnx")


@pytest.fixture
def small_files(monkeypatch):
    """Files hold 20 kB, so a tiny model is too large for one file."""
    monkeypatch.setattr(onnx_model_file, "MAX_PROTOBUF_BYTES", 20_000)


def test_large_weights_are_in_one_file_beside_the_graph(small_files, tmp_path):
    path = tmp_path / "model.onnx"
    vit = tiny_vit.pretrained(EVIT, depth=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), np.uint8)
    (expected,) = run_onnxruntime(build_onnx_model(vit, takes_pixels=True), pixels)
    data = write_onnx(path, build_onnx_model(vit, takes_pixels=True))
    assert sorted(tmp_path.iterdir()) == [path, data]
    assert path.stat().st_size < 20_000 < data.stat().st_size
    onnx.checker.check_model(path, full_check=True)
    for run in (run_onnxruntime, run_openvino):
        (logits,) = run(path, pixels)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    model = onnx.load(path, load_external_data=False)
    outside = [t for t in model.graph.initializer if t.external_data]
    locations = [{e.key: e.value for e in tensor.external_data} for tensor in outside]
    assert {place["location"] for place in locations} == {data.name}
    assert len(locations) > 10


def test_graphs_never_lie_beside_other_weights(small_files, tmp_path, monkeypatch):
    """A kill between writing the two files leaves the old pair."""
    path = tmp_path / "model.onnx"
    images = np.asarray(tiny_vit.images(1))
    old = tiny_vit.pretrained(EVIT, depth=1)
    new = tiny_vit.pretrained(EVIT, depth=2)
    imagepiece_jax.export(old, path)
    (expected,) = run_onnxruntime(path, images)
    replace = os.replace

    def kill_before_graph(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill_before_graph)
        with pytest.raises(KeyboardInterrupt):
            imagepiece_jax.export(new, path)
    np.testing.assert_array_equal(run_onnxruntime(path, images)[0], expected)
    imagepiece_jax.export(new, path)
    assert len([*tmp_path.glob("*.data")]) == 1
    assert not np.array_equal(run_onnxruntime(path, images)[0], expected)
