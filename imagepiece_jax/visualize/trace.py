"""Token provenance and class attention of images, block by block.

One forward pass gives both: reductions report their decisions, and every block's
attention returns the class token's row, even if no reducer needs it.
"""

import dataclasses
import functools
import io
import json
import math
import pathlib

import jax
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.progress import counted
from imagepiece_jax.common.signals import finishing
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.block import Block
from imagepiece_jax.models.problem_type import SINGLE_LABEL, activation, probabilities
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import patch_slots
from imagepiece_jax.reduction.state import DROPPED, Mixing

BATCH = 8  # images at a time; the last batch is padded, so that one program suffices
JSON = "provenance.json"
NPZ = "provenance.npz"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Result of the reduction at one block on the patches of B images."""

    block: int
    site: str  # "mid", between attention and MLP of the block, or "pre", before it
    tokens: int
    source: np.ndarray | None = None  # [B, n0] int32, each patch's token, or DROPPED
    sizes: np.ndarray | None = None  # [B, n_out] int32, the patches of each token
    # [B, n_out, n0] float32, how much of each patch a token took; only for a soft
    # reduction (TokenLearner), which has neither source nor sizes
    weights: np.ndarray | None = None
    # [B, m] float32, class attention (mean over heads) in the last block before the
    # step; None: there is no such block, or no class token
    attention: np.ndarray | None = None
    attended: np.ndarray | None = None  # [B, n0], each patch's token in `attention`

    @property
    def attention_block(self) -> int:
        """The last block whose attention comes before the step."""
        return self.block - 1 if self.site == "pre" else self.block


@dataclasses.dataclass(frozen=True)
class Trace:
    """The stages of one model on B images, and its predictions."""

    grid: tuple[int, int]  # (height, width) in patches
    depth: int  # number of blocks
    stages: tuple[Stage, ...]
    tokens: int  # image tokens at the end
    # [B] int32, the most probable class; None where outputs are no classes
    top: np.ndarray | None
    confidence: np.ndarray | None  # [B] float32, its probability
    # as in a Stage, in the last block; None after a soft reduction
    attention: np.ndarray | None = None
    attended: np.ndarray | None = None


def trace(
    model: ViT, variables, images: np.ndarray, problem_type=SINGLE_LABEL
) -> Trace:
    """The Trace of uint8 images [B, H, W, 3].

    It ends at the first soft reduction: tokens overlap there, and later ones have no
    place on the image.

    model: not of masked training
    problem_type: of the head, as Pretrained has it
    """
    slots, soft_weights, attention, logits = _in_batches(model, variables, images)
    top = None
    confidence = None
    if activation(problem_type, model.num_classes) is not None:
        top = logits.argmax(axis=-1).astype(np.int32)
        confidence = probabilities(logits, problem_type).max(axis=-1)
    stages = []
    slots = iter(slots)
    source = next(slots)  # before the first step
    last_seen = {}  # fields of a Stage: the last block's attention

    def reduced(block, layer, before):
        """The slots after a step, whose Stage is appended; after a soft one, None."""
        after = next(slots, None)
        stages.append(_stage(block, layer, before, after, soft_weights, last_seen))
        return after

    for block, layer in enumerate(model.plan):
        site = layer.step.site if layer.counts else None
        if site == "pre":
            source = reduced(block, layer, source)
        if source is None:
            last_seen = {}
            break
        if attention:
            last_seen = {"attention": attention[block], "attended": source}
        if site in ("attention", "mid"):
            source = reduced(block, layer, source)
    return Trace(
        grid=patch_grid(images.shape[1:3], model.patch_size, cut=True),
        depth=model.depth,
        stages=tuple(stages),
        tokens=model.image_tokens,
        top=top,
        confidence=confidence,
        **last_seen,
    )


def _stage(block, layer, before, after, soft_weights, last_seen):
    """The Stage of a step by the slots before and after it; after a soft one, None."""
    count = layer.counts.n_out
    stage = Stage(block, layer.step.site, count, **last_seen)
    if after is None:
        weights = patch_weights(soft_weights, before)
        return dataclasses.replace(stage, weights=weights)
    belongs = after[:, :, None] == np.arange(count)
    sizes = belongs.sum(axis=1, dtype=np.int32)
    return dataclasses.replace(stage, source=after, sizes=sizes)


def patch_weights(soft_weights, slots):
    """A token's weight, split equally among its patches. A dropped patch has 0.

    soft_weights: [B, n_out, n], of tokens
    slots: [B, n0], the token of each patch
    Returns [B, n_out, n0] float32.
    """
    together = slots[:, :, None] == slots[:, None, :]
    patches = together.sum(axis=2)
    share = (slots != DROPPED) / np.maximum(patches, 1)
    tokens = np.maximum(slots, 0)[:, None]
    weights = np.take_along_axis(soft_weights, tokens, axis=2)
    weights = weights * share[:, None]
    return weights.astype(np.float32)


def _in_batches(model, variables, images):
    """`_run` of all images, BATCH at a time, as NumPy arrays."""
    variables = jax.device_put(variables)  # once for all batches
    parts = []
    for start in counted(range(0, len(images), BATCH), "batches of images traced"):
        part = images[start : start + BATCH]
        missing = min(BATCH, len(images)) - len(part)
        part = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        parts.append(jax.device_get(_run(variables, jax.device_put(part), model)))
    together = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    return jax.tree.map(lambda rows: rows[: len(images)], together)


@functools.partial(jax.jit, static_argnames="model")
def _run(variables, images, model):
    """(slots, soft weights, attention of each block, logits).

    Slots are those before the first step and after each hard one; the soft weights
    [B, n_out, n] are those of the first soft step, or None.
    """
    attention = []
    plan = model.plan
    if model.arch.class_token:
        plan = tuple(map(_with_class_attention, plan))

    def record_attention(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, Block):
            _, scores, _ = out
            if model.arch.class_token:
                attention.append(scores["cls_attn"])
        return out

    images = normalize(images, model.mean, model.std)
    # Full float32: GPUs would round the factors of products, and near ties differ.
    with (
        jax.default_matmul_precision("highest"),
        nn.intercept_methods(record_attention),
    ):
        outputs = model.clone(plan=plan).apply(variables, images)
    patches = math.prod(patch_grid(images.shape[1:3], model.patch_size, cut=True))
    slots = patch_slots(outputs.results, len(images), patches)
    slots = [each for each in slots if each is not None]
    soft_weights = None
    for result in outputs.results:
        if isinstance(result, Mixing) and soft_weights is None:
            soft_weights = result.matrix
    return slots, soft_weights, attention, outputs.logits


def _with_class_attention(layer):
    """The plan of a block whose class attention is read."""
    return dataclasses.replace(layer, reads=layer.reads | {"cls_attn"})


def write_traces(folder, names, methods, traces):
    """Write JSON, with methods and slot maps, and NPZ, with all arrays.

    names: of the images
    methods: a dict of JSON values for each of `traces`, such as its label
    Raises RunError where they cannot be written.
    """
    entries = []
    arrays = {}
    for number, (method, trace) in enumerate(zip(methods, traces, strict=True)):
        arrays |= _arrays(f"method{number}", trace)
        for index, stage in enumerate(trace.stages):
            arrays |= _arrays(f"method{number}_stage{index}", stage)
        entry = {
            **method,
            "grid": trace.grid,
            "depth": trace.depth,
            "tokens": trace.tokens,
            "stages": list(map(_stage_entry, trace.stages)),
        }
        entries.append(entry)
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    folder = pathlib.Path(folder)
    text = json.dumps({"images": names, "methods": entries}) + "\n"
    with finishing():  # the files belong together
        replace_file(folder / NPZ, archive.getvalue())
        replace_file(folder / JSON, text)


def _stage_entry(stage):
    """A Stage as JSON values."""
    source = None
    if stage.source is not None:
        source = stage.source.tolist()
    return {
        "block": stage.block,
        "site": stage.site,
        "tokens": stage.tokens,
        "source": source,
    }


def _arrays(prefix, traced):
    """Arrays of a Stage or Trace by their names in the archive."""
    arrays = {}
    for name, value in vars(traced).items():
        if isinstance(value, np.ndarray):
            arrays[f"{prefix}_{name}"] = value
    return arrays
