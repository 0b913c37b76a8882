"""Operators of marked functions: values in JAX and in both runtimes."""

import collections
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import nodes
from imagepiece_jax.exporters import onnx_ops
from imagepiece_jax.kernels import (
    attention,
    attention_scores,
    gelu,
    joining,
    merging,
    norm,
    ranking,
    similarity,
)
from imagepiece_jax.kernels.joining import distance_to_earlier, find_partners, join_kept
from imagepiece_jax.kernels.merging import merge_features
from imagepiece_jax.kernels.ranking import (
    gather_rows,
    index_kept_tokens,
    invert_order,
    pick_by_rank,
    rank_tokens,
)
from imagepiece_jax.kernels.similarity import cosine_similarity
from tests.helpers.onnx_runs import function_outputs, random_outputs
from tests.helpers.rounding import assert_close
from tests.reduction.test_moves import random_move

MARKED = nodes.onnx_op(lambda: None).__code__
ROOMS = (attention, attention_scores, gelu, joining, merging, norm, ranking, similarity)


def onnx_translations():
    """{name of a marked function: function that adds its nodes}."""
    translations = {}
    for name, fn in vars(onnx_ops).items():
        if name.startswith("add_"):
            translations[name.removeprefix("add_")] = fn
    return translations


@pytest.mark.parametrize("room", ROOMS)
def test_marked_functions_have_onnx_operators_of_their_name_and_arguments(room):
    """The graph argument comes first."""
    translations = onnx_translations()
    marked = []
    for name, fn in vars(room).items():
        if getattr(fn, "__code__", None) is MARKED:
            marked.append(name)
            expected = inspect.signature(fn).parameters
            graph, *parameters = inspect.signature(translations[name]).parameters
            assert parameters == [*expected]
    assert marked


def test_onnx_operators_are_of_marked_functions():
    """An operator without a marked function would never be called."""
    found = collections.ChainMap(*map(vars, ROOMS))
    for name in onnx_translations():
        assert found[name].__code__ is MARKED


NUMBERS = np.arange(11, 23, dtype=np.int32).reshape(2, 6)


def partners(x):
    """An entry of a constant for every value."""
    return find_partners(x[:, :, None] * x[:, None], NUMBERS[:1])[1]


def by_rank(x, other):
    """Values in rank order, then gathered at the tokens sorted by `other`."""
    return gather_rows(gather_rows(x, rank_tokens(x)), sorted_by(other))


def sorted_by(x):
    return invert_order(rank_tokens(x), x.shape[1])


def rows_after_first(x, tokens):
    """Rows of tokens, counted from the second row."""
    rows = jnp.stack([x, 2 * x, -x], 2)
    return gather_rows(jnp.concatenate([rows, 3 * rows], 1)[:, 1:], tokens)


def repeat_for_images(numbers):
    """The same numbers for both images."""
    return jnp.broadcast_to(jnp.asarray(numbers, jnp.float32), (2, len(numbers)))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: pick_by_rank(rank_tokens(x), 3, NUMBERS)[0],
        # Fewer tokens are kept than picked.
        lambda x: pick_by_rank(index_kept_tokens(x > 0), 6, NUMBERS)[0],
        lambda x: pick_by_rank(
            index_kept_tokens(x > 0), 6, repeat_for_images(np.arange(6) + 1.0)
        )[0],
        lambda x: invert_order(rank_tokens(x), np.array([1, 3])),
        lambda x: invert_order(rank_tokens(x), np.array([-1, 9, 2])),  # two are missing
        lambda x: invert_order(index_kept_tokens(x > 0), 6),
        lambda x: invert_order(index_kept_tokens(rank_tokens(x) < 4), 4),
        lambda x: 1 + jax.lax.div(partners(x), jnp.int32(2)) * 3,
        # by rank, and from there the sorted tokens 2 to 4, or others
        lambda x: by_rank(x, x)[:, 2:5],
        lambda x: gather_rows(gather_rows(x, rank_tokens(x)), NUMBERS[:, :2] % 6),
        lambda x: by_rank(x, -x)[:, 2:5],
        lambda x: rows_after_first(x, invert_order(rank_tokens(x), 4)),
        lambda x: rows_after_first(x, NUMBERS % 11),
        lambda x: rows_after_first(x, sorted_by(x).reshape(2, 3, 2)),
        lambda x: gather_rows(x > 0, sorted_by(x)).astype(float),
        # constants of the same numbers for all images: two that are no steps, and steps
        lambda x: gather_rows(repeat_for_images([1e8, 1.0]), sorted_by(x) // 3),
        lambda x: gather_rows(repeat_for_images(np.arange(6) * 2 + 1.0), sorted_by(x)),
    ],
)
@pytest.mark.parametrize("gathers", [False, True])
def test_tokens_are_picked_as_by_jax(fn, gathers):
    with nodes.marked_functions():
        want, *others = random_outputs(fn, (2, 6), gathers=gathers)
    for each in others:
        np.testing.assert_array_equal(each, want)


