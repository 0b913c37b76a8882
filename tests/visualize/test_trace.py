import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.visualize import trace as trace_module
from imagepiece_jax.visualize.trace import Stage, trace_tokens, write_traces
from tests.helpers import handmade_traces, tiny_vit
from tests.helpers.oracles import softmax
from tests.helpers.rounding import assert_close

# 25 image tokens, 23, 19
SHORT = tiny_vit.with_fields(tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,))
LEARNER = "token_learner:num_tokens=4:block=1"


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (3, tiny_vit.SIDE, tiny_vit.SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def imagepiece(images):
    model = tiny_vit.model(SHORT, depth=2)
    variables = tiny_vit.variables(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "TRACE_BATCH", 2)
        traced = trace_tokens(model, variables, images)
    return traced, tiny_vit.jit(model.apply)(
        variables, normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    )


def test_groups_equal_the_models_final_tokens(imagepiece):
    traced, outputs = imagepiece
    last = traced.stages[-1]
    assert [(s.block, s.site) for s in traced.stages] == [(b, "mid") for b in range(2)]
    np.testing.assert_array_equal(last.token_of_patch, tiny_vit.final_slots(outputs))
    np.testing.assert_array_equal(last.sizes, outputs.state.size[:, 1:])
    assert traced.num_tokens == outputs.tokens.shape[1] - 1 == 19
    for row in last.token_of_patch:
        assert len(set(row.tolist()) - {-1}) == traced.num_tokens
    for stage in traced.stages:
        assert stage.sizes.shape == (3, stage.num_tokens)
        num_kept = (stage.token_of_patch >= 0).sum(axis=1)
        np.testing.assert_array_equal(stage.sizes.sum(axis=1), num_kept)
    assert traced.grid == (5, 5)


def test_predictions_come_from_the_logits(imagepiece):
    traced, outputs = imagepiece
    shares = softmax(np.asarray(outputs.logits, float))
    np.testing.assert_array_equal(traced.top_labels, shares.argmax(axis=1))
    assert_close(traced.confidence, shares.max(axis=1), units=128)


def test_a_trace_ends_at_learned_tokens(images):
    model = tiny_vit.model(LEARNER, depth=2)
    traced = trace_tokens(model, tiny_vit.variables(model), images)
    assert traced.stages == (Stage(1, "pre", 4),)
    assert traced.num_tokens == 4


def test_without_a_class_token_all_tokens_are_traced(images):
    fields = {"class_token": False, "problem_type": "projection"}
    model = tiny_vit.model("tome:r=3", depth=1, **fields)
    traced = trace_tokens(model, tiny_vit.variables(model), images[:1])
    assert traced.num_tokens == traced.stages[0].num_tokens == 22
    assert traced.top_labels is None  # a projection has no classes


def test_traces_are_written(tmp_path):
    methods, traced = handmade_traces.all_methods()
    write_traces(tmp_path, ["a.jpg", "b.jpg"], methods, traced)
    names, (imagepiece, learner, dense) = handmade_traces.read_traces(tmp_path)
    assert names == ["a.jpg", "b.jpg"]
    assert imagepiece.items() >= methods[0].items()
    sources = [stage["source"] for stage in imagepiece["stages"]]
    expected = (handmade_traces.MERGED, handmade_traces.PRUNED)
    assert sources == [[row.tolist()] * 2 for row in expected]
    assert imagepiece["stages"][1]["sizes"] == [[2, 1, 1, 1]] * 2
    assert [stage["source"] for stage in learner["stages"]] == [None]
    assert (dense["stages"], dense["tokens"]) == ([], 6)
