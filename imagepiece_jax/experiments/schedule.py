"""Which schedule the paper's own speeds support: arithmetic on published figures.

ImagePiece's authors give no code. Their table 5 names layers 2, 3, 5, 6, 8 and 9, each
of which follows a merge: counted from one that is schedule B, as indices from zero A.
The time of a model is taken to be its blocks' MACs at the dense model's rate, and an
overhead; the rows of the other methods say how large that overhead should be: what
EViT and ToMe take beyond their MACs, divided by the number of their steps.

The published speeds are in `published.ACCURACY_SPEED`: img/s on one RTX 3090.
"""

import functools
import itertools
import math
from typing import NamedTuple

from imagepiece_jax.experiments import published, render
from imagepiece_jax.models import registry, summary
from imagepiece_jax.reduction import settings

SPEEDS = {name: row[1] for name, row in published.ACCURACY_SPEED["deit_s"].items()}
RATES = {0.8: "ImagePiece", 0.6: "ImagePiece, keep .6"}
# Of each row the settings that its paper or this package takes it to have, stem first.
ROWS = {
    "DeiT": [("patch", settings.DENSE)],
    "DynamicViT": [("patch", {"name": "dynamicvit", "keep_rate": 0.7})],
    "SPViT": [
        ("patch", {"name": "spvit"}),
        ("patch", {"name": "spvit", "keep_rates": (0.7, 0.49, 0.343)}),
    ],
    "EViT": [("patch", {"name": "evit", "keep_rate": 0.7})],
    "ToMe": [("patch", {"name": "tome", "r": 13})],
    "ImagePiece": [
        ("conv", {"name": "imagepiece", "schedule": schedule}) for schedule in "BA"
    ],
    "ImagePiece, keep .6": [
        ("conv", {"name": "imagepiece", "schedule": schedule, "keep_rate": 0.6})
        for schedule in "BA"
    ],
}
MERGES, PRUNES = 6, 3  # of ImagePiece; EViT prunes 3 times, ToMe merges 12 times
TOKENS = 26  # of the paper's table 3, keep .6, class token included


class Overhead(NamedTuple):
    """Milliseconds an image beyond the blocks' MACs, by published speeds."""

    rate: float  # ms a GMAC of the dense model
    prune: float  # a step of EViT's
    merge: float  # a step of ToMe's
    stem: float  # the MACs that the convolutional stem has more

    @property
    def predicted(self) -> float:
        """What ImagePiece should take beyond its blocks' MACs."""
        return self.stem + PRUNES * self.prune + MERGES * self.merge

    @property
    def tome_instead(self) -> float:
        """What ImagePiece + ToMe should take more: merges in place of its prunes."""
        return PRUNES * (self.merge - self.prune)


def milliseconds(name: str) -> float:
    """Published time of one image of DeiT-S with this row's reduction."""
    return 1000 / SPEEDS[name]


@functools.lru_cache
def _gmacs(stem, fields):
    model = registry.create_model("deit_s", stem=stem, reduction=dict(fields))
    return summary.model_macs(model, 224) / 1e9


def gmacs(stem: str, reduction: dict) -> float:
    """GMACs of DeiT-S at 224 pixels."""
    return _gmacs(stem, tuple(reduction.items()))


def overhead() -> Overhead:
    """What the paper's rows of DeiT, EViT and ToMe say a step and the stem take."""
    dense = gmacs("patch", settings.DENSE)
    rate = milliseconds("DeiT") / dense

    def beyond(name, steps):
        ((stem, reduction),) = ROWS[name]
        return (milliseconds(name) - rate * gmacs(stem, reduction)) / steps

    stem = rate * (gmacs("conv", settings.DENSE) - dense)
    return Overhead(rate, beyond("EViT", 3), beyond("ToMe", 12), stem)


