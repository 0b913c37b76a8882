"""Token provenance of images, block by block, in one forward pass."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import list_token_maps

TRACE_BATCH = 8  # images at a time; the last batch is padded, so one program suffices
TRACE_FILE = "provenance.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Patches of B images after the reduction at one block."""

    block: int
    site: str  # "mid", between attention and MLP of the block, or "pre", before it
    num_tokens: int
    # None after a soft reduction (TokenLearner), whose tokens overlap. DROPPED: none
    token_of_patch: Int[np.ndarray, "images patches"] | None = None

    @functools.cached_property
    def sizes(self) -> Int[np.ndarray, "images tokens"] | None:
        """Number of patches of every token; None after a soft reduction."""
        if self.token_of_patch is None:
            return None
        is_member = self.token_of_patch[:, :, None] == np.arange(self.num_tokens)
        return is_member.sum(axis=1, dtype=np.int32)

    @property
    def title(self) -> str:
        """The place in the model, in words: "block 3" or "before block 3"."""
        title = f"block {self.block}"
        return f"before {title}" if self.site == "pre" else title


@dataclasses.dataclass(frozen=True)
class Trace:
    """Stages of one model on B images, and its predictions."""

    grid: tuple[int, int]  # (height, width) in patches
    stages: tuple[Stage, ...]
    num_tokens: int  # image tokens at the end
    top_labels: Int[np.ndarray, " images"] | None  # most probable; None: not classes
    confidence: Float[np.ndarray, " images"] | None  # the top label's probability

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid)


def trace_tokens(
    model: ViT, variables: Any, images: UInt8[np.ndarray, "images height width 3"]
) -> Trace:
    """Trace images up to the first soft reduction.

    model: not in masked training
    """
    token_maps, logits = _trace_in_batches(model, variables, images)
    top_labels = confidence = None
    head = model.config.head
    if head.activation:  # without one the outputs are no classes
        top_labels = logits.argmax(axis=-1).astype(np.int32)
        confidence = head.probabilities(logits).max(axis=-1)
    stages = []
    remaining_maps = iter(token_maps)
    for block_index, block_plan in enumerate(model.plan):
        if not block_plan.counts or block_plan.step is None:  # removes nothing
            continue
        token_of_patch = next(remaining_maps, None)
        site = block_plan.step.site
        num_image_tokens = block_plan.counts.n_out
        stages.append(Stage(block_index, site, num_image_tokens, token_of_patch))
        if token_of_patch is None:  # later tokens have no place in the image
            break
    return Trace(
        # cut: as the stem does, an incomplete patch at the far edge is left out.
        grid=patch_grid(images.shape[1:3], model.config.patch_size, cut=True),
        stages=tuple(stages),
        # `mlp_tokens` counts the class token and other prefix tokens, too.
        num_tokens=model.plan[-1].mlp_tokens - model.config.arch.prefix,
        top_labels=top_labels,
        confidence=confidence,
    )


def _trace_in_batches(model, variables, images):
    """`_token_maps_and_logits` of all images, TRACE_BATCH at a time."""
    variables = jax.device_put(variables)  # once for all batches
    batch_results = []
    batch_size = min(TRACE_BATCH, len(images))
    starts = range(0, len(images), batch_size)
    for start in with_progress_bar(starts, "batches of images traced"):
        # The last batch is padded with copies of its first image.
        indices = np.arange(start, start + batch_size)
        batch = images[np.where(indices < len(images), indices, start)]
        batch_result = _token_maps_and_logits(variables, jax.device_put(batch), model)
        batch_results.append(jax.device_get(batch_result))
    # The padding is cut off.
    return jax.tree.map(
        lambda *arrays: np.concatenate(arrays)[: len(images)], *batch_results
    )


@functools.partial(jax.jit, static_argnames="model")
def _token_maps_and_logits(variables, images, model):
    """(token_of_patch after every step before the first soft reduction, logits)."""
    normalized_images = normalize(images, model.config.mean, model.config.std)
    # Full float32: GPUs would round factors of products, and near ties would differ.
    with jax.default_matmul_precision("highest"):
        outputs = model.apply(variables, normalized_images)
    _, height, width, _ = images.shape
    # cut: as the stem does, an incomplete patch at the far edge is left out.
    grid = patch_grid((height, width), model.config.patch_size, cut=True)
    # The first map is from before the first step.
    _, *maps_after_steps = list_token_maps(
        outputs.results, len(images), math.prod(grid)
    )
    token_maps = [token_map for token_map in maps_after_steps if token_map is not None]
    return token_maps, outputs.logits


def write_traces(
    folder: str | os.PathLike,
    names: Sequence[str],
    methods: Sequence[Mapping[str, Any]],
    traces: Sequence[Trace],
) -> pathlib.Path:
    """Write JSON with token maps of all images under all methods; returns its path.

    methods: JSON values of every trace's method, such as its label
    """
    method_records = []
    for method, trace in zip(methods, traces, strict=True):
        stage_records = []
        for stage in trace.stages:
            stage_record = {
                "block": stage.block,
                "site": stage.site,
                "tokens": stage.num_tokens,
                "sizes": stage.sizes,
                "source": stage.token_of_patch,
            }
            stage_records.append(stage_record)
        method_record = {
            **method,
            "grid": trace.grid,
            "stages": stage_records,
            "tokens": trace.num_tokens,
            "top": trace.top_labels,
            "confidence": trace.confidence,
        }
        method_records.append(method_record)
    file = pathlib.Path(folder) / TRACE_FILE
    record = {"images": names, "methods": method_records}
    replace_file(file, json.dumps(record, default=np.ndarray.tolist) + "\n")
    return file
