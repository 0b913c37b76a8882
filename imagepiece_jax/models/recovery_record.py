"""The record of a recovery, which goes with the weights that it changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.common.warning import warn
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import settings


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What `recover` did to a model's weights, measured on images it held out.

    Of a run of train.py that does the same all is None that its config does not say.
    """

    # that the weights were recovered for, with counts of tokens in place of a cost
    reduction: Mapping[str, Any]
    parameters: str  # that were trained, as `recover` takes it
    images: int  # that were learned from
    held_out: int  # that were measured on
    steps: int
    batch_size: int
    seed: int
    seconds: float  # that it took
    # "KL" of class probabilities from those of the dense model; "change" of features,
    # a squared distance as a share of the dense model's square
    measure: str
    before: float
    after: float
    interval: tuple[float, float]  # 95 %, of after - before
    agreement: tuple[float, float]  # before and after, %: the dense model's first class
    curve: tuple[tuple[int, float], ...]  # (steps, measure), the start included
    stopped: bool  # by Ctrl-C, before the last step
    changed: bool  # False: nothing was better than the start beyond chance
    # The fields below are None in a record of an earlier version.
    # chance that the best of all measures is as much better by luck
    p: float | None = None
    image_size: int | tuple[int, int] | None = None
    depth: int | None = None  # number of blocks
    weights: str | None = None  # that were recovered, by their `Source.name`

    def __post_init__(self):
        # JSON, which has no tuples, gives lists back.
        if self.curve is not None:
            object.__setattr__(self, "curve", tuple(map(tuple, self.curve)))
        size = settings.as_tuple(self.image_size)
        object.__setattr__(self, "image_size", size)

    @property
    def form(self) -> str:
        """What the weights were recovered for: "tome r=8, 12 blocks, .. pixels"."""
        words = [settings.in_words(self.reduction)]
        if self.depth:
            words.append(f"{self.depth} blocks")
        if self.image_size:
            words.append(f"{size_text(self.image_size)} pixels")
        return ", ".join(words)

    def fits(self, model, image_size) -> bool:
        """Whether it was made for a model of this reduction, size and depth."""
        ours = model.reduction or settings.DENSE
        theirs = self.reduction
        if settings.with_defaults(ours) != settings.with_defaults(theirs):
            return False
        size = self.image_size or image_size
        depth = self.depth or model.depth
        return (sides(size), depth) == (sides(image_size), model.depth)

    def __str__(self):
        if self.measure is None:
            return f"{self.parameters} in a run of {self.batch_size} images a step"
        low, high = self.interval
        change = f"{self.after - self.before:+.4f} [{low:+.4f}, {high:+.4f}]"
        if self.p is not None:
            change += f", p {self.p:.2g}"
        figures = f"{self.measure} {self.before:.4f} -> {self.after:.4f} ({change})"
        if self.measure == "KL":
            before, after = self.agreement
            figures += (
                f", first class as the dense model's {before:.1f} -> {after:.1f} %"
            )
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        source = f"{self.images} others, {steps} of {self.batch_size} images"
        text = f"{figures}; on {self.held_out} images held out, learned from {source}"
        if self.changed:
            return text
        start = "the start beyond chance"
        return f"the weights are unchanged, as nothing was better than {start}: {text}"

    def check_teacher(self, field: str):
        """Raise InputError, about `field`, where the dense form of the weights teaches.

        It is not the dense model from which they were recovered.
        """
        if self.changed:
            raise InputError(
                f"was recovered before, for {self.form}",
                field=field,
                allowed="the weights that it was made from, whose dense form teaches",
            )


def in_force(recovery: Recovery | None) -> Recovery | None:
    """The recovery of weights that it has changed; None of all others."""
    return recovery if recovery is not None and recovery.changed else None


def warn_of_recovery(recovery: Recovery | None, model, image_size):
    """Warn of weights that were recovered for another model than this ViT.

    The text does not say for which it is used, so that many uses warn once.
    """
    recovery = in_force(recovery)
    if recovery is None or recovery.fits(model, image_size):
        return
    warn(
        f"the weights were recovered for {recovery.form} alone: in any other form, "
        "dense or with another reduction, size or depth, the weights that they were "
        "made from fit better"
    )
