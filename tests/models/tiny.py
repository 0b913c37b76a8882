"""A vision transformer that compiles in a second, with weights that leave no tie."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagepiece_jax.models import zoo

SIDE, PATCH, TOKENS, WIDTH, DEPTH, HEADS, CLASSES = 20, 4, 25, 24, 4, 3, 7

IMAGEPIECE = {"name": "imagepiece"}  # merges at blocks 0 and 1, prunes at block 2
EVIT = {"name": "evit", "keep_rate": 0.6, "blocks": (1, 2)}
FUSED = EVIT | {"fuse_token": True}


def model(reduction=None, **options):
    """The tiny ViT; `options` are create_model's."""
    size = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return zoo.create_model(
        "vit_mini",
        image_size=SIDE,
        num_classes=CLASSES,
        reduction=reduction,
        **size | options,
    )


def shapes(vit, side=SIDE):
    """Variables of a model as ShapeDtypeStructs; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(vit.init, jax.random.key(0), images)


def variables(vit, seed=0):
    """Random values for every variable, biases and statistics too; scales near 1."""
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(shapes(vit))
    for path, leaf in sorted(leaves.items()):
        positive = path[-1] in ("scale", "var")
        value = rng.uniform(0.5, 1.5, leaf.shape) if positive else None
        value = rng.normal(0, 0.3, leaf.shape) if value is None else value
        leaves[path] = jnp.asarray(value, leaf.dtype)
    return traverse_util.unflatten_dict(leaves)


def images(batch=3, seed=0):
    """Normalised images of noise, [batch, SIDE, SIDE, 3] float32."""
    noise = np.random.default_rng(seed).normal(size=(batch, SIDE, SIDE, 3))
    return jnp.asarray(noise, jnp.float32)
