"""Proportional attention without a bias matrix: token sizes in key directions.

Proportional attention adds log(size) to the logits. As a bias matrix that costs a GPU
as much again as attention itself. Instead, every head gives up the direction its logits
use least (`directions`), and its keys carry log(size) there (`folded`). Inference only.
"""

import functools
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data import pictures
from imagepiece_jax.data.normalize import as_normalized
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.size_direction import (
    least_used_direction,
    remove_size_directions,
    second_moments,
)
from imagepiece_jax.models.attention import Attention
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

PHOTOGRAPHS = pathlib.Path(__file__).with_name("photographs")


def sized_blocks(model: ViT) -> range:
    """List the blocks whose attention sees tokens of several patches."""
    for index, layer in enumerate(model.plan):
        if layer.counts is None:
            continue
        before_attention = layer.step.site == "pre"
        first = index if before_attention else index + 1
        return range(first, model.depth)
    return range(0)


def has_sizes(model: ViT) -> bool:
    """Whether any block's attention adds log(size) to the logits."""
    return model.prop_attn and bool(sized_blocks(model))


def reason_against(model: ViT) -> str | None:
    """Say why a model cannot carry sizes in key directions; None if it can."""
    if model.config.arch.rotary is not None:
        return "has rotary positions, which turn every direction"
    if any("query" in layer.attention_reads for layer in model.plan):
        return "has a reducer that compares queries, which would change"
    return None


def directions(vit: Pretrained, images: np.ndarray | None = None) -> np.ndarray:
    """Find, for every head, the direction its logits use least.

    images: uint8 or normalized, [B, H, W, 3]; None: this package's eight photographs
    Returns unit vectors, [depth, H, d] float32.
    """
    if images is None:
        images = photographs(vit.image_size)
    dense = vit.model_with(None).with_execution(attention_impl="xla", dtype="float32")
    with announced_work("finding the directions of sizes"):
        # An explicit copy, which a user's transfer guard allows.
        moments = _moments(dense)(*jax.device_put((vit.variables, images)))
        moments = jax.device_get(moments)
    vectors = []
    for index, (of_queries, of_keys) in enumerate(moments):
        if not np.all(np.isfinite(of_queries)) or not np.all(np.isfinite(of_keys)):
            raise InputError(
                f"variables: block {index} has queries or keys that are not finite"
            )
        vectors.append(least_used_direction(of_queries, of_keys))
    return np.asarray(vectors, np.float32)


def photographs(image_size: int | tuple[int, int]) -> np.ndarray:
    """This package's eight photographs, uint8 [8, H, W, 3]."""
    # A full crop, whatever preprocessing a model expects.
    preprocessing = Preprocessing(image_size, crop=1.0)
    return pictures.as_batch(sorted(PHOTOGRAPHS.glob("*.jpg")), preprocessing)


@functools.lru_cache(maxsize=2)
def _moments(model):
    """Compile (variables, images) -> [(C_q, C_k) per block], [H, d, d] float32."""

    def moments(variables, images):
        block_moments = []

        def noting(call, args, kwargs, context):
            result = call(*args, **kwargs)
            is_attention = isinstance(context.module, Attention)
            if is_attention and context.method_name == "project":
                prefix = int(model.config.arch.class_token)
                block_moments.append(second_moments(result.query, result.key, prefix))
            return result

        images = as_normalized(images, model.config.mean, model.config.std)
        with nn.intercept_methods(noting), jax.default_matmul_precision("highest"):
            model.apply(variables, images)
        return block_moments

    return jax.jit(moments)


def folded(
    model: ViT,
    variables: Mapping[str, Any],
    directions: np.ndarray,
    blocks: Container[int] | None = None,
) -> tuple[ViT, dict[str, Any]]:
    """Return (model, variables) whose keys carry the sizes in `directions`.

    directions: [depth, H, d], from `directions`
    blocks: indices of the blocks that give up a direction; None: `sized_blocks`, so
        all other blocks compute as before
    """
    params = dict(variables["params"])
    if blocks is None:
        blocks = sized_blocks(model)
    for index in range(model.depth):
        u = directions[index]
        if index not in blocks:
            u = np.zeros_like(u)
        name = f"blocks_{index}"
        attention = remove_size_directions(params[name]["attn"], u)
        params[name] = {**params[name], "attn": attention}
    model = model.with_execution(size_encoding="direction")
    return model, {**variables, "params": params}
