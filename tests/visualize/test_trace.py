"""Traces against the outputs of the same model without tracing; saved traces."""

import dataclasses
import json

import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import RunError
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.visualize import trace as trace_module
from imagepiece_jax.visualize.trace import trace, write_traces
from tests.models import tiny
from tests.oracles import softmax
from tests.visualize import traces

# 25 image tokens, 23, 19
SHORT = tiny.IMAGEPIECE | {"merge_blocks": (0,), "prune_blocks": (1,)}
LEARNER = {"name": "token_learner", "num_tokens": 4, "block": 1}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (3, tiny.SIDE, tiny.SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def imagepiece(images):
    """(Trace in batches of two, outputs of all three at once)"""
    model = tiny.model(SHORT, depth=2)
    variables = tiny.variables(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "BATCH", 2)
        traced = trace(model, variables, images)
    return traced, tiny.jit(model.apply)(variables, normalize(images, MEAN, STD))


def test_groups_are_the_tokens_that_the_model_ended_with(imagepiece):
    traced, outputs = imagepiece
    last = traced.stages[-1]
    assert [(s.block, s.site) for s in traced.stages] == [(b, "mid") for b in range(2)]
    np.testing.assert_array_equal(last.source, tiny.slots(outputs))
    np.testing.assert_array_equal(last.sizes, outputs.state.size[:, 1:])
    assert traced.tokens == outputs.tokens.shape[1] - 1 == 19
    for row in last.source:
        assert len(set(row.tolist()) - {-1}) == traced.tokens
    for stage in traced.stages:
        assert stage.sizes.shape == (3, stage.tokens)
        assert (stage.sizes.sum(axis=1) == (stage.source >= 0).sum(axis=1)).all()
    assert traced.grid == (5, 5)
    assert traced.depth == 2


def test_attention_is_what_the_reducers_received(imagepiece):
    """And predictions are those of the logits."""
    traced, outputs = imagepiece
    before = np.tile(np.arange(25), (3, 1))
    for stage, taps in zip(traced.stages, outputs.taps, strict=True):
        np.testing.assert_allclose(stage.attention, taps.cls_attn, rtol=1e-4)
        np.testing.assert_array_equal(stage.attended, before)
        before = stage.source
    shares = softmax(np.asarray(outputs.logits, float))
    np.testing.assert_array_equal(traced.top, shares.argmax(axis=1))
    np.testing.assert_allclose(traced.confidence, shares.max(axis=1), rtol=1e-4)


def test_learned_tokens_have_weights_that_sum_to_one(images):
    model = tiny.model(LEARNER, depth=2)
    traced = trace(model, tiny.variables(model), images)
    (stage,) = traced.stages
    assert (stage.block, stage.site, stage.tokens) == (1, "pre", 4)
    assert stage.weights.shape == (3, 4, 25)
    assert (stage.weights >= 0).all()
    np.testing.assert_allclose(stage.weights.sum(axis=2), 1, rtol=1e-5)
    # Block 0, before it, attends to the patches.
    assert stage.attention.shape == (3, 25)
    assert (stage.attended == np.arange(25)).all()
    assert traced.tokens == 4
    assert traced.attention is None
    assert stage.source is None
    assert stage.sizes is None


def test_weights_of_a_merged_token_are_split_among_its_patches():
    """Patches 0 and 2 are one token, patch 1 is dropped, patch 3 is the other token."""
    source = np.array([[0, -1, 0, 1]])
    matrix = np.array([[[0.8, 0.2], [0.5, 0.5]]])
    weights = trace_module.patch_weights(matrix, source)
    expected = [[0.4, 0, 0.4, 0.2], [0.25, 0, 0.25, 0.5]]
    np.testing.assert_allclose(weights[0], expected)


def test_without_a_class_token_there_is_no_class_attention(images):
    model = tiny.model({"name": "tome", "r": 3}, class_token=False, depth=1)
    traced = trace(model, tiny.variables(model), images[:1])
    assert traced.attention is None
    assert traced.stages[0].attention is None
    assert traced.tokens == traced.stages[0].tokens == 22


def flat(trace):
    """Every field of a Trace and its Stages, arrays as lists."""
    return json.loads(json.dumps(dataclasses.asdict(trace), default=np.ndarray.tolist))


def test_traces_are_restored(tmp_path):
    """JSON alone holds the slot of every patch."""
    methods, written = traces.methods()
    write_traces(tmp_path, ["a.jpg", "b.jpg"], methods, written)
    names, described, loaded = traces.read_traces(tmp_path)
    assert names == ["a.jpg", "b.jpg"]
    assert described == methods
    assert [flat(trace) for trace in loaded] == [flat(trace) for trace in written]
    assert loaded[0].stages[0].source.dtype == np.int32
    assert loaded[0].grid == traces.GRID
    saved = json.loads((tmp_path / "provenance.json").read_text())
    imagepiece, learner, dense = saved["methods"]
    sources = [stage["source"] for stage in imagepiece["stages"]]
    assert sources == [[traces.MERGED.tolist()] * 2, [traces.PRUNED.tolist()] * 2]
    assert [stage["source"] for stage in learner["stages"]] == [None]
    assert dense["stages"] == []
    assert dense["tokens"] == 6
    with pytest.raises(RunError, match=r"provenance.npz cannot be written \(No such"):
        write_traces(tmp_path / "gone", ["a", "b"], *traces.methods())
