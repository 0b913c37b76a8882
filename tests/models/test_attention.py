import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.attention import attention_columns
from imagepiece_jax.kernels.attention_scores import mean_attention
from imagepiece_jax.reduction.state import TokenState
from tests.helpers import oracles, tiny_vit
from tests.helpers.rounding import assert_close
from tests.kernels.test_attention import random_bias, random_qkv

# This compiles once per shape instead of once per operation.
compiled_row = tiny_vit.compiled(mean_attention)
compiled_columns = tiny_vit.compiled(attention_columns)


@pytest.mark.parametrize("length, biased", [(1, True), (2, False), (7, True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_and_the_class_row_are_float32(length, biased, dtype):
    query, key, _ = (a.astype(jnp.dtype(dtype)) for a in random_qkv(length))
    bias = random_bias(length) if biased else np.zeros((2, length))
    images = zip(query, key, key, bias, strict=True)
    weights = np.stack([oracles.attention(*image)[1] for image in images])
    columns = compiled_columns(query, key, bias if biased else None)
    row = compiled_row(query[:, :1], key, bias if biased else None)
    assert columns.dtype == row.dtype == jnp.float32
    assert_close(columns, weights.mean(axis=(1, 2)))
    assert_close(row, weights[:, :, 0].mean(axis=1))


@pytest.mark.parametrize("metric", ["query", "key", "value"])
def test_the_metric_is_the_mean_over_heads_of_one_projection(metric):
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
    module = tiny_vit.attention(12, 3)
    state = TokenState(x=x, size=np.ones((2, 7), np.float32), num_prefix=1)
    variables = tiny_vit.fill(jax.eval_shape(module.init, jax.random.key(0), x, state))
    apply = functools.partial(module.apply, score_names={metric})
    _, scores = tiny_vit.compiled(apply)(variables, x, state)
    layer = variables["params"][metric[0]]
    heads = (x.astype(float) @ layer["kernel"] + layer["bias"]).reshape(2, 7, 3, 4)
    assert scores.keys() == {metric}  # no other score is computed
    assert scores[metric].dtype == jnp.float32
    np.testing.assert_allclose(scores[metric], heads[:, 1:].mean(axis=2), atol=2e-6)
