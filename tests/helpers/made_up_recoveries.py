"""Recoveries with invented metrics and values."""

import dataclasses

import numpy as np
from flax import traverse_util

from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from tests.helpers import tiny_vit

TOME = "tome:r=3"
VARIANT_FIELDS = {"parameters": "biases", "images": 32, "held_out": 16, "steps": 8}
VARIANT_FIELDS |= {"batch_size": 16, "seed": 0, "seconds": 1.0, "measure": "KL"}
VARIANT_FIELDS |= {"before": 0.25, "after": 0.125, "off_the_shelf": 0.25}
VARIANT_FIELDS |= {"interval": (-0.15, -0.1), "agreement": (80.0, 90.0), "lr": 0.002}
VARIANT_FIELDS |= {"curve": ((0, 0.25), (8, 0.125)), "stopped": False}
VARIANT_FIELDS |= {"weights": "public.pth", "learned": ""}


def make_variant(vit, changed=True, **fields):
    of_model = {"reduction": vit.reduction, "image_size": vit.image_size}
    of_model |= {"depth": vit.model.depth, "changed": changed}
    of_model["share"] = vit.gmacs / vit.with_reduction("none").gmacs
    return RecoveredVariant(**VARIANT_FIELDS | of_model | fields)


def moved_values(vit, seed=0):
    """Norms and biases of a dense model, moved by random values."""
    rng = np.random.default_rng(seed)
    moved = {}
    leaves = traverse_util.flatten_dict(vit.variables["params"], sep="/")
    for path, leaf in leaves.items():
        if "norm" in path or path.endswith("bias"):
            noise = rng.normal(size=leaf.shape)
            moved[path] = (np.asarray(leaf) + noise).astype(np.float32)
    return moved


def recovered(vit=None, changed=True, reductions=(TOME,)):
    """A Pretrained with invented recoveries of these reductions."""
    vit = vit or tiny_vit.pretrained(TOME)
    dense = vit.with_reduction(None)
    variants = []
    for seed, reduction in enumerate(reductions):
        learned = moved_values(dense, seed) if changed else {}
        reduced = dense.with_reduction(reduction)
        variants.append(make_variant(reduced, changed, values=learned))
    return dataclasses.replace(vit, recovery=Recovery(tuple(variants)))
