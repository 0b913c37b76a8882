"""RandAugment of a batch on the device (Cubuk et al., 2020; timm's operations).

Every image draws its own operations. A branch for each of the fifteen would do them all
for all images; here a layer is one lookup, one warp and one blend (design of the three:
lookup.py, warp.py and below), and each image takes the one that it drew. The results
are those of randaugment_host.py to a grey level.
"""

import jax
import jax.numpy as jnp

from imagepiece_jax.data.augment import affine, color_ops
from imagepiece_jax.data.augment.policy import FILL, MOST, OPS, Draws

_WARPS = tuple(
    OPS.index(name)
    for name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
)
_COLOR, _SHARPNESS = OPS.index("Color"), OPS.index("Sharpness")


def randaugment(images, keys, policy):
    """`policy` drawn and done for each image. uint8 [B, H, W, 3], keys [B] -> uint8."""
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
            magnitude=jnp.clip(policy.magnitude + noise, 0.0, MOST),
            sign=jnp.where(jax.random.bernoulli(sign, 0.5, shape), 1.0, -1.0),
        )

    return jax.vmap(one)(keys)


def apply(images, draws, fill=FILL):
    """The drawn operations, layer by layer. uint8 [B, H, W, 3] -> the same."""
    op = jnp.where(draws.applied, draws.op, -1)
    for layer in range(op.shape[1]):
        images = _layer(
            images, op[:, layer], draws.magnitude[:, layer], draws.sign[:, layer], fill
        )
    return images


def _layer(images, op, magnitude, sign, fill):
    """One operation for each image, none where `op` is -1."""
    table = color_ops.tables(images, op, magnitude, sign)
    matrix = affine.matrices(op, magnitude, sign, *images.shape[1:3])
    warps = jnp.isin(op, jnp.array(_WARPS))[:, None, None, None]
    blends = ((op == _COLOR) | (op == _SHARPNESS))[:, None, None, None]
    return jnp.where(
        warps,
        affine.affine(images, matrix, fill),
        jnp.where(
            blends,
            _blend(images, op, color_ops.factor(magnitude, sign)),
            color_ops.look_up(images, table),
        ),
    )


def _blend(images, op, share):
    """Between the image and its grey (Color) or smoothed (Sharpness) form."""
    grey = jnp.broadcast_to(color_ops.luminance(images)[..., None], images.shape)
    sharpens = (op == _SHARPNESS)[:, None, None, None]
    degenerate = jnp.where(sharpens, _smooth(images), grey)
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
