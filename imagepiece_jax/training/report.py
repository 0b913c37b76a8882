"""What should a person know before and after a run? Plan, cost, results, pictures."""

import math
import pathlib

import jax
import numpy as np

from imagepiece_jax import pictures
from imagepiece_jax.data import mix
from imagepiece_jax.models import summary
from imagepiece_jax.reduction import flops
from imagepiece_jax.reduction.tokens import compose
from imagepiece_jax.training import weights


def plan_text(model, dense, image_size):
    """The block table and the cost against the dense model."""
    return "\n".join(
        [summary.block_table(model), *summary.cost_lines(model, dense, image_size)]
    )


def cost_table(model, dense, image_size):
    """Tokens, MMACs beside those of `dense`, and parameters of every part, as text.

    Class token and positions count to the stem, the last norm to the head.
    """

    def row(name, layer, ours, theirs, parameters):
        cost = (f"{ours / 1e6:.1f}", f"{theirs / 1e6:.1f}", f"{parameters:,}")
        if layer is None:
            return (name, "", "", *cost, "")
        tokens = (layer.attn_tokens, layer.mlp_tokens)
        return (name, *tokens, *cost, summary.action(layer))

    blocks = [f"block {i}" for i in range(len(model.plan))]
    columns = (
        _part_macs(model, image_size),
        _part_macs(dense, image_size),
        _part_parameters(model, image_size),
    )
    rows = zip(
        ["stem", *blocks, "head", "total"],
        [None, *model.plan, None, None],
        *([*parts, sum(parts)] for parts in columns),
        strict=True,
    )
    heading = ("", "attention", "MLP", "MMACs", "dense", "parameters", "image tokens")
    return summary.format_table([heading, *(row(*cells) for cells in rows)])


def cost_line(model, others, image_size):
    """GMACs of `model`, and how many times as many the `others` without reduction."""
    ours, *theirs = (summary.model_macs(m, image_size) / 1e9 for m in (model, *others))
    parts = [
        f"{macs:#.4g} with a {other.stem} stem, {macs / ours:.2f} times as many"
        for other, macs in zip(others, theirs, strict=True)
    ]
    return f"{ours:#.4g} GMACs an image" + "".join(f"; dense {part}" for part in parts)


def _part_macs(model, image_size):
    """MACs of the stem, of each block and of the head."""
    width = model.embed_dim
    stem = flops.stem_macs(model.stem, width, image_size, model.patch_size)
    blocks = [flops.block_macs(layer, width, model.mlp_ratio) for layer in model.plan]
    return [stem, *blocks, width * model.num_classes]


def _part_parameters(model, image_size):
    """Parameters of the stem, of each block and of the head, without making any."""
    params = weights.shapes(model, image_size)["params"]

    def size(*names):
        leaves = jax.tree.leaves([params[name] for name in names])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    stem = size("patch_embed", "cls_token", "pos_embed")
    blocks = [size(f"blocks_{i}") for i in range(len(model.plan))]
    return [stem, *blocks, size("norm", "head")]


def final_table(workdir, model, dense, image_size, meta):
    """What came out: accuracy, tokens, cost, and where everything is."""
    last, best = meta["last"], meta["best"]
    ours = summary.model_macs(model, image_size) / 1e9
    theirs = summary.model_macs(dense, image_size) / 1e9
    layers = [model.plan[0].attn_tokens, *(p.mlp_tokens for p in model.plan)]
    rows = [
        ("accuracy", _accuracy(last)),
        ("best", f"{best['acc1']:.2f} % at step {best['step']}"),
        ("tokens", " ".join(map(str, layers)) + "  (into block 0, then after each)"),
        ("cost", f"{ours:.4f} GMACs; dense {theirs:.4f}, {theirs / ours:.2f} times"),
        ("checkpoints", workdir / "checkpoints"),
        ("metrics", workdir / "metrics.jsonl"),
    ]
    if (workdir / PICTURE).exists():
        rows.append(("picture", workdir / PICTURE))
    return "\n".join(f"{name:12s} {value}" for name, value in rows)


def _accuracy(last):
    text = f"top-1 {last['acc1']:.2f} %, top-5 {last['acc5']:.2f} %"
    text += f" of {last['images']} images"
    if last.get("ema_acc1") is not None:
        text += f"; averaged weights {last['ema_acc1']:.2f} %"
    return text


PICTURE = "tokens.png"


def save_token_picture(workdir, model, variables, images, titles):
    """A PNG of what the tokens of some test images became; returns its path.

    images: uint8 [B, S, S, 3]. Nothing is written for a model without reduction.
    """
    reducing = [i for i, layer in enumerate(model.plan) if layer.counts]
    if not reducing:
        return None

    @jax.jit
    def decide(variables, images):
        results = model.apply(variables, mix.normalise(images)).results
        return [result.dest for result in results]

    side = images.shape[1] // model.patch_size
    patches = np.arange(side * side, dtype=np.int32)
    source = np.broadcast_to(patches, (len(images), side * side))
    stages = []
    for block, dest in zip(reducing, decide(variables, images), strict=True):
        source = np.asarray(compose(dest, source))
        stages.append((f"block {block}", source))
    path = pathlib.Path(workdir) / PICTURE
    pictures.token_page(
        path,
        images,
        [[(title, maps[i]) for title, maps in stages] for i in range(len(images))],
        (side, side),
        titles,
    )
    return path
