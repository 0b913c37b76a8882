"""Tokens in the plane by angle and length, for examples that are computed by hand."""

import numpy as np

from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction import tokens
from tests.models import tiny

apply = tiny.compiled(tokens.apply)
decide = tiny.compiled(
    lambda reducer, taps, counts: reducer(taps, counts), static_argnums=(0, 2)
)


def vectors(degrees, lengths=1.0):
    """[1, n, 2] float32."""
    turned = np.deg2rad(np.asarray(degrees, float))
    pairs = np.stack([np.cos(turned), np.sin(turned)], axis=-1)
    return np.float32(np.asarray(lengths, float).reshape(-1, 1) * pairs)[None]


def costs(reduction, name="deit_ti"):
    """(tokens after each block, MACs of the blocks and the rest) of a DeiT."""
    model = create_model(name, reduction=reduction)
    counts = [layer.mlp_tokens for layer in model.plan]
    return counts, model_macs(model, 224)
