import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.exporters import onnx_graph
from imagepiece_jax.exporters.onnx_primitives import add_equations
from imagepiece_jax.kernels import ranking
from tests.helpers.onnx_runs import random_outputs, run_onnxruntime
from tests.helpers.refused_calls import refused


def whole_numbers(x):
    """Integers of both signs, some repeated."""
    return (4 * x).astype(jnp.int32)


NUMBERS = np.arange(11, 23, dtype=np.int32).reshape(2, 6)
index_kept = ranking.index_kept_tokens
invert = ranking.invert_order
rank = ranking.rank_tokens


def sorted_by(x):
    return invert(rank(x), x.shape[1])


def rows_after_first(x, tokens):
    """Rows of tokens, counted from the second row."""
    rows = jnp.stack([x, 2 * x, -x], 2)
    return ranking.gather_rows(jnp.concatenate([rows, 3 * rows], 1)[:, 1:], tokens)


PICKED_TOKENS = [
    lambda x: ranking.pick_by_rank(rank(x), 3, NUMBERS)[0],
    lambda x: ranking.pick_by_rank(index_kept(x > 0), 6, NUMBERS)[0],  # fewer are kept
    lambda x: invert(rank(x), np.array([1, 3])),
    lambda x: invert(rank(x), np.array([-1, 9, 2])),  # two are missing
    lambda x: invert(index_kept(x > 0), 6),
    lambda x: invert(index_kept(rank(x) < 4), 4),
    lambda x: ranking.find_first_largest(x[:, :, None] * x[:, None])[1],
    lambda x: ranking.mark_smallest(x, 4),
    lambda x: rows_after_first(x, invert(rank(x), 4)),
    lambda x: rows_after_first(x, NUMBERS % 11),
    lambda x: rows_after_first(x, sorted_by(x).reshape(2, 3, 2)),
    lambda x: ranking.gather_rows(x > 0, sorted_by(x)),
]


@pytest.mark.parametrize(
    "fn, shapes",
    [
        (lambda x, y: (x.transpose(1, 0, 2) + y) * 2, [(3, 4, 5), (1, 1, 5)]),
        (lambda x, y: (x.T - y).T * x, [(3, 4), (4, 1)]),
        (lambda x: jnp.where(x.T > 0.5, x.T, 0.0).T, [(3, 4)]),
        (lambda x: x.transpose(1, 2, 0).transpose(1, 0, 2).sum(1), [(3, 4, 5)]),
        (lambda x: jnp.sum(x > 0, axis=1).astype(float), [(3, 4, 5)]),
        (lambda x: jnp.concatenate(jnp.split(x, [1, 3], 2)[::-1], 2), [(3, 4, 5)]),
        (lambda x: x[:, ::-1, ::-1] - x, [(3, 4, 5)]),
        (lambda x: jnp.maximum(x > 1, x.transpose(0, 2, 1) < 0), [(3, 4, 4)]),
        (lambda x: (1 * x.mean(1, keepdims=True) + 0) ** 1.0 / 1, [(3, 4, 5)]),
        (lambda x: x.sum(1) / 5, [(3, 4, 5)]),  # the axis has four
        # One of the parts.
        (lambda x: jnp.concatenate([x, 2 * x], 1)[:, 4:8], [(3, 4, 5)]),
        (lambda x: jnp.concatenate([x, 2 * x], 1)[:, 4:7], [(3, 4, 5)]),
        (lambda x: jnp.concatenate([x, 2 * x], 2)[:, 1:3], [(3, 4, 5)]),
        (lambda x: x[1:, 1:, ::2][:, :, 1:][:, ::2], [(3, 4, 5)]),
        (lambda x: jnp.broadcast_to(x[:, :1, None], (3, 2, 4, 5)), [(3, 4, 5)]),
        (lambda x: whole_numbers(x), [(3, 40)]),
        (lambda x: jax.lax.div(whole_numbers(x), jnp.int32(3)), [(3, 40)]),
        (lambda x: jax.lax.div(whole_numbers(x), jnp.int32(-3)), [(3, 40)]),
        (lambda x: x + jnp.maximum(x, -2 * x), [(3, 40)]),
        (lambda x: jnp.minimum(jnp.maximum(x, -0.5), 0.25), [(3, 40)]),
        (lambda x: jnp.where(x > 0, x > 1, x < -1), [(3, 40)]),
        *((fn, [(2, 6)]) for fn in PICKED_TOKENS),
    ],
)
@kernels.reference_forms()
def test_rewritten_nodes_keep_their_values(fn, shapes):
    expected, *results = random_outputs(lambda *x: fn(*x).astype(jnp.float32), *shapes)
    rtol, atol = (0, 0) if fn in PICKED_TOKENS else (1e-5, 1e-6)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol, atol)


def open_batch_graph(fn):
    """A graph of `fn` for images [batch, 6]."""
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 6), np.float32)
    entry = onnx_graph.Value(images.shape, images.dtype, "images")
    graph = onnx_graph.Graph(entry)
    (out,) = add_equations(graph, jax.make_jaxpr(fn)(images), [entry])
    return graph.make_model({"logits": out})


def test_a_side_may_be_a_multiple_of_an_open_batch():
    def add_ones(x):
        rows = x.reshape(-1, 2)
        return jnp.concatenate([rows, jnp.ones((rows.shape[0], 1))], axis=1)

    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for logits in run_onnxruntime(open_batch_graph(add_ones), x):
        np.testing.assert_array_equal(logits, add_ones(x))
    with refused("the model"):  # the batch's size is no number to compute with
        open_batch_graph(lambda x: x.mean(0))


def negative_padding(x):
    kernel = jnp.ones((2, 3, 1))
    axes = ("NHC", "HIO", "NHC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), [(-1, 0)], (1,), (1,), axes)


@pytest.mark.parametrize(
    "fn",
    [
        jnp.sort,
        lambda x: jnp.int32(x) & 1,
        negative_padding,
        lambda x: x.at[:, 9].get(mode="fill", fill_value=7.0),  # beyond the array
    ],
)
def test_an_operation_without_an_operator_is_refused(fn):
    with refused("the model"):
        random_outputs(fn, (2, 4, 3))
