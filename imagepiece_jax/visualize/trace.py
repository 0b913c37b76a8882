"""Token provenance and class attention of images, block by block.

One forward pass gives both: reductions report their decisions, and every block's
attention returns the class token's row, whether its reducer needs it or not.
"""

import dataclasses
import functools
import io
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.image_size import cut_to_patches
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.block import Block
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import compose
from imagepiece_jax.reduction.tokens import DROPPED, Mixing

BATCH = 8  # images at a time; the last batch is padded, so that one program suffices
JSON, NPZ = "provenance.json", "provenance.npz"
_OF_STAGE = ("source", "sizes", "weights", "attention", "attended")
_OF_TRACE = ("top", "confidence", "attention", "attended")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Result of the reduction at one block on the patches of B images."""

    block: int
    site: str  # "mid", between attention and MLP of the block, or "pre", before it
    tokens: int
    # [B, n0] int32, the token that holds each patch, or DROPPED.
    source: np.ndarray | None = None
    sizes: np.ndarray | None = None  # [B, n_out] int32, the patches of each token
    # [B, n_out, n0] float32, how much of each patch a token took; only of a soft
    # reduction (TokenLearner), which has neither source nor sizes.
    weights: np.ndarray | None = None
    # [B, m] float32, class attention (mean over heads) in the last block before the
    # step; None where there is no such block, or no class token.
    attention: np.ndarray | None = None
    # [B, n0], the token of `attention` that holds each patch.
    attended: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Trace:
    """The stages of one model on B images, and its predictions."""

    grid: tuple[int, int]  # (height, width) in patches
    depth: int  # number of blocks
    stages: tuple[Stage, ...]
    tokens: int  # image tokens at the end
    top: np.ndarray  # [B] int32, the most probable class
    confidence: np.ndarray  # [B] float32, its probability
    # As in a Stage, in the last block; None after a soft reduction.
    attention: np.ndarray | None = None
    attended: np.ndarray | None = None


def trace(model: ViT, variables, images: np.ndarray) -> Trace:
    """The Trace of uint8 images [B, H, W, 3].

    It ends at the first soft reduction: tokens overlap there, and later ones have no
    place on the image.

    model: with plain kernels, and a plan that is not that of masked training
    """
    decided, attention, top, confidence = _in_batches(model, variables, images)
    _, grid = cut_to_patches(images, model.patch_size)
    source = np.tile(np.arange(math.prod(grid), dtype=np.int32), (len(images), 1))
    stages, looks, decided = [], [(None, None)], iter(decided)
    for block, layer in enumerate(model.plan):
        site = layer.step.site if layer.counts else None
        if site == "pre":
            stages.append(_stage(block, site, next(decided), source, looks[-1]))
            source = stages[-1].source
        if source is None:
            looks.append((None, None))
            break
        looks.append((attention[block], source) if attention else (None, None))
        if site in ("attention", "mid"):
            stages.append(_stage(block, site, next(decided), source, looks[-1]))
            source = stages[-1].source
    ended = (tuple(stages), model.image_tokens, top, confidence, *looks[-1])
    return Trace(grid, len(model.plan), *ended)


def _stage(block, site, decision, source, look):
    """The Stage after `decision`: a slot map [B, n] or a matrix [B, n_out, n]."""
    if decision.ndim == 3:
        # A weight of a token is split equally among its patches.
        at = np.maximum(source, 0)[:, None]
        shared = (source[:, :, None] == source[:, None, :]).sum(axis=2)
        part = (source != DROPPED) / np.maximum(shared, 1)
        weights = np.take_along_axis(decision, at, axis=2) * part[:, None]
        soft = {"weights": weights.astype(np.float32)}
        return Stage(block, site, decision.shape[1], **soft, **_look(look))
    source = np.asarray(compose(decision, source))
    tokens = int(decision.max()) + 1
    sizes = (source[:, :, None] == np.arange(tokens)).sum(axis=1, dtype=np.int32)
    return Stage(block, site, tokens, source, sizes, **_look(look))


def _look(look):
    return dict(zip(("attention", "attended"), look, strict=True))


def _in_batches(model, variables, images):
    """`_run` of all images, BATCH at a time, as NumPy arrays."""
    parts = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        missing = min(BATCH, len(images)) - len(part)
        part = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        parts.append(jax.device_get(_run(variables, part, model)))
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return jax.tree.map(lambda rows: rows[: len(images)], together)


@functools.partial(jax.jit, static_argnames="model")
def _run(variables, images, model):
    """(decisions up to the first soft one, attention of each block, top, confidence).

    A decision is a slot map [B, n] or, where it is soft, a matrix [B, n_out, n].
    """
    attention, class_row = [], {"cls_attn"} if model.arch.class_token else set()
    plan = tuple(
        dataclasses.replace(layer, reads=layer.reads | class_row)
        for layer in model.plan
    )

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, Block):
            _, scores, _ = out
            attention.extend(scores[name] for name in class_row)
        return out

    images = normalize(images, model.mean, model.std)
    # Full float32: GPUs would round the factors of products, and near ties differ.
    with jax.default_matmul_precision("highest"), nn.intercept_methods(note):
        outputs = model.clone(plan=plan).apply(variables, images)
    decisions = []
    for result in outputs.results:
        if isinstance(result, Mixing):
            decisions.append(result.matrix)
            break
        decisions.append(result.dest)
    probabilities = jax.nn.softmax(outputs.logits)
    top = jnp.argmax(probabilities, axis=-1).astype(jnp.int32)
    return decisions, attention, top, jnp.max(probabilities, axis=-1)


def write_traces(folder, names, methods, traces):
    """Write JSON, which holds methods and slot maps, and NPZ, which holds all arrays.

    Each file is written whole or not at all.

    names: of the images
    methods: a dict of JSON values for each of `traces`, such as its label
    Raises RunError where they cannot be written.
    """
    described, arrays = [], {}
    for m, (method, trace) in enumerate(zip(methods, traces, strict=True)):
        stages = []
        for s, stage in enumerate(trace.stages):
            arrays |= _arrays(f"method{m}_stage{s}", stage, _OF_STAGE)
            source = None if stage.source is None else stage.source.tolist()
            facts = {"block": stage.block, "site": stage.site, "tokens": stage.tokens}
            stages.append(facts | {"source": source})
        arrays |= _arrays(f"method{m}", trace, _OF_TRACE)
        facts = {"grid": trace.grid, "depth": trace.depth, "tokens": trace.tokens}
        described.append(method | facts | {"stages": stages})
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    folder = pathlib.Path(folder)
    replace_file(folder / NPZ, archive.getvalue())
    text = json.dumps({"images": names, "methods": described}) + "\n"
    replace_file(folder / JSON, text)


def _arrays(prefix, of, fields):
    """Arrays of a Stage or Trace by their names in the archive."""
    arrays = {f"{prefix}_{field}": getattr(of, field) for field in fields}
    return {name: array for name, array in arrays.items() if array is not None}
