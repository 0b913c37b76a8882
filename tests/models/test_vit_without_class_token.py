"""Without a class token, the head reads the mean over patches."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.provenance import gather_tokens
from tests.helpers import tiny_vit


def run_model(reduction):
    """The head as a function of pooled vectors, and Outputs of three images."""
    model = tiny_vit.model(reduction, class_token=False, prop_attn=True)
    variables = tiny_vit.variables(model)
    head = variables["params"]["head"]
    outputs = tiny_vit.compiled(model.apply)(variables, tiny_vit.images())
    return lambda pooled: pooled @ head["kernel"] + head["bias"], outputs


def assert_logits_close(logits, expected):
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_head_reads_the_mean_of_remaining_tokens():
    """Dropped tokens do not shrink the mean."""
    head, out = run_model("random:keep_rate=0.6:blocks=(1,)")
    assert out.tokens.shape == (3, 15, tiny_vit.WIDTH)
    assert_logits_close(out.logits, head(out.tokens.mean(axis=1)))


@pytest.mark.parametrize("reduction", ["tome:r=4", "grid_pooling:grid_size=2:block=1"])
def test_merged_tokens_count_by_their_patches(reduction):
    """sum s_i x_i / n0 is the mean over patches."""
    head, out = run_model(reduction)
    size = out.state.size
    assert (size.sum(axis=1) == tiny_vit.TOKENS).all()
    pooled = np.einsum("bn,bnd->bd", size, out.tokens) / tiny_vit.TOKENS
    assert_logits_close(out.logits, head(pooled))
    patch_tokens = gather_tokens(jnp.asarray(out.tokens), tiny_vit.final_slots(out))
    assert_logits_close(out.logits, head(np.asarray(patch_tokens).mean(axis=1)))
    assert np.abs(out.logits - head(out.tokens.mean(axis=1))).max() > 0.01
