"""Token provenance of images, block by block, in one forward pass."""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import numpy as np

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.problem_type import SINGLE_LABEL, activation, probabilities
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import trace_patches

BATCH = 8  # images at a time; the last batch is padded, so one program suffices
JSON = "provenance.json"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Patches of B images after the reduction at one block."""

    block: int
    site: str  # "mid", between attention and MLP of the block, or "pre", before it
    tokens: int
    # None after a soft reduction (TokenLearner), whose tokens overlap
    source: np.ndarray | None = None  # [B, n0] int32, token per patch, or DROPPED
    sizes: np.ndarray | None = None  # [B, n_out] int32, patches per token


@dataclasses.dataclass(frozen=True)
class Trace:
    """Stages of one model on B images, and its predictions."""

    grid: tuple[int, int]  # (height, width) in patches
    stages: tuple[Stage, ...]
    tokens: int  # image tokens at the end
    # [B] int32, most probable class; None if the outputs are not classes
    top: np.ndarray | None
    confidence: np.ndarray | None  # [B] float32, its probability


def trace(
    model: ViT, variables, images: np.ndarray, problem_type: str | None = SINGLE_LABEL
) -> Trace:
    """Trace uint8 images [B, H, W, 3] up to the first soft reduction.

    model: not in masked training
    problem_type: the head's; None: outputs are not classes
    """
    slots, logits = _in_batches(model, variables, images)
    top = None
    confidence = None
    classes = model.config.num_classes
    if problem_type is not None and activation(problem_type, classes) is not None:
        top = logits.argmax(axis=-1).astype(np.int32)
        confidence = probabilities(logits, problem_type).max(axis=-1)
    stages = []
    sources = iter(slots)
    for block, layer in enumerate(model.plan):
        if not layer.counts:
            continue
        count = layer.counts.n_out
        source = next(sources, None)
        # A soft reduction's tokens overlap; later tokens have no place in the image.
        if source is None:
            stages.append(Stage(block, layer.step.site, count))
            break
        belongs = source[:, :, None] == np.arange(count)
        sizes = belongs.sum(axis=1, dtype=np.int32)
        stages.append(Stage(block, layer.step.site, count, source, sizes))
    return Trace(
        grid=patch_grid(images.shape[1:3], model.config.patch_size, cut=True),
        stages=tuple(stages),
        tokens=model.image_tokens,
        top=top,
        confidence=confidence,
    )


def _in_batches(model, variables, images):
    """`_run` on all images, BATCH at a time, as NumPy arrays."""
    variables = jax.device_put(variables)  # once for all batches
    parts = []
    for start in with_progress_bar(
        range(0, len(images), BATCH), "batches of images traced"
    ):
        part = images[start : start + BATCH]
        padding = min(BATCH, len(images)) - len(part)
        part = np.concatenate([part, np.repeat(part[:1], padding, axis=0)])
        parts.append(jax.device_get(_run(variables, jax.device_put(part), model)))
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return jax.tree.map(lambda rows: rows[: len(images)], together)


@functools.partial(jax.jit, static_argnames="model")
def _run(variables, images, model):
    """(slots after every step before the first soft reduction, logits)."""
    images = normalize(images, model.config.mean, model.config.std)
    # Full float32: GPUs would round factors of products, and near ties would differ.
    with jax.default_matmul_precision("highest"):
        outputs = model.apply(variables, images)
    patches = math.prod(
        patch_grid(images.shape[1:3], model.config.patch_size, cut=True)
    )
    _, *slots = trace_patches(outputs.results, len(images), patches)
    return [source for source in slots if source is not None], outputs.logits


def write_traces(folder, names, methods, traces):
    """Write JSON with slot maps of all images under all methods.

    names: image names
    methods: a dict of JSON values per trace, such as its label
    """
    entries = []
    for method, trace in zip(methods, traces, strict=True):
        entries.append({**method, **dataclasses.asdict(trace)})
    record = {"images": names, "methods": entries}
    text = json.dumps(record, default=np.ndarray.tolist) + "\n"
    replace_file(pathlib.Path(folder) / JSON, text)
