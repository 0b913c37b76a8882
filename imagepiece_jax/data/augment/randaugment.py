"""RandAugment of a batch on the device (Cubuk et al., 2020; timm's operations).

Every image draws its own operations. A branch for each of the fifteen would compute
them all for all images; here a layer is one lookup (`color_ops`), one affine transform
(`affine`) and one blend (below), and each image takes the one that it drew. The results
are those of Pillow and timm to one level of 256.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagepiece_jax.data.augment import affine, color_ops
from imagepiece_jax.data.augment.policy import FILL, MAX_MAGNITUDE, OPS

_AFFINE = tuple(
    OPS.index(name)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
)
_COLOR, _SHARPNESS = OPS.index("Color"), OPS.index("Sharpness")


class Draws(NamedTuple):
    """Drawn operations, arrays [B, layers]."""

    op: jax.Array  # place in OPS
    applied: jax.Array  # bool; else the image stays as it is
    magnitude: jax.Array  # 0 .. 10
    sign: jax.Array  # 1 or -1: the direction of operations that have two


def randaugment(images, keys, policy):
    """Draw and apply `policy`. uint8 [B, H, W, 3], keys [B] -> uint8 [B, H, W, 3]."""
    return apply(images, draw(keys, policy), policy.fill)


def draw(keys, policy):
    """`Draws` [B, layers], those of an image from its own key of `keys` [B]."""

    def one(key):
        op, applied, magnitude, sign = jax.random.split(key, 4)
        shape = (policy.layers,)
        noise = policy.magnitude_std * jax.random.normal(magnitude, shape)
        return Draws(
            op=jax.random.randint(op, shape, 0, len(OPS)),
            applied=jax.random.uniform(applied, shape) < policy.prob,
            magnitude=jnp.clip(policy.magnitude + noise, 0.0, MAX_MAGNITUDE),
            sign=jnp.where(jax.random.bernoulli(sign, 0.5, shape), 1.0, -1.0),
        )

    return jax.vmap(one)(keys)


def apply(images, draws, fill=FILL):
    """Apply the drawn operations, layer by layer. uint8 [B, H, W, 3] -> the same."""
    op = jnp.where(draws.applied, draws.op, -1)
    for layer in range(op.shape[1]):
        images = _layer(
            images, op[:, layer], draws.magnitude[:, layer], draws.sign[:, layer], fill
        )
    return images


def _layer(images, op, magnitude, sign, fill):
    """Apply one operation to each image, none where `op` is -1."""
    table = color_ops.tables(images, op, magnitude, sign)
    matrix = affine.matrices(op, magnitude, sign, *images.shape[1:3])
    moves = jnp.isin(op, jnp.array(_AFFINE))[:, None, None, None]
    blends = ((op == _COLOR) | (op == _SHARPNESS))[:, None, None, None]
    return jnp.where(
        moves,
        affine.affine(images, matrix, fill),
        jnp.where(
            blends,
            _blend(images, op, color_ops.factor(magnitude, sign)),
            color_ops.look_up(images, table),
        ),
    )


def _blend(images, op, share):
    """Blend each image with its gray (Color) or smoothed (Sharpness) form."""
    gray = jnp.broadcast_to(color_ops.luminance(images)[..., None], images.shape)
    sharpens = (op == _SHARPNESS)[:, None, None, None]
    degenerate = jnp.where(sharpens, _smooth(images), gray)
    return color_ops.blend(degenerate, images, share[:, None, None, None]).astype(
        jnp.uint8
    )


def _smooth(images):
    """Mean over 3 x 3 pixels, the middle one counted five times; edges stay. int32."""
    height, width = images.shape[1:3]
    values = images.astype(jnp.int32)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = total + 4 * values[:, 1:-1, 1:-1]
    inner = (2 * total + 13) // 26  # of 13, rounded: no sum lies halfway
    padded = jnp.pad(inner, ((0, 0), (1, 1), (1, 1), (0, 0)))
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(edge[None, :, :, None], values, padded)
