"""Made-up recoveries, with invented figures and values."""

import dataclasses

import numpy as np
from flax import traverse_util

from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from tests.helpers import tiny_vit

TOME = "tome:r=3"
FIGURES = {
    "parameters": "biases",
    "images": 32,
    "held_out": 16,
    "steps": 8,
    "batch_size": 16,
    "seed": 0,
    "seconds": 1.0,
    "measure": "KL",
    "before": 0.25,
    "after": 0.125,
    "interval": (-0.15, -0.1),
    "agreement": (80.0, 90.0),
    "curve": ((0, 0.25), (8, 0.125)),
    "stopped": False,
    "weights": "public.pth",
}


def variant_of(vit, changed=True, **fields):
    fields = {
        "reduction": vit.reduction,
        "image_size": vit.image_size,
        "depth": vit.model.depth,
        "share": vit.gmacs / vit.with_reduction("none").gmacs,
        "changed": changed,
    } | fields
    return RecoveredVariant(**FIGURES | fields)


def values(vit, seed=0):
    """Norms and biases of a dense model, moved by random values."""
    draw = np.random.default_rng(seed)
    found = {}
    leaves = traverse_util.flatten_dict(vit.variables["params"], sep="/")
    for path, leaf in leaves.items():
        if "norm" in path or path.endswith("bias"):
            noise = draw.normal(size=leaf.shape)
            found[path] = (np.asarray(leaf) + noise).astype(np.float32)
    return found


def recovered(vit=None, changed=True, reductions=(TOME,)):
    """A Pretrained with made-up recoveries of these reductions."""
    vit = vit or tiny_vit.pretrained(TOME)
    dense = vit.with_reduction(None)
    made = []
    for seed, reduction in enumerate(reductions):
        learned = values(dense, seed) if changed else {}
        form = dense.with_reduction(reduction)
        made.append(variant_of(form, changed, values=learned))
    return dataclasses.replace(vit, recovery=Recovery(tuple(made)))
