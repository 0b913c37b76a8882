"""Models without class token: the head reads the mean over patches."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.provenance import rows_of
from tests.models import tiny

REDUCTIONS = {
    "tome": "tome:r=4",  # 25 image tokens, 21, 17, 13
    "random": "random:keep_rate=0.6:blocks=(1,)",  # 25, 15
    # 25, 4: unequal cells
    "grid": "grid_pooling:grid_size=2:block=1",
}


@functools.cache
def run(name, prop_attn=None):
    """(head's parameters, Outputs) of a tiny model for three images."""
    model = tiny.model(REDUCTIONS[name], class_token=False, prop_attn=prop_attn)
    variables = tiny.variables(model)
    outputs = tiny.jit(model.apply)(variables, tiny.images())
    return variables["params"]["head"], outputs


def read(head, pooled):
    """What the head makes of [B, D], in float64."""
    return np.asarray(pooled, float) @ head["kernel"] + head["bias"]


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_it_is_the_mean_of_the_tokens_that_are_left():
    """It does not shrink with those that are dropped."""
    head, out = run("random")
    chex.assert_shape(out.tokens, (3, 15, tiny.WIDTH))
    close(out.logits, read(head, np.asarray(out.tokens).mean(axis=1)))


@pytest.mark.parametrize("name", ["tome", "grid"])
def test_merged_tokens_count_by_their_patches(name):
    """sum s_i x_i / n0: the mean of what every patch reads back."""
    head, out = run(name, prop_attn=True)
    tokens = np.asarray(out.tokens, float)
    size = np.asarray(out.state.size)
    assert (size.sum(axis=1) == tiny.TOKENS).all()
    assert size.max() > 1
    pooled = np.einsum("bn,bnd->bd", size, tokens) / tiny.TOKENS
    close(out.logits, read(head, pooled))
    spread = rows_of(jnp.asarray(out.tokens), tiny.slots(out))
    close(out.logits, read(head, np.asarray(spread).mean(axis=1)))
    assert np.abs(out.logits - read(head, tokens.mean(axis=1))).max() > 0.01
    if name == "tome":
        assert np.abs(out.logits - run(name, prop_attn=False)[1].logits).max() > 1e-3
