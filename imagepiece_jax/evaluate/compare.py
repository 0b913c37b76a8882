"""Accuracy of all methods on one checkpoint at equal cost, and tests of differences.

Every method runs at the strength of its own schedule whose cost is nearest to a share
of the dense model's cost, by MACs or by time on this device. All other fields are the
method's defaults, those that it was published with. Settings are chosen by cost alone,
never by accuracy.

Differences are paired: both models see the same images. A method is compared with the
dense model, and with ToMe and random tokens at the same share. All comparisons are one
family of exact McNemar tests, corrected by Holm's rule. A sweep compares named
reductions at any cost with the dense model, and where they are asked for with the same
weights on smaller images of about their cost.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from imagepiece_jax.common.files import git_revision
from imagepiece_jax.common.image_size import patch_grid, sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import MeasuredWeights, Split, decode_bits
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.reduction_plan import with_plan
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import DENSE, Reduction

Model = TypeVar("Model")
MAX_TRIALS = 4  # settings that are timed for one share
REFERENCES = ("tome", "random")  # and the dense model
SMALLER = "smaller images"  # the dense model on them is a method of its own
RECOMMENDED = "attended"  # by README and docs


@dataclasses.dataclass(frozen=True, eq=False)
class MatchedMethod:
    """A method at one share: its reduction, the cost reached, and how it was timed."""

    method: str
    share: float | None  # None in a sweep
    reduction: Reduction  # with the tokens that stay
    setting: dict  # the fields that a user would type
    reached: float  # share of the dense model's cost
    speed: dict | None = None  # of `MeasuredWeights.speed`; None: it was not timed


def compare(
    checkpoint: MeasuredWeights,
    shares: Iterable[float],
    methods: Iterable[str] = (),
    metric: str = "gmacs",
    smaller_images: bool = False,
) -> dict[str, Any]:
    """Compare methods on one checkpoint; ToMe and random tokens are always among them.

    checkpoint: the weights whose tokens the methods reduce
    shares: shares of the dense model's cost, between 0 and 1
    methods: names of methods; empty: all methods
    metric: what cost means: "gmacs", or "ms" for time on this device
    smaller_images: whether the dense model on smaller images of the nearest MACs is
        compared, too
    Returns a report of JSON values, of which `compare_tables` makes tables and a plot.
    Raises InputError for an unknown method, and where no method reaches a share.
    Source: McNemar (1947) and Holm (1979), as `statistics` has them.
    """
    shares = sorted(set(shares), reverse=True)
    entries, absent = match(checkpoint, shares, methods, metric)
    smaller = []
    if smaller_images:
        smaller = nearest_sizes(checkpoint, shares)
    return _report(checkpoint, entries, smaller, shares, metric, absent)


def sweep(
    checkpoint: MeasuredWeights,
    reductions: Iterable[Reduction],
    smaller_images: bool = False,
) -> dict[str, Any]:
    """Compare named reductions with the dense model; a report as `compare` returns it.

    reductions: that passed `check_fit`
    smaller_images: whether each is compared with the dense model on smaller images,
        too: those whose cost is next to its own, on either side
    """
    vit = checkpoint.vit
    dense = vit.gmacs_with(DENSE)
    entries = []
    for reduction in reductions:
        if vit.model_with(reduction) == vit.model_with(DENSE):
            continue
        share = vit.gmacs_with(reduction) / dense
        name = str(reduction)
        setting = {"reduction": name}
        entries.append(MatchedMethod(name, None, reduction, setting, share))
    smaller = []
    if smaller_images:
        costs = [entry.reached for entry in entries]
        smaller = sizes_around(checkpoint, costs)
    return _report(checkpoint, entries, smaller)


def check_fit(vit: Pretrained, reductions: Iterable[Reduction]):
    """Raise InputError for a reduction that does not fit `vit`."""
    for reduction in reductions:
        vit.model_with(reduction)


def _report(checkpoint, entries, smaller, shares=(), metric="gmacs", absent=()):
    """Evaluate the dense model and all `entries`, and make the report of `compare`.

    smaller: the entries of smaller images, with their weights
    """
    vit = checkpoint.vit
    models = [(checkpoint, DENSE)]
    models += [(checkpoint, entry.reduction) for entry in entries]
    for entry, resized in smaller:
        entries = [*entries, entry]
        models.append((resized, DENSE))
    dense, *figures = map(_figures, _evaluate_all(models))
    lines = []
    rights = {}
    for entry, measured in zip(entries, figures, strict=True):
        line = dict(vars(entry))
        line["reduction"] = str(entry.reduction)
        line["recovered"] = bool(vit.recovered_with(entry.reduction))
        line.update(measured)
        lines.append(line)
        rights[entry.method, entry.share] = _right(measured)
    timing = None
    if metric == "ms":
        timing = checkpoint.clock.setting(checkpoint.vit)
    return {
        "weights": vit.source.name,
        "digest": vit.digest,
        "fields": vit.spec.as_dict,
        "trained_as": vit.reduction.name,
        "images": dict(checkpoint.images.setting),
        "num_classes": vit.model.num_classes,
        "metric": metric,
        "shares": list(shares),
        "timing": timing,
        "git": git_revision(),
        "versions": checkpoint.cache.versions,
        "left_out": list(absent),
        "dense": dense,
        "settings": lines,
        "comparisons": comparisons(
            rights, _right(dense), [entry.method for entry, _ in smaller]
        ),
    }


def _evaluate_all(models):
    """Results of (MeasuredWeights, reduction) pairs, each evaluated once."""

    def key(model):
        weights, reduction = model
        return id(weights), reduction

    def is_measured(model):
        weights, reduction = model
        return weights.has_evaluated(reduction)

    def measure(model):
        weights, reduction = model
        return weights.evaluate(reduction)

    return measure_all(models, key, is_measured, measure)


def match(
    checkpoint: MeasuredWeights,
    shares: Iterable[float],
    methods: Iterable[str] = (),
    metric: str = "gmacs",
) -> tuple[list[MatchedMethod], list[dict[str, str]]]:
    """Find the setting of every method at each share of the cost.

    Arguments are those of `compare`.

    Returns (settings, method by method; a {"method", "share", "reason"} for each that
        is left out, whose share is None where the method is left out at all shares).
    Raises InputError for an unknown method, and where no method reaches a share.
    """
    entries = []
    absent = []
    names = with_references(methods)
    for number, method in enumerate(names, start=1):
        if metric == "ms":
            text = f"{number} of {len(names)} methods to time, {method}"
            print(text, file=sys.stderr, flush=True)
        found, lines = _entries(checkpoint, method, shares, metric)
        entries += found
        absent += [{"method": method, **line} for line in lines]
    if not entries:
        listed = ",".join(f"{share:g}" for share in shares)
        allowed = "shares of the cost that some method has a setting of"
        raise InputError("shares", shares, allowed, problem=f"is {listed}")
    return entries, absent


def with_references(names: Iterable[str]) -> list[str]:
    """The methods to compare: the named ones and REFERENCES, or all without a name.

    Raises InputError for another name.
    """
    every = [name for name in METHODS if name != DENSE.name]
    for name in names:
        if name not in every:
            raise InputError("methods", name, every)
    wanted = {*names, *REFERENCES} if names else {*every}
    return [name for name in every if name in wanted]


def _entries(checkpoint, method, shares, metric):
    """(MatchedMethods of one method; {"share", "reason"} of shares without one)."""
    vit = checkpoint.vit
    nearest = _by_time if metric == "ms" else _by_macs
    requested = Reduction.read(method)
    if vit.reduction.name == method:  # the checkpoint's own fields count
        requested = vit.reduction
    try:
        vit.model_with(requested)
    except InputError as error:
        return [], [{"share": None, "reason": str(error)}]
    entries = []
    absent = []
    for share in shares:
        try:
            reduction, reached, speed = nearest(checkpoint, requested, share)
        except InputError as error:
            absent.append({"share": share, "reason": str(error)})
            continue
        if vit.lacks_selectors(reduction):
            return [], [{"share": None, "reason": "needs training"}]
        macs = share
        if metric == "ms":  # the share of the MACs that takes this share of the time
            dense = vit.gmacs_with(DENSE)
            macs = round(vit.gmacs_with(reduction) / dense, 4)
        setting = {"reduction": str(requested.with_cost(macs))}
        entry = MatchedMethod(method, share, reduction, setting, reached, speed)
        entries.append(entry)
    return entries, absent


def _by_macs(checkpoint, requested, share):
    """(reduction, share reached, None) of the cost by MACs that is nearest to `share`.

    The None stands for a speed, which is not measured.
    """
    vit = checkpoint.vit
    reduction = vit.reduction_at_cost(requested.with_cost(share))
    reached = vit.gmacs_with(reduction) / vit.gmacs_with(DENSE)
    return reduction, reached, None


def _by_time(checkpoint, requested, share):
    """(reduction, share reached, its speed) of the time that is nearest to `share`.

    Up to MAX_TRIALS reductions are timed: first the nearest by MACs, then each at the
    MACs that would be right if time were proportional to them.
    """
    target = share
    tried = {}
    for _ in range(MAX_TRIALS):
        reduction, macs, _ = _by_macs(checkpoint, requested, min(1.0, target))
        if macs in tried:
            break
        speed = checkpoint.speed(reduction)
        tried[macs] = reduction, 1 / speed["ratio"], speed
        target *= share * speed["ratio"]
    return min(tried.values(), key=lambda trial: abs(trial[1] - share))


def nearest_sizes(checkpoint, shares) -> list[tuple[MatchedMethod, MeasuredWeights]]:
    """The smaller images of the nearest cost at each share, with their weights."""
    sizes = smaller_sizes(checkpoint.vit)
    found = []
    if not sizes:  # an image of few patches
        return found
    for share in shares:
        entry = min(sizes, key=lambda each: abs(each.reached - share))
        resized = on_smaller_images(checkpoint, entry)
        found.append((dataclasses.replace(entry, share=share), resized))
    return found


def sizes_around(checkpoint, costs) -> list[tuple[MatchedMethod, MeasuredWeights]]:
    """The smaller images next to each cost, at most and above it, the largest first.

    Each is named as a setting of a sweep. The dense model's own images are not among
    them.
    """
    sizes = smaller_sizes(checkpoint.vit)
    wanted = set()
    for cost in costs:
        above = sum(entry.reached > cost for entry in sizes)
        wanted |= {above - 1, above}
    found = []
    for index, entry in enumerate(sizes):
        if index in wanted:
            name = f"image_size={entry.setting['image_size']}"
            resized = on_smaller_images(checkpoint, entry)
            found.append((dataclasses.replace(entry, method=name), resized))
    return found


def smaller_sizes(vit: Pretrained) -> list[MatchedMethod]:
    """The dense model on smaller images, the largest first, down to two patches."""
    both = sides(vit.image_size)
    patch = vit.model.patch_size
    dense = vit.gmacs_with(DENSE)
    found = []
    for removed in range(1, min(both) // patch - 1):  # patches a side
        size = tuple(side - removed * patch for side in both)
        model = with_plan(vit.model, DENSE, patch_grid(size, patch), vit.name)
        reached = model_macs(model, size) / 1e9 / dense
        typed = size if len({*size}) > 1 else size[0]
        setting = {"image_size": typed}
        found.append(MatchedMethod(SMALLER, None, DENSE, setting, reached))
    return found


def on_smaller_images(checkpoint, entry: MatchedMethod) -> MeasuredWeights:
    """The dense weights on the smaller images of an entry of `smaller_sizes`.

    Images are those of the dense model, made smaller after their normalization, by
    antialiased bicubic weights.
    """
    # Counts of a reduction do not fit a smaller image.
    dense = checkpoint.vit.with_reduction(DENSE)
    typed = entry.setting["image_size"]
    return dataclasses.replace(
        checkpoint,
        vit=dense.at_size(typed),
        images=made_smaller(checkpoint.images, sides(typed)),
        programs={},
        name=f"{SMALLER}, image_size={typed}",
    )


def made_smaller(images: Split, size: tuple[int, int]) -> Split:
    """The same images, made smaller on the device."""

    def alter(images, batch, model):
        shape = (images.shape[0], *size, images.shape[3])
        return jax.image.resize(images, shape, "cubic", antialias=True)

    setting = images.setting | {"smaller": size}
    return Split(setting, images.batches, alter)


def measure_all(
    models: list[Model],
    key: Callable[[Model], Hashable],
    is_measured: Callable[[Model], bool],
    measure: Callable[[Model], dict],
) -> list[dict]:
    """Measure all models; stderr says how many are left, and about how long they take.

    The estimate is the mean time of earlier models, most of which is compilation. The
    first model also reads the images, so that its time counts only for the second.

    key: function of a model; of models with equal keys only one is measured
    is_measured: function of a model: whether `measure` takes no time
    measure: function of a model that returns its result
    """
    every = {key(model): model for model in models}
    waiting = [model for model in every.values() if not is_measured(model)]
    if waiting:
        before = len(every) - len(waiting)
        text = f"{len(every)} settings, {before} of them measured before; each of the "
        text += f"other {len(waiting)} compiles a program"
        print(text, file=sys.stderr, flush=True)
    seconds = []
    for index, model in enumerate(waiting):
        text = f"{index + 1} of {len(waiting)}"
        if seconds:
            mean = np.mean(seconds[1:] or seconds)
            minutes = mean * (len(waiting) - index) / 60
            text += f", about {math.ceil(minutes)} min left"
        print(f"{text}: ", end="", file=sys.stderr, flush=True)
        began = time.monotonic()
        measure(model)
        seconds.append(time.monotonic() - began)
    return [measure(model) for model in models]


def comparisons(
    rights: dict[tuple[str, float], np.ndarray],
    dense,
    smaller: Iterable[str] = (),
    beside: Mapping[str, Iterable[str]] | None = None,
) -> list[dict]:
    """Every comparison of two models, with p before and after Holm's correction.

    rights: bool [images] by (method, share): whether it answers each image right
    dense: bool [images], the same of the dense model
    smaller: the methods among them that are smaller images
    beside: further methods that one of these names is compared with
    """
    lines = []
    for (method, share), right in rights.items():
        others = {"dense": dense}
        names = _compared_with(method, share, smaller)
        names += (beside or {}).get(method, ())
        for name in names:
            if (name, share) in rights:
                others[name] = rights[name, share]
        for name, other in others.items():
            gained, lost = statistics.discordant(right, other)
            line = {
                "method": method,
                "share": share,
                "to": name,
                "points": list(statistics.paired_difference(right, other)),
                "gained": gained,
                "lost": lost,
                "p": statistics.mcnemar(right, other),
            }
            lines.append(line)
    corrected = statistics.holm([line["p"] for line in lines])
    return [line | {"holm": p} for line, p in zip(lines, corrected, strict=True)]


def _compared_with(method, share, smaller):
    """The methods that one is compared with at a share, besides the dense model."""
    names = []
    if share is None and method not in smaller:  # of a sweep
        names += smaller
    if share is not None:
        # Random tokens are compared with ToMe, so that ToMe need not be with them.
        references = REFERENCES[:1] if method in REFERENCES else REFERENCES
        names += [name for name in references if name != method]
    return names


def _figures(result):
    """The figures of a model as JSON has them: acc1 with its interval."""
    acc1 = statistics.accuracy(_right(result))
    return result | {"acc1": list(map(float, acc1))}


def _right(figures):
    return decode_bits(figures["right"], figures["images"])
