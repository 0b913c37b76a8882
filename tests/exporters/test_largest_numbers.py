"""Parts with numbers beyond float16 stay float32, or nothing is written."""

import json

import numpy as np
import pytest
from flax import traverse_util

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.exporters import largest_numbers
from imagepiece_jax.models.pretrained import Pretrained
from tests.helpers import tiny_vit
from tests.helpers.onnx_runs import build_onnx
from tests.helpers.refused_calls import refused
from tests.helpers.small_photographs import draw
from tests.models.test_vit_families import FAMILIES

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def change_weights(vit, **factors):
    """Multiply weights by a factor, or add a number to channel 3 of a bias."""
    leaves = traverse_util.flatten_dict(vit.variables["params"], sep="/")
    for path, number in factors.items():
        if path.endswith("bias"):
            leaves[path] = np.array(leaves[path])
            leaves[path][3] += number
        else:
            leaves[path] = leaves[path] * np.float32(number)
    params = traverse_util.unflatten_dict(leaves, sep="/")
    return vit.with_variables({**vit.variables, "params": params})


def unfused_logits(graph, images):
    """Logits by onnxruntime without joined nodes, so every node rounds."""
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return session.run(None, {"images": images})[0]


IMAGES = np.asarray(tiny_vit.images(2))
INSIDE = {"blocks_1/mlp/fc1/kernel": 1e6, "blocks_1/mlp/fc2/kernel": 1e-6}
# The stream is large from one block's end to the end of the next block.
STREAM = {"blocks_0/mlp/fc2/bias": 1e5, "blocks_1/mlp/fc2/bias": -1e5}
# CLIP normalizes the sum of patches and positions before the first block.
STEM = {"pos_embed": 1e6, "norm_pre/scale": 1}
POOL = {"attn_pool/v/kernel": 1e6, "attn_pool/proj/kernel": 1e-6}
END = {"blocks_2/attn/proj/kernel": 1e7}
CASES = {
    "inside": (tiny_vit.EVIT, None, INSIDE, ["blocks_1"]),
    "merged": ("tome:r=3", None, INSIDE, ["blocks_1"]),
    "stream": (tiny_vit.EVIT, None, STREAM, ["blocks_0", "blocks_1"]),
    "stem": (None, "clip", STEM, ["norm_pre"]),
    "pool": (None, "siglip", POOL, ["attn_pool"]),
    "end": (None, None, END, ["blocks_2", "norm"]),
    # As in a regression. The head is float32 in any type.
    "head": (tiny_vit.EVIT, None, {"head/kernel": 1e6}, []),
    "usual": (tiny_vit.EVIT, None, {}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_with_large_numbers_stay_float32(tmp_path, case):
    """Without float32 parts the outputs are not finite."""
    reduction, family, factors, parts = CASES[case]
    vit = tiny_vit.pretrained(reduction, arch=FAMILIES.get(family))
    vit = change_weights(vit, **factors)
    half = vit.model.with_execution(dtype=np.dtype(np.float16))
    control = unfused_logits(build_onnx(Pretrained(half, vit.variables)), IMAGES)
    assert np.isfinite(control).all() == (not parts)
    file = imagepiece_jax.export(vit, tmp_path / "m.onnx", dtype="float16")
    facts = json.loads((tmp_path / "m.onnx.json").read_text())
    assert facts["float32_parts"] == ["patch_embed", *parts]
    graph = onnx.load(file)
    logits = unfused_logits(graph, IMAGES)
    expected = unfused_logits(build_onnx(vit), IMAGES)
    assert 0 < np.abs(logits - expected).max() < 0.02 * np.ptp(expected)
    for weight in graph.graph.initializer:
        part = weight.name.split(".")[0]
        if part.startswith("blocks") and weight.name.endswith("fc1.kernel"):
            is_wide = weight.data_type == onnx.TensorProto.FLOAT
            assert is_wide == (part in parts)


def test_a_stream_that_stays_large_is_refused(tmp_path):
    biases = {"blocks_0/mlp/fc2/bias": 1e6, "blocks_0/norm1/bias": 1e5}
    vit = change_weights(tiny_vit.pretrained(tiny_vit.EVIT), **biases)
    with refused("float16", "blocks_0", "e+0", "export float32"):
        imagepiece_jax.export(vit, tmp_path / "new", dtype="float16")
    assert not [*tmp_path.iterdir()]


def test_a_model_without_finite_outputs_is_not_written(tmp_path):
    infinite = {"blocks_1/mlp/fc1/kernel": 1e30, "blocks_1/mlp/fc2/kernel": 1e30}
    vit = change_weights(tiny_vit.pretrained(depth=2), **infinite)
    with refused("not finite", "blocks_1"):
        imagepiece_jax.export(vit, tmp_path / "new", dtype="int8", images=draw(40))
    assert not [*tmp_path.iterdir()]


def test_a_file_without_finite_outputs_is_not_written(tmp_path, monkeypatch):
    """As if export saw smaller numbers than the compared images have."""
    vit = change_weights(tiny_vit.pretrained(tiny_vit.EVIT), **INSIDE)
    monkeypatch.setattr(largest_numbers, "FLOAT16_LIMIT", np.inf)
    with refused("float16", "not finite", "export float32"):
        imagepiece_jax.export(vit, tmp_path / "new", dtype="float16", images=draw(40))
    assert not [*tmp_path.joinpath("new").iterdir()]


def test_largest_numbers_cover_the_given_images():
    """Their tokens after every block are within the numbers."""
    vit = tiny_vit.pretrained(depth=2)
    white = np.full((3, tiny_vit.SIDE, tiny_vit.SIDE, 3), 255, np.uint8)
    default = largest_numbers.find_largest_numbers(vit)
    of_white = largest_numbers.find_largest_numbers(vit, white)
    assert [*default] == ["patch_embed", "blocks_0", "blocks_1", "norm", "head"]
    assert of_white["patch_embed"] >= default["patch_embed"]
    images = normalize(white, vit.config.mean, vit.config.std)
    _, tokens = tiny_vit.traced_blocks(vit.model, vit.variables, images)
    for block, x in enumerate(tokens):
        assert of_white[f"blocks_{block}"] >= np.abs(x).max()
    vit.variables["params"]["pos_embed"][:] = np.nan
    with refused("not finite", "patch_embed"):
        largest_numbers.find_largest_numbers(vit)


def test_large_products_of_queries_and_keys_count():
    """Queries and keys fit into float16, and their products may not."""
    change = {"blocks_1/attn/q/kernel": 2e3, "blocks_1/attn/k/kernel": 2e3}
    vit = change_weights(tiny_vit.pretrained(), **change)
    largest = largest_numbers.find_largest_numbers(vit)
    half = largest_numbers.with_float32_parts(vit.model, largest)
    assert half.execution.float32_parts == ("patch_embed", "blocks_1")
