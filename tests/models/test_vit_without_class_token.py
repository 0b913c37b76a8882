"""Models without class token: the head reads the mean over patches."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.provenance import gather_tokens
from tests.helpers import tiny_vit


def run(reduction):
    """(function of pooled vectors that is the head, Outputs) for three images."""
    model = tiny_vit.model(reduction, class_token=False, prop_attn=True)
    variables = tiny_vit.variables(model)
    head = variables["params"]["head"]
    outputs = tiny_vit.compiled(model.apply)(variables, tiny_vit.images())
    return lambda pooled: pooled @ head["kernel"] + head["bias"], outputs


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_it_is_the_mean_of_the_tokens_that_are_left():
    """It does not shrink with those that are dropped."""
    read, out = run("random:keep_rate=0.6:blocks=(1,)")
    assert out.tokens.shape == (3, 15, tiny_vit.WIDTH)
    close(out.logits, read(out.tokens.mean(axis=1)))


@pytest.mark.parametrize("reduction", ["tome:r=4", "grid_pooling:grid_size=2:block=1"])
def test_merged_tokens_count_by_their_patches(reduction):
    """sum s_i x_i / n0: the mean of what every patch reads back."""
    read, out = run(reduction)
    size = out.state.size
    assert (size.sum(axis=1) == tiny_vit.TOKENS).all()
    pooled = np.einsum("bn,bnd->bd", size, out.tokens) / tiny_vit.TOKENS
    close(out.logits, read(pooled))
    spread = gather_tokens(jnp.asarray(out.tokens), tiny_vit.slots(out))
    close(out.logits, read(np.asarray(spread).mean(axis=1)))
    assert np.abs(out.logits - read(out.tokens.mean(axis=1))).max() > 0.01
