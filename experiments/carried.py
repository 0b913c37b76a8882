"""Whether the sets that `parts` chose hold on other images, sizes and damage.

What chose them is docs/tables/parts: nothing here chooses. `level` judges them beside
the dense model on any images; `carried` damages the images, and crosses the sets with
smaller and larger ones.
"""

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from experiments import parts as crossed
from experiments import render, saliency
from experiments.context import Answers
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.compare import smaller_images
from imagepiece_jax.inference.features import FILLS
from imagepiece_jax.reduction import settings

# The sets of least mean KL on even rows at .5: the chosen one; the best of the declared
# cells that reads no attention map; fusion by class attention in the place of the map.
CHOSEN = {
    "fusion": {"name": "mctf", "counts": "diffrate"},
    "most attended": {"name": "diffrate", "counts": "diffrate"},
    "fusion by class attention": {
        "name": "mctf",
        "score": "class",
        "counts": "diffrate",
    },
}
CHOSEN = {name: {**parts, "prop_attn": True} for name, parts in CHOSEN.items()}
TOME = {"ToMe": {"name": "tome"}}
EVENLY = {
    "fusion by class attention, proportional-1": {
        **CHOSEN["fusion by class attention"],
        "counts": "proportional-1",
    }
}
STAGES = {
    "most attended, stages-3-6-9": {**CHOSEN["most attended"], "counts": "stages-3-6-9"}
}
# Without the attention map; the last reduces in three blocks.
SPARED = {name: CHOSEN[name] for name in [*CHOSEN][1:]} | TOME | STAGES
COSTS = (0.75, 0.6, 0.5)
# (set, its cost) twice: the first against the second, which takes longer on a GPU
FASTER = (("most attended, stages-3-6-9", 0.6), ("most attended", 0.5))
LEVEL, CLAIMED = -1.5, (0.75, 0.6)  # points; costs at which "level" is tested
SMALLER = (32, 48, 64)  # pixels a side that a smaller dense image lacks
CROSSED, CROSSED_COSTS = (0, 16, 32, 48), (0.5, 0.4)
LARGE = 384


# Damage: uint8 [H, W, 3], drawn by the image's index -> uint8 [H, W, 3]


def shrink(pixels, index, side: int):
    """Made `side` pixels small and enlarged again, bicubic."""
    image = Image.fromarray(pixels)
    small = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))