def implied(schedule: str, keep_rate: float) -> float:
    """Milliseconds beyond the blocks' MACs if ImagePiece had this schedule."""
    reduction = {"name": "imagepiece", "schedule": schedule, "keep_rate": keep_rate}
    blocks = overhead().rate * gmacs("patch", reduction)
    return milliseconds(RATES[keep_rate]) - blocks


def efficiency(name: str, stem: str, reduction: dict) -> float:
    """Published speed in MACs a second, as a share of the dense model's."""
    return overhead().rate * gmacs(stem, reduction) / milliseconds(name)


ROUNDINGS = {
    "floor": lambda x: math.floor(x + 1e-9),
    "round": lambda x: math.floor(x + 0.5),
    "ceil": lambda x: math.ceil(x - 1e-9),
}
BASES = {
    "image tokens": lambda n, candidates: n,
    "all tokens": lambda n, candidates: n + 1,
    "candidates": lambda n, candidates: candidates,
}


def tokens_left(merge: str, base: str, prune: str, keep_rate: float = 0.6) -> int:
    """Tokens after ImagePiece's nine steps, class token included, by this rounding."""
    n = 196
    for step in "mmp" * 3:
        if step == "m":
            candidates = ROUNDINGS["floor"](0.3 * n)
            merged = ROUNDINGS[merge](0.08 * BASES[base](n, candidates))
            n -= min(merged, candidates // 2)
        else:
            n = ROUNDINGS[prune](keep_rate * n)
    return n + 1


def roundings() -> dict[tuple[str, str, str], int]:
    """Tokens left at keep .6 by each way to round merges, of a base, and prunes."""
    variants = itertools.product(ROUNDINGS, BASES, ROUNDINGS)
    return {variant: tokens_left(*variant) for variant in variants}


def schedule(context):
    """Write schedule.md; nothing is measured."""
    parts = [_schedules(), _efficiencies(), _roundings()]
    title = "what the published speeds and token counts say"
    render.page(context, "schedule", title, *parts)


def _schedules():
    """Table of the time beyond the blocks' MACs by either schedule, and predicted."""
    model = overhead()
    rows = [[f"{rate:g}", *(f"{implied(s, rate):.4f}" for s in "BA")] for rate in RATES]
    for row in rows:
        row.append(f"{model.predicted:.4f}")
    head = ["keep", "schedule B", "schedule A", "predicted by the other rows"]
    more = milliseconds("ImagePiece + ToMe") - milliseconds("ImagePiece")
    return (
        f"{render.table(head, rows)}\n\n"
        "Milliseconds an image beyond the MACs of the blocks (patch stem) at the dense "
        f"model's {model.rate:.4f} ms a GMAC. Predicted: the stem's MACs "
        f"{model.stem:.4f}, {PRUNES} prunes at EViT's {model.prune:.4f}, {MERGES} "
        f"merges at ToMe's {model.merge:.4f}. ImagePiece + ToMe takes {more:.4f} more, "
        f"predicted {model.tome_instead:.4f}."
    )


def _efficiencies():
    """Table of the MACs a second that published speeds imply, dense is 1."""
    rows = [
        [name, _fields(stem, reduction), f"{gmacs(stem, reduction):.3f}"]
        + [f"{SPEEDS[name]:.1f}", f"{efficiency(name, stem, reduction):.2f}"]
        for name, variants in ROWS.items()
        for stem, reduction in variants
    ]
    head = ["row", "taken to be", "GMACs", "img/s, published", "MACs/s, of dense"]
    return render.table(head, rows)


def _fields(stem, reduction):
    fields = [f"{k}={v}" for k, v in reduction.items() if k != "name"]
    return ", ".join([f"{stem} stem", *fields])


def _roundings():
    """Table of the roundings that leave the published number of tokens."""
    found = roundings()
    rows = [list(variant) for variant, left in found.items() if left == TOKENS]
    head = ["merges are rounded by", "of", "prunes, of image tokens, by"]
    return (
        f"{render.table(head, rows)}\n\n"
        f"{len(rows)} of {len(found)} ways to round leave the published {TOKENS} "
        "tokens at keep .6."
    )
