"""Without a class token, the head reads the mean over patches."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.provenance import gather_tokens
from tests.helpers import tiny_vit


@pytest.mark.parametrize(
    "reduction, merges",
    [
        ("random:keep_rate=0.6:blocks=(1,)", False),  # dropped: the mean of the rest
        ("tome:r=4", True),
        ("grid_pooling:grid_size=2:block=1", True),
    ],
)
def test_the_head_reads_the_mean_of_remaining_patches(reduction, merges):
    model = tiny_vit.model(reduction, class_token=False, prop_attn=True)
    variables = tiny_vit.variables(model)
    out = tiny_vit.compiled(model.apply)(variables, tiny_vit.images())
    size = out.state.size
    slots = jnp.asarray(tiny_vit.final_slots(out))
    patch_tokens = np.asarray(gather_tokens(jnp.asarray(out.tokens), slots))
    means = [out.tokens.mean(axis=1)]
    if merges:  # sum s_i x_i / n0, which is the mean over patches
        assert (size.sum(axis=1) == tiny_vit.TOKENS).all()
        means = [np.einsum("bn,bnd->bd", size, out.tokens) / tiny_vit.TOKENS]
        means.append(patch_tokens.mean(axis=1))
        assert np.abs(means[0] - out.tokens.mean(axis=1)).max() > 0.001
    head = variables["params"]["head"]
    for mean in means:
        logits = mean @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-4)
