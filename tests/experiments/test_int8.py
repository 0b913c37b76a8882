"""The experiment on int8: its figures, its page, and how dropped patches are filled."""

import json

import numpy as np
import pytest

from experiments import quantize
from experiments.dense_maps import int8, maps
from experiments.settings import Int8
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.inference import onnx_model
from imagepiece_jax.reduction.settings import DENSE
from tests import markdown
from tests.experiments import tiny_context
from tests.experiments.test_dense_maps import random_head
from tests.models import tiny

TESTED = np.arange(10) % 5 > 0
SWEEP = ("evit:blocks=(1,):keep_rate=.5",)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return tiny_context.pretrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def context(tmp_path, weights):
    """Makes a context of settings; its results stay."""
    contexts = []

    def make(**fields):
        for ctx in contexts:
            ctx.cache.close()
        images = tiny_context.images(10)
        contexts.append(
            tiny_context.context(tmp_path, weights, kind=Int8, images=images, **fields)
        )
        return contexts[-1]

    yield make
    contexts[-1].cache.close()


def test_answers_are_those_of_jax_and_nothing_runs_twice(
    tmp_path, weights, context, monkeypatch
):
    ctx = context(sweep=SWEEP)
    int8.int8(ctx)
    points = (tmp_path / "points.jsonl").read_text()
    lines = [json.loads(line) for line in points.splitlines()]
    kinds = [line["setting"]["kind"] for line in lines]
    assert kinds.count("int8") == len(kinds) - 2 >= 4
    assert kinds[-2:] == ["speed of int8"] * 2
    right = ctx.evaluate(weights, DENSE).right[TESTED]
    assert decode_bits(lines[0]["result"]["right"], 8).tolist() == right.tolist()
    assert decode_bits(lines[0]["result"]["same"], 8).all()
    page = (tmp_path / "int8.md").read_text()
    (rows,) = markdown.tables(page)
    assert [row["weights"] for row in rows[:2]] == ["float32", "int8"]
    assert rows[-1]["method"] == "`evit blocks=(1,) keep_rate=0.5`"
    assert rows[0]["batch 1"].replace(".", "").isdigit() and "[" in rows[1]["batch 8"]
    assert "2 of the images calibrate" in page
    monkeypatch.setattr(int8, "onnx_model", None)
    int8.int8(context(sweep=SWEEP))
    assert (tmp_path / "int8.md").read_text() == page


@pytest.mark.slow
def test_maps_are_those_of_jax(tmp_path, context):
    np.savez(tmp_path / "head.npz", **random_head())
    ctx = context(sweep=SWEEP, decoder=str(tmp_path / "head.npz"))
    graphs = int8.Graphs(ctx, [DENSE], tmp_path)
    wanted = maps.HeadMaps(ctx).dense[TESTED]
    np.testing.assert_allclose(graphs.floats(0), wanted, atol=1e-4)
    int8.int8(ctx)
    (rows,) = markdown.tables((tmp_path / "int8.md").read_text())
    dense, quantized, evit, *_ = rows
    assert dense["correlation to dense"] == "1.000 [1.000, 1.000]"
    same, dropped = quantized["correlation to float32"], evit["correlation to dense"]
    assert float(same.split()[0]) > 0.9 and float(dropped.split()[0]) < 1


def test_a_dropped_patch_has_the_feature_of_the_nearest_token():
    """Three of 2 x 3 patches are in the token at (0, 0), one in that at (1, 2)."""
    tokens = np.array([[[1.0], [2.0]]])
    source = np.array([[[0, 0, -1], [0, -1, 1]]])
    coordinates = np.array([[[1 / 3, 1 / 3], [1.0, 2.0]]])
    patches = int8.filled(tokens, source, coordinates)
    assert patches[..., 0].tolist() == [[[1, 1, 2], [1, 1, 2]]]


def test_what_has_no_graph_is_known_before_any_figure(tmp_path, context):
    with pytest.raises(InputError, match="draws random numbers, and has no ONNX graph"):
        int8.int8(context(sweep=(*SWEEP, "random:blocks=(1,)")))
    assert not (tmp_path / "points.jsonl").read_text()


def test_a_graph_whose_weights_are_in_another_file_is_quantized(tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    vit, images = tiny.pretrained(depth=1), np.asarray(tiny.images(4))
    monkeypatch.setattr(onnx_model, "LARGEST", 10_000)
    path = tmp_path / quantize.FILES[quantize.FLOAT]
    assert onnx_model.write_onnx(path, onnx_model.onnx_model(vit)).exists()
    quantize.quantize_onnx(tmp_path, images)
    wanted, found = (
        runtime.InferenceSession(tmp_path / name).run(None, {"images": images})[0]
        for name in (path.name, quantize.FILES["onnxruntime", "int8"])
    )
    assert 0 < np.abs(found - wanted).max() < 0.2 * np.ptp(wanted)
