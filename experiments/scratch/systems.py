"""The systems that are compared: their models, matched in cost, and their recipe."""

import dataclasses
import functools
import types

from ml_collections import ConfigDict

from experiments.context import package_config
from experiments.finetune import trained_reduction
from experiments.scratch.options import Options
from imagepiece_jax.config.run import REFERENCE_BATCH, RunConfig
from imagepiece_jax.reduction import settings

HEAD_DIM = 64  # of attention, as in DeiT

# The same for all systems: DeiT's recipe toned down for ten thousand images.
RECIPE = types.MappingProxyType(
    {
        "crop_area": (0.35, 1.0),
        "label_smoothing": 0.1,
        "weight_decay": 0.05,
        "warmup_share": 0.1,  # of the run
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "clip_norm": 1.0,
        # For DynamicViT's backbone, which starts trained; its authors' 0.01 and five
        # frozen epochs are for longer runs.
        "backbone_lr": 0.1,
    }
)


@dataclasses.dataclass(frozen=True)
class System:
    """One of the compared."""

    name: str
    title: str
    stem: str
    reduction: dict
    start: str | None = None  # whose weights of the same seed its runs start from


DENSE = "dense_conv"  # the first: others start from it, all are compared with it
RANDOM = "random"


def systems(options: Options, num_classes: int, dtype: str) -> list[System]:
    """The chosen systems in the order of their runs, each at ImagePiece's cost.

    "dropping" is ImagePiece's control: its merge steps drop as many tokens. With the
    patch stem as with the convolutional one steps leave the same counts.
    """
    reference = {"name": "imagepiece", "keep_rate": options.keep_rate}
    compared = [
        System(f"{name}_{stem}", f"{title}, {stem} stem", stem, reduction)
        for name, title, reduction in (
            ("dense", "dense", settings.DENSE),
            ("imagepiece", "ImagePiece", reference),
            ("dropping", "dropping", reference | {"inattentive": "drop"}),
        )
        for stem in ("conv", "patch")
    ]
    first, *_ = compared
    blocks = tuple(options.depth * k // 4 for k in (1, 2, 3))  # 3, 6, 9 of twelve
    at = {"blocks": blocks}
    dense = RunConfig.from_config(config(first, options, num_classes, dtype)).model
    macs = dense.gmacs(reference) / dense.gmacs()

    def matched(name, title, reduction, start=None):
        reduction = settings.changed(dense.resolved({**reduction, "macs": macs}))
        return System(name, title, "conv", reduction, start)

    share = {"counts": "proportional"}  # the same share in every block
    compared += [
        matched(*system)
        for system in (
            ("evit", "EViT", {"name": "evit"} | at),
            ("tome", "ToMe", {"name": "tome"}),
            ("dynamicvit", "DynamicViT", {"name": "dynamicvit"} | at, DENSE),
            (RANDOM, "random tokens", {"name": RANDOM} | at),
            ("evit_proportional", "EViT, every block", {"name": "evit"} | share),
            ("tome_proportional", "ToMe, the same share", {"name": "tome"} | share),
        )
        if system[0] in options.chosen
    ]
    return [system for system in compared if system.name in options.chosen]


def config(
    system: System, options: Options, num_classes: int, dtype: str
) -> ConfigDict:
    """The config of a run of `system`, but for its data, seed, steps and start."""
    new = _base(options, num_classes, dtype).copy_and_resolve_references()
    new.model.stem = system.stem
    learning = {"backbone_lr": RECIPE["backbone_lr"], "frozen_epochs": 0.0}
    with new.unlocked():
        new.reduction = trained_reduction(system.reduction, learning)
    return new


@functools.cache
def _base(options, num_classes, dtype):
    """The common part of the configs of all systems."""
    base = package_config("base.py")
    base.update_from_flattened_dict(
        {
            "image_size": options.image_size,
            "num_classes": num_classes,
            "model.name": "vit_mini",
            "model.patch_size": options.patch,
            "model.embed_dim": options.width,
            "model.depth": options.depth,
            "model.num_heads": options.heads or max(1, options.width // HEAD_DIM),
            "model.drop_path_rate": 0.0,
            "model.dtype": dtype,
            "model.attention": "xla",  # the same for every reduction
            "model.kernels": "plain",
            "data.area": RECIPE["crop_area"],
            "data.eval_crop": 1.0,
            "data.eval_crop_mode": "squash",
            "data.repeats": 1,
            "augment.layers": 0,
            "augment.erase_prob": 0.0,
            "epochs": options.epochs,
            "warmup_epochs": RECIPE["warmup_share"] * options.epochs,
            # Once, at the end: no checkpoint is chosen on the test images.
            "eval_every_epochs": options.epochs,
            "batch_size": options.train_batch_size,
            "lr": options.peak_lr * REFERENCE_BATCH / options.train_batch_size,
            "min_lr": RECIPE["min_lr"],
            "warmup_lr": RECIPE["warmup_lr"],
            "weight_decay": RECIPE["weight_decay"],
            "clip_grad_norm": RECIPE["clip_norm"],
            "label_smoothing": RECIPE["label_smoothing"],
            "mixup": 0.0,
            "cutmix": 0.0,
            "ema_decay": 0.0,
            "max_skipped_steps": 0,
            "progress": False,  # a line an epoch
            "pictures": 0,
        }
    )
    return base
