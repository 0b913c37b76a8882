"""Proportional attention without a bias matrix: token sizes in key directions.

Proportional attention adds log(size) to the logits. As a bias matrix that costs a GPU
as much again as attention itself. Instead, every head gives up the direction its logits
use least, and its keys carry log(size) there. For inference only.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float, UInt8

from imagepiece_jax.common.image_size import ImageSize
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data import pictures
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

PHOTOGRAPH_FOLDER = pathlib.Path(__file__).with_name("photographs")


def sized_blocks(model: ViT) -> range:
    """List the blocks whose attention sees tokens of several patches."""
    for index, block_plan in enumerate(model.plan):
        if block_plan.counts is None or block_plan.step is None:  # no reduction
            continue
        # The first step: tokens that it merged stay merged in all later blocks.
        is_before_attention = block_plan.step.site == "pre"
        first_block = index if is_before_attention else index + 1
        return range(first_block, model.depth)
    return range(0)


def has_sizes(model: ViT) -> bool:
    """Whether any block's attention adds log(size) to the logits."""
    return model.prop_attn and bool(sized_blocks(model))


def refusal_reason(model: ViT) -> str | None:
    """Say why a model cannot carry sizes in key directions; None if it can."""
    if model.config.arch.rotary is not None:
        return "has rotary positions, which turn every direction"
    if any("query" in layer.attention_reads for layer in model.plan):
        return "has a reducer that compares queries, which would change"
    return None


def find_directions(
    pretrained: Pretrained,
) -> Float[np.ndarray, "blocks heads head_dim"]:
    """Find, for every head, the direction its logits use least, a unit vector.

    The logits are those of this package's eight photographs.
    """
    images = sample_photographs(pretrained.image_size)
    variables = pretrained.variables
    exact_execution = {"attention_impl": "xla", "dtype": "float32"}
    dense_model = pretrained.reduced_model(None).with_execution(**exact_execution)
    with announced_work("finding the directions of sizes"):
        # pyrefly: ignore[bad-argument-type]  # flax modules have a hash
        block_moments = jax.device_get(_compute_moments(dense_model, variables, images))
    block_directions = []
    for index, (query_moments, key_moments) in enumerate(block_moments):
        if not np.isfinite([query_moments, key_moments]).all():
            raise InputError(f"block {index} has queries or keys that are not finite")
        block_directions.append(least_used_direction(query_moments, key_moments))
    return np.asarray(block_directions, np.float32)


def sample_photographs(image_size: ImageSize) -> UInt8[np.ndarray, "8 height width 3"]:
    """This package's eight photographs."""
    # A full crop, whatever preprocessing a model expects.
    preprocessing = Preprocessing(image_size, crop=1.0)
    files = sorted(PHOTOGRAPH_FOLDER.glob("*.jpg"))
    return np.asarray(pictures.as_batch(files, preprocessing))


@functools.partial(jax.jit, static_argnums=0)
def _compute_moments(model, variables, images):
    """Second moments (C_q, C_k) of each block's queries and keys: [heads, d, d]."""
    block_moments = []

    def append_moments(call, args, kwargs, context):
        projections = call(*args, **kwargs)
        is_attention = isinstance(context.module, Attention)
        if is_attention and context.method_name == Attention.project_heads.__name__:
            has_class_token = model.config.arch.class_token
            query, key = projections.query, projections.key
            block_moments.append(second_moments(query, key, has_class_token))
        return projections

    images = model.config.as_normalized(images)
    exact_products = jax.default_matmul_precision("highest")
    with nn.intercept_methods(append_moments), exact_products:
        model.apply(variables, images)
    return block_moments


def fold_sizes(
    model: ViT, variables: Mapping[str, Any], directions: Any
) -> tuple[ViT, dict[str, Any]]:
    """Return (model, variables) whose keys carry the sizes in `directions`.

    directions: [blocks, heads, head_dim]; blocks without sizes compute as before
    """
    params = dict(variables["params"])
    block_range = sized_blocks(model)
    for block_index, direction in enumerate(directions):
        if block_index not in block_range:
            direction = np.zeros_like(direction)  # no direction is given up
        block_params = params[f"blocks_{block_index}"]
        attention_params = remove_size_directions(block_params["attn"], direction)
        params[f"blocks_{block_index}"] = {**block_params, "attn": attention_params}
    model = model.with_execution(size_encoding="direction")
    return model, {**variables, "params": params}
