"""What `recover` learned: numbers for reduced forms of a dense model, and figures.

A `Recovery` goes with a Pretrained. The dense model keeps its numbers; a reduced form
has others in place of some, mostly norms and biases, that were learned at its cost.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common.checks import as_tuple
from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.common.tables import amount
from imagepiece_jax.reduction.reduction import DENSE, Reduction

NOTHING_LOWER = "nothing was better: try a smaller reduction, or more images or steps"
Numbers = Mapping[str, np.ndarray]  # parameters by their paths: blocks_0/norm1/scale


@dataclasses.dataclass(frozen=True)
class RecoveredVariant:
    """What came back at one cost, measured on images that were held out."""

    reduction: Reduction  # with counts of tokens in place of a cost
    parameters: str  # that were trained, as `recover` takes it
    images: int  # that were learned from
    held_out: int  # that were not, and are measured
    steps: int
    batch_size: int
    seed: int
    seconds: float  # that it took
    # "KL" of class probabilities from those of the dense model; "squared error" of a
    # regression; "change" of features, a squared distance as a share of the dense
    # model's square
    measure: str
    before: float
    after: float
    interval: tuple[float, float]  # 95 %, of after - before
    agreement: tuple[float, float]  # before and after, %: the dense model's first class
    curve: tuple[tuple[int, float], ...]  # (steps, measure) of the held-out images
    stopped: bool  # by Ctrl-C, before the last step
    changed: bool  # False: the last weights were no better than the start
    image_size: int | tuple[int, int]
    depth: int  # number of blocks
    rate: float | None = None  # the highest one, as a share of a parameter's size
    weights: str | None = None  # of the dense model, by their `Source.name`
    share: float | None = None  # of the dense model's MACs
    # the measure with the dense model's numbers; before, unless it was recovered then
    off_the_shelf: float | None = None
    scenes: int | None = None  # held out; 0: images like them were learned from
    # of the form at this cost, in place of the dense model's; {}: nothing was better
    numbers: Numbers = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self):
        # JSON, which has no tuples, gives lists back.
        object.__setattr__(self, "curve", tuple(map(tuple, self.curve)))
        object.__setattr__(self, "reduction", Reduction.read(self.reduction))
        for field in ("interval", "agreement", "image_size"):
            object.__setattr__(self, field, as_tuple(getattr(self, field)))

    @property
    def record(self) -> dict[str, Any]:
        """The fields as JSON has them, without numbers."""
        fields = {**vars(self), "reduction": str(self.reduction)}
        del fields["numbers"]
        return fields

    @property
    def form(self) -> str:
        """The form that it was learned for: "tome:r=8, 12 blocks, .. pixels"."""
        size = size_text(self.image_size)
        return f"{self.reduction}, {self.depth} blocks, {size} pixels"

    def fits(self, model) -> bool:
        """Whether it was learned for a model of this reduction, size and depth."""
        same = (model.reduction or DENSE) == self.reduction
        same = same and sides(model.config.image_size) == sides(self.image_size)
        return same and model.depth == self.depth

    def __str__(self):
        figures = f"{self.measure} {self.before:.4f}"
        if self.off_the_shelf not in (None, self.before):
            shelf = f"{self.off_the_shelf:.4f} off the shelf"
            figures = f"{self.measure} {shelf}, {self.before:.4f}"
        if self.changed:
            low, high = self.interval
            change = f"{self.after - self.before:+.4f} [{low:+.4f}, {high:+.4f}]"
            if low <= 0 <= high:
                change += ", within noise"
            figures += f" -> {self.after:.4f} ({change})"
            if self.measure == "KL":
                shares = "{:.1f} -> {:.1f} %".format(*self.agreement)
                figures += f", first class as the dense model's {shares}"
        else:
            figures += f" stays; {NOTHING_LOWER}"
        held_out = f"{self.held_out} images held out"
        if self.scenes == 0:
            held_out += " that are like those learned from, so it may be too good"
        elif self.scenes and self.scenes < self.held_out:
            held_out = f"{self.held_out} images of {self.scenes} scenes held out"
        steps = amount(self.steps, "step")
        return (
            f"{self.form}: {figures}; on {held_out}, "
            f"learned from {self.images} others, {steps} of {self.batch_size} images"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Recovery:
    """Numbers of reduced forms."""

    variants: tuple[RecoveredVariant, ...]  # that were learned

    def __str__(self):
        return "\n".join(map(str, self.variants))

    def of(self, model) -> RecoveredVariant | None:
        """The cost that was learned for a model of this reduction, size and depth."""
        for cost in self.variants:
            if cost.fits(model):
                return cost
        return None

    def merged(self, other: "Recovery | None") -> "Recovery":
        """With the costs of an earlier one that were not learned again.

        One stays, too, where nothing was better than the dense model this time.
        """
        if other is None:
            return self
        earlier = {cost.form: cost for cost in other.variants}
        costs = []
        for cost in self.variants:
            before = earlier.pop(cost.form, None)
            if before and before.numbers and not cost.numbers:
                cost = before
            costs.append(cost)
        costs += earlier.values()
        return Recovery(tuple(costs))


def flat_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters by their paths, without those that are None."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if leaf is not None}


def with_numbers(params: Mapping[str, Any], numbers: Numbers) -> Mapping[str, Any]:
    """Parameters with numbers in place of theirs, where they have such ones."""
    if not numbers:
        return params
    leaves = traverse_util.flatten_dict(params, sep="/")
    present = {path: value for path, value in numbers.items() if path in leaves}
    return traverse_util.unflatten_dict(leaves | present, sep="/")
