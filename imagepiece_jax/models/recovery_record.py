"""The record of a recovery, which goes with the weights that it changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What `recover` did to a model's weights, measured on images it held out."""

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
    changed: bool  # False: nothing was better than the start beyond its interval

    def __post_init__(self):
        # JSON, which has no tuples, gives lists back.
        object.__setattr__(self, "curve", tuple(map(tuple, self.curve)))

    def __str__(self):
        low, high = self.interval
        change = f"{self.after - self.before:+.4f} [{low:+.4f}, {high:+.4f}]"
        figures = f"{self.measure} {self.before:.4f} -> {self.after:.4f} ({change})"
        if self.measure == "KL":
            before, after = self.agreement
            figures += (
                f", first class as the dense model's {before:.1f} -> {after:.1f} %"
            )
        source = f"{self.images} others, {self.steps} steps of {self.batch_size} images"
        text = f"{figures}; on {self.held_out} images held out, learned from {source}"
        if self.changed:
            return text
        start = "the start beyond the interval"
        return f"the weights are unchanged, as nothing was better than {start}: {text}"