@pytest.mark.parametrize("n_out", [1, 4, 8])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("gathers", [False, True])
def test_distances_and_kept_tokens_are_those_of_jax(n_out, ties, gathers):
    """Tokens lie on few axes, so most cosines are ties; three score values tie, too.

    OpenVINO orders tied scores in its own way if a graph gathers. The first token's
    distance is 2, or any larger number in a graph.
    """
    rng = np.random.default_rng(n_out)
    axes = np.eye(4)[rng.integers(4, size=(3, 9))] * rng.choice([-1, 1], (3, 9, 1))
    score = rng.choice([0.0, 0.25, 0.5], (3, 9, 1)) if ties else rng.random((3, 9, 1))

    def decided(both):
        tokens, score = jnp.split(both, [4], 2)
        alike = cosine_similarity(tokens, tokens)
        order = rank_tokens(score[..., 0])
        distance = distance_to_earlier(alike, order)
        slot, to_kept = join_kept(alike, order, n_out)
        distance = jnp.minimum(distance, 2.0)
        return jnp.stack([distance, slot.astype(jnp.float32), to_kept], axis=1)

    both = np.concatenate([axes, score], axis=2).astype(np.float32)
    with nodes.marked_functions():
        want, *others = function_outputs(decided, both, gathers=gathers)
    for each in others[:1] if ties and gathers else others:
        np.testing.assert_array_equal(each[:, 1], want[:, 1])
        assert_close(each, want)


@pytest.mark.parametrize(
    "n_out, drop, options, fields",
    [
        (4, 0, {}, {}),
        (4, 0, {"prefix": 0, "weighted": True}, {}),
        (4, 0, {"prefix": 2}, {"by_size": False}),
        (4, 0, {"weighted": True, "mean": False}, {}),
        (4, 0, {"mean": False}, {"by_size": False}),
        (4, 0, {}, {"index": None}),
        (4, 0, {"weighted": True}, {"index": None}),
        (4, 0, {"weighted": True, "mean": False, "prefix": 0}, {"index": None}),
        (4, 0, {}, {"weight": np.ones((3, 7), bool)}),  # a mean over tokens
        (4, 0, {"mean": False}, {"weight": np.full((3, 7), 0.5, np.float16)}),
        (4, 1, {"prefix": 2}, {}),  # tokens are dropped, and none merges
        (7, 0, {"weighted": True}, {}),
    ],
)
def test_tokens_and_values_are_merged_as_by_jax(n_out, drop, options, fields):
    """Three images agree with JAX, whose oracle is in tests/reduction."""
    n = 7
    state, result = random_move(n, n_out, drop=drop, **options)
    result = result.replace(**fields)
    rng = np.random.default_rng(1)
    tokens = state.x.shape[1]
    slots = state.num_prefix + n_out
    weights = rng.uniform(size=(3, 2, tokens, tokens)).astype(np.float32)
    value = rng.normal(size=(3, slots, 2, 4)).astype(np.float32)
    parts = (state.x, state.size[..., None], weights.reshape(3, tokens, -1))

    def merged(x, result):
        x, size, weights = jnp.split(x, [4, 5], 2)
        size = size[..., 0]
        rows, sizes = merge_features(x, size, result)
        weights = weights.reshape(3, 2, tokens, tokens)
        out = attention.attend_merged(weights, value, result, size)
        first = attention.attend_merged(weights[:, :, :1], value, result, size)
        parts = (rows, sizes, out, first)
        return jnp.concatenate([part.reshape(3, -1) for part in parts], axis=1)

    with nodes.marked_functions():
        want, *others = function_outputs(
            lambda x: merged(x, result), np.concatenate(parts, axis=2)
        )
    for each in others:
        np.testing.assert_allclose(each, want, rtol=1e-5, atol=1e-5)
