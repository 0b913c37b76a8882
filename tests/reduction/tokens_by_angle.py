"""Tokens in the plane by angle and length, for examples that are computed by hand."""

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.models import registry, summary


def vectors(degrees, lengths=1.0):
    """[1, n, 2] float32."""
    turned = np.deg2rad(np.asarray(degrees, float))
    pairs = np.stack([np.cos(turned), np.sin(turned)], axis=-1)
    return jnp.asarray(np.asarray(lengths, float).reshape(-1, 1) * pairs, jnp.float32)[
        None
    ]


def costs(reduction, name="deit_ti"):
    """(tokens after each block, MACs of the blocks and the rest) of a DeiT."""
    model = registry.create_model(name, reduction=reduction)
    tokens = [layer.mlp_tokens for layer in model.plan]
    return tokens, summary.model_macs(model, 224)
