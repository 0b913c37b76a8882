"""Checks of a config's fields, each by itself: ranges and choices.

Commands make them before JAX is imported, which takes seconds on a cluster.
"""

import math
import numbers

from imagepiece_jax.errors import InputError

# config.best_by -> the figure of an evaluation that chooses the best checkpoint
BEST_BY = {"weights": "acc1", "averages": "ema_acc1"}
KINDS = ("none", "soft", "hard")  # of distillation
# field -> (lowest, highest) allowed value
RANGES = {
    "seed": (0, 2**32 - 1),  # more bits than a JAX key would take are cut off
    "image_size": (1, None),
    "num_classes": (0, None),
    "epochs": (1, None),
    "batch_size": (1, None),
    "eval_batch_size": (1, None),
    "grad_accum_steps": (1, None),
    "eval_every_epochs": (1, None),
    "checkpoint_every_steps": (1, None),
    "keep_every_steps": (0, None),
    "log_every_steps": (1, None),
    "pictures": (0, None),
    "data.workers": (0, None),
    "data.threads": (0, None),
    "data.repeats": (1, None),
    "data.canvas": (0, None),
    "data.shift": (0, None),
    "augment.layers": (0, None),
    "augment.prob": (0, 1),
    "augment.magnitude": (0, 10),
    "augment.magnitude_std": (0, None),
    "augment.erase_prob": (0, 1),
    "lr": (0, None),
    "min_lr": (0, None),
    "warmup_lr": (0, None),
    "warmup_epochs": (0, None),
    "weight_decay": (0, None),
    "eps": (0, None),
    "clip_grad_norm": (0, None),
    "max_skipped_steps": (0, None),
    "label_smoothing": (0, 1),
    "mixup": (0, None),
    "cutmix": (0, None),
    "mixup_prob": (0, 1),
    "mixup_switch_prob": (0, 1),
    "ema_decay": (0, 1),
    "distill.temperature": (0.01, None),
    "distill.weight": (0, 1),
}


def check(config):
    """InputError for the first field that is missing, out of range or no choice.

    Those of the reduction are checked by its method.
    """
    for field, (low, high) in RANGES.items():
        value = _value(config, field)
        if not _within(value, low, high):
            allowed = f"{low} or more" if high is None else f"{low} to {high}"
            raise InputError(f"config.{field} is {value!r}; allowed are {allowed}")
    betas, area = _value(config, "betas"), _value(config, "data.area")
    if not _pair(betas) or max(betas) == 1:
        raise InputError(
            f"config.betas is {betas}; allowed are two numbers from 0 to below 1"
        )
    if not _pair(area) or not 0 < area[0] <= area[1]:
        raise InputError(
            f"config.data.area is {area}; allowed are two shares of the image above 0 "
            "and up to 1, the lower one first"
        )
    canvas = _value(config, "data.canvas")
    if 0 < canvas < config.image_size:
        raise InputError(
            f"config.data.canvas is {canvas}; allowed are 0 and config.image_size "
            f"({config.image_size}) or more"
        )
    _check_augmentation(config, canvas)
    best_by = _value(config, "best_by")
    if best_by not in BEST_BY:
        raise InputError(
            f"config.best_by is {best_by!r}; allowed are {', '.join(BEST_BY)}"
        )
    if best_by == "averages" and not config.ema_decay:
        raise InputError(
            "config.best_by is 'averages', but config.ema_decay is 0, so that there "
            "are none; allowed are 'weights', or a decay above 0, such as 0.99996"
        )
    kind = _value(config, "distill.kind")
    if kind not in KINDS:
        raise InputError(
            f"config.distill.kind is {kind!r}; allowed are {', '.join(KINDS)}"
        )


def _check_augmentation(config, canvas):
    """InputError where host and device cannot share the augmentation this way."""
    crop = _value(config, "data.crop")
    if canvas and crop != "random_resized":
        raise InputError(
            f"config.data.crop is {crop!r}; with config.data.canvas={canvas} the "
            "device crops, and allowed is random_resized"
        )


def _pair(values):
    return len(values) == 2 and all(_within(value, 0, 1) for value in values)


def _value(config, field):
    value = config
    for name in field.split("."):
        value = value.get(name)
        if value is None:
            raise InputError(
                f"config.{field} is missing; a config starts from configs/base.py"
            )
    return value


def _within(value, low, high):
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        return False
    return value >= low and (high is None or value <= high)