def add_noise(pixels, index, std: float):
    """Gaussian noise of `std`, in units of the full range, in every channel."""
    noise = np.random.default_rng([0, int(index)]).normal(0, 255 * std, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def blur(pixels, index, radius: float):
    """A Gaussian of standard deviation `radius`, in pixels."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def compress(pixels, index, quality: int):
    """As JPEG of this quality, read back."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


DAMAGE = {
    "as they are": None,
    "noise .1": functools.partial(add_noise, std=0.1),
    "noise .2": functools.partial(add_noise, std=0.2),
    "blur 1": functools.partial(blur, radius=1),
    "blur 2": functools.partial(blur, radius=2),
    "JPEG 25": functools.partial(compress, quality=25),
    "JPEG 10": functools.partial(compress, quality=10),
}
SHRUNK = "128 pixels, enlarged"
ALL_DAMAGE = DAMAGE | {SHRUNK: functools.partial(shrink, side=128)}


def damaged(batch: Mapping[str, Any], damage: Callable) -> dict[str, Any]:
    """A batch whose images, uint8 [..., H, W, 3], are damaged one by one."""
    images = np.asarray(batch["image"])
    flat = images.reshape(-1, *images.shape[-3:])
    index = np.ravel(batch["index"])
    pairs = zip(flat, index, strict=True)
    changed = np.stack([damage(pixels, each) for pixels, each in pairs])
    return dict(batch) | {"image": changed.reshape(images.shape)}


# Evaluations


@dataclasses.dataclass(frozen=True)
class System:
    """One checkpoint at an image size, with a reduction."""

    name: str
    reduction: Mapping[str, Any]
    image_size: int | tuple[int, int]

    @property
    def is_dense(self) -> bool:
        return self.reduction["name"] == "none"


class Judge:
    """Evaluations of one checkpoint's systems on one set of images."""

    def __init__(self, context, images):
        self._context, self._images = context, images
        self._weights = context.pretrained
        self.size = self._weights.config.image_size
        self._full = self._weights.gmacs(settings.DENSE)
        self._sized: dict = {}

    def smaller(self, pixels: int) -> tuple[int, int]:
        """The image's size with so many pixels less a side."""
        return tuple(side - pixels for side in sides(self.size))

    def share(self, system: System) -> float:
        """Its cost as a share of the dense model's at its own image size."""
        return self._weights_of(system).gmacs(system.reduction) / self._full

    def system(self, name, parts, macs, image_size=None) -> System | None:
        """A set at a share of the full dense cost; None where it cannot be reached."""
        system = System(name, settings.DENSE, image_size or self.size)
        share = self.share(system)
        if share <= macs:
            return None
        system = dataclasses.replace(system, reduction={**parts, "macs": macs / share})
        try:
            self._weights_of(system).model(system.reduction)
        except InputError:
            return None
        return system

    def dense(self, image_size=None) -> System:
        return System("dense", settings.DENSE, image_size or self.size)

    def answers(self, system: System, damage: str = "as they are") -> Answers:
        """Which images `system` gets right, after this damage."""
        alteration, alter, prepare = {}, None, None
        if ALL_DAMAGE[damage] is not None:
            alteration["damage"] = damage
            prepare = functools.partial(damaged, damage=ALL_DAMAGE[damage])
        if sides(system.image_size) != sides(self.size):
            alteration["resized"] = list(sides(system.image_size))
            alter = self._resizing(system)
        checkpoint = self._checkpoint(system)
        return Answers(
            checkpoint.evaluate(system.reduction, alteration, alter, prepare)
        )

    def _resizing(self, system):
        return self._of_size(system)[2]

    def _checkpoint(self, system):
        return self._of_size(system)[1]

    def _weights_of(self, system):
        return self._of_size(system)[0]

    def _of_size(self, system):
        size = sides(system.image_size)
        if size not in self._sized:
            weights = self._weights
            if size != sides(self.size):
                weights = weights.with_sizes(image_size=size)
            checkpoint = dataclasses.replace(
                self._context.checkpoint(weights, self._images), programs={}
            )
            alter = functools.partial(smaller_images, size=size)
            self._sized[size] = weights, checkpoint, alter
        return self._sized[size]


# Pages


def level(context):
    """The sets beside the dense model on other images than chose, as level.md."""
    judge = Judge(context, context.images)
    render.page(
        context,
        "level",
        "the chosen sets beside the dense model",
        render.note(context),
        level_table(judge, "as they are", CHOSEN | TOME | STAGES, SMALLER),
        faster_table(judge),
    )


def level_table(judge: Judge, damage: str, sets: Mapping, smaller=()) -> str:
    """acc1 of each set, its paired difference, and whether it is level with dense.

    smaller: pixels that a dense model's images lack, in rows of their own
    """
    dense = judge.answers(judge.dense(), damage)
    lines = [["dense", "1.000", statistics.format_estimate(dense.accuracy), "", ""]]
    systems = [(None, judge.dense(judge.smaller(pixels))) for pixels in smaller]
    systems += [
        (macs, judge.system(name, sets[name], macs))
        for name, macs in itertools.product(sets, COSTS)
    ]
    for macs, system in systems:
        if system is None:
            continue
        found = judge.answers(system, damage)
        change = statistics.paired_difference(found.right, dense.right)
        verdict = ("yes" if change.low > LEVEL else "open") * (macs in CLAIMED)
        lines.append(
            [
                _label(judge, system),
                f"{judge.share(system):.3f}",
                statistics.format_estimate(found.accuracy),
                statistics.format_difference(change),
                verdict,
            ]
        )
    head = ["set", "share of the MACs", "acc1, %", "points to dense", "level"]
    return render.table(head, lines)


def faster_table(judge: Judge) -> str:
    """The one test between two sets of which the first takes less time."""
    sets = CHOSEN | STAGES
    systems = [judge.system(name, sets[name], macs) for name, macs in FASTER]
    if None in systems:
        return ""
    ours, theirs = (judge.answers(system).right for system in systems)
    test = crossed.Test(
        " - ".join(f"{name} at {macs:g}" for name, macs in FASTER),
        "points",
        statistics.paired_difference(ours, theirs),
        statistics.mcnemar(ours, theirs),
    )
    return crossed.tests_table([test])


def carried(context):
    """The sets under damage, with smaller images and with larger ones; carried.md.

    On odd rows: even ones chose.
    """
    odd = np.arange(len(context.images))[crossed.ODD]
    judge = Judge(context, context.images.subset(odd))
    render.page(
        context,
        "carried",
        "the chosen sets under damage and at other sizes",
        render.note(context) + " Odd rows of them: even ones chose.",
        "### Damaged images",
        damage_table(judge),
        f"### {SHRUNK}",
        level_table(judge, SHRUNK, CHOSEN | TOME),
        "### With smaller images",
        *(size_table(judge, macs) for macs in CROSSED_COSTS),
        f"### {LARGE} pixels, enlarged",
        large_table(judge),
    )


def damage_table(judge: Judge, macs: float = 0.5) -> str:
    """acc1 under each damage, with the paired difference to the whole dense model."""
    dense = judge.dense()
    systems = [judge.dense(judge.smaller(pixels)) for pixels in SMALLER]
    systems += [judge.system(name, parts, macs) for name, parts in SPARED.items()]
    lines = [["dense", "1.000", *(_acc1(judge.answers(dense, d)) for d in DAMAGE)]]
    for system in filter(None, systems):
        cells = [
            _paired(judge.answers(system, d), judge.answers(dense, d)) for d in DAMAGE
        ]
        lines.append([_label(judge, system), f"{judge.share(system):.3f}", *cells])
    return render.table(["", "share of the MACs", *DAMAGE], lines)


def size_table(judge: Judge, macs: float) -> str:
    """Each set at one cost in all, with images of several sizes."""
    dense = judge.answers(judge.dense())
    sizes = [judge.smaller(pixels) for pixels in CROSSED]
    lines = []
    for name, parts in (SPARED | EVENLY).items():
        systems = [judge.system(name, parts, macs, size) for size in sizes]
        cells = [each and _paired(judge.answers(each), dense) for each in systems]
        lines.append([name, *cells])
    head = [f"at {macs:g} of the MACs", *map(_pixels, sizes)]
    return render.table(head, lines)


def large_table(judge: Judge, macs: float = 0.5) -> str:
    """Each set at half of the dense model's cost for larger images."""
    dense = judge.dense(LARGE)
    answers = judge.answers(dense)
    lines = [["dense", _acc1(answers)]]
    for name, parts in SPARED.items():
        system = judge.system(name, parts, macs * judge.share(dense), LARGE)
        if system is not None:
            lines.append([name, _paired(judge.answers(system), answers)])
    return render.table([f"{LARGE} pixels, {macs:g} of the MACs", "acc1, %"], lines)


def carried_maps(context):
    """The sets on a dense model's saliency maps, as carried-maps.md."""
    maps, lines = saliency.Maps(context), []
    for macs, (name, parts) in itertools.product(COSTS, SPARED.items()):
        found = maps.compare({**parts, "macs": macs}, FILLS[0])
        lines.append([f"{macs:g}", name, *saliency.cells(found)[:2]])
    render.page(
        context,
        "carried-maps",
        "the chosen sets and the maps of a dense head",
        render.note(context),
        render.table(["share of the MACs", "set", "correlation", "IoU"], lines),
    )


def _acc1(answers):
    return f"{answers['acc1']:.1f}"


def _paired(answers, dense):
    change = statistics.paired_difference(answers.right, dense.right)
    return f"{_acc1(answers)} ({statistics.format_difference(change)})"


def _label(judge, system):
    if not system.is_dense:
        return system.name
    return f"dense, {_pixels(system.image_size)}"


def _pixels(size):
    height, width = sides(size)
    return f"{height} pixels" if height == width else f"{height} x {width} pixels"
