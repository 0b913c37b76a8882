"""What should a person know before and after a run? Plan, cost, results, pictures."""

import itertools
import pathlib

import jax
import numpy as np

from imagepiece_jax import pictures
from imagepiece_jax.data import mix
from imagepiece_jax.models import summary
from imagepiece_jax.reduction.tokens import Assignment, compose


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

    images: uint8 [B, S, S, 3]. Blocks after a soft reduction, whose tokens hold a share
    of every patch, are left out; nothing is written where no block is left.
    """

    @jax.jit
    def decide(variables, images):
        results = model.apply(variables, mix.normalise(images)).results
        hard = itertools.takewhile(lambda r: isinstance(r, Assignment), results)
        return [result.dest for result in hard]

    reducing = [i for i, layer in enumerate(model.plan) if layer.counts]
    dests = decide(variables, images) if reducing else []
    if not dests:
        return None

    side = images.shape[1] // model.patch_size
    patches = np.arange(side * side, dtype=np.int32)
    source = np.broadcast_to(patches, (len(images), side * side))
    stages = []
    for block, dest in zip(reducing, dests, strict=False):
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
