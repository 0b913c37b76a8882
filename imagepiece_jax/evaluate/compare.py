"""All methods on one checkpoint, matched in cost: what each loses, and the tests of it.

Every method stands at the strength of its own schedule whose cost is nearest to a share
of the dense model's, by MACs (`macs`) or by time on this device; all other fields are
its defaults, those that it was published with. Settings are chosen only by cost, so no
image chooses. Differences are paired, on the same images: to the dense model, to ToMe
and random tokens at the same share, and of a control (with the token counts of its
method) to its method. All of them are one family of exact McNemar tests, corrected by
Holm's rule. A sweep compares named reductions at any cost, only with the dense model.
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np

from imagepiece_jax.common.files import git_revision
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import MeasuredWeights, Split, decode_bits
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.sweep_text import sweep_of

Model = TypeVar("Model")
MAX_TRIALS = 4  # settings that are timed for one share
REFERENCES = ("tome", "random")  # and the dense model
CONTROL = "(control)"  # ends the name of a variant that has its method's token counts
FLOORS = ("smaller images", "first blocks")  # dense models that cost less
RECOMMENDED = "attended"  # by README and docs
VARIANTS = {
    f"imagepiece drop {CONTROL}": {"name": "imagepiece", "inattentive": "drop"},
}


@dataclasses.dataclass(frozen=True, eq=False)
class MatchedMethod:
    """A method at one share: its reduction, the cost reached, and how it was timed."""

    method: str
    share: float | None  # None in a sweep
    reduction: dict  # with the tokens that stay
    setting: dict  # the fields that a user would type
    reached: float  # share of the dense model's cost
    speed: dict | None = None


def compare(
    checkpoint: MeasuredWeights,
    shares: Iterable[float],
    methods: Iterable[str] = (),
    metric: str = "gmacs",
    floors: bool = False,
) -> dict[str, Any]:
    """Compare all methods, or these with ToMe and random tokens.

    checkpoint: whose reductions are compared
    shares: of the dense model's cost, between 0 and 1
    methods: by name; none stands for all
    metric: "gmacs", or "ms" on this device
    floors: with smaller images and with the first blocks, at the nearest cost by MACs
    Returns a report of JSON values, of which `compare_tables` makes tables and a plot.
    Raises InputError for an unknown method, and where no method reaches a share.
    Source: McNemar (1947) and Holm (1979), as `statistics` has them.
    """
    shares = sorted(set(shares), reverse=True)
    entries, absent = match(checkpoint, shares, methods, metric)
    return _report(checkpoint, entries, shares, metric, floors, absent)


def sweep(
    checkpoint: MeasuredWeights, reductions: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """A report as of `compare`, without shares, of reductions that `check_fit`."""
    vit = checkpoint.vit
    usual = settings.with_defaults(settings.DENSE)
    dense = vit.gmacs_with(settings.DENSE)
    entries = []
    for reduction in reductions:
        if settings.with_defaults(reduction) == usual:
            continue
        name = settings.label(reduction)
        setting = settings.differences(reduction)
        share = vit.gmacs_with(reduction) / dense
        entries.append(MatchedMethod(name, None, reduction, setting, share))
    return _report(checkpoint, entries)


def check_fit(vit: Pretrained, reductions: Iterable[dict[str, Any]]):
    """Raise InputError for a reduction that does not fit the model, and name it."""
    for reduction in reductions:
        try:
            vit.model_with(reduction)
        except InputError as error:
            raise error.inside(place=sweep_of(reduction)) from error


def _report(checkpoint, entries, shares=(), metric="gmacs", floors=False, absent=()):
    vit = checkpoint.vit
    models = [(checkpoint, settings.DENSE)]
    models += [(checkpoint, entry.reduction) for entry in entries]
    if floors:
        for floor, cheaper in nearest_floors(checkpoint, shares):
            entries = [*entries, floor]
            models.append((cheaper, settings.DENSE))
    results = measure_all(
        models,
        key=lambda model: (id(model[0]), str(settings.with_defaults(model[1]))),
        is_measured=lambda model: model[0].has_evaluated(model[1]),
        measure=lambda model: model[0].evaluate(model[1]),
    )
    dense, *figures = map(_figures, results)
    pairs = [*zip(entries, figures, strict=True)]
    return {
        "weights": vit.source.name,
        "digest": vit.digest,
        "fields": vit.source.config.as_dict,
        "trained_as": vit.reduction["name"],
        "images": dict(checkpoint.images.setting),
        "num_classes": vit.model.num_classes,
        "valid_labels": checkpoint.images.valid,
        "metric": metric,
        "shares": list(shares),
        "timing": checkpoint.clock.setting if metric == "ms" else None,
        "git": git_revision(),
        "versions": checkpoint.cache.versions,
        "left_out": list(absent),
        "dense": dense,
        "settings": [
            vars(entry)
            | {"reduction": settings.with_defaults(entry.reduction)}
            | figures
            for entry, figures in pairs
        ],
        "comparisons": comparisons(
            {(entry.method, entry.share): _right(figures) for entry, figures in pairs},
            _right(dense),
        ),
    }


def match(
    checkpoint: MeasuredWeights,
    shares: Iterable[float],
    methods: Iterable[str] = (),
    metric: str = "gmacs",
) -> tuple[list[MatchedMethod], list[dict[str, str]]]:
    """The setting of every method at each share; arguments as `compare` takes them.

    Returns the settings, method by method, and {"method", "share", "reason"} of those
    that are left out; share None: a method at all shares.
    Raises InputError for an unknown method, and where no method reaches a share.
    """
    entries = []
    absent = []
    names = chosen(methods)
    for place, method in enumerate(names, start=1):
        if metric == "ms":
            text = f"{place} of {len(names)} methods to time, {method}"
            print(text, file=sys.stderr, flush=True)
        found, lines = _entries(checkpoint, method, shares, metric)
        entries += found
        absent += [{"method": method, **line} for line in lines]
    if not entries:
        raise InputError(
            f"is {','.join(f'{share:g}' for share in shares)}",
            field="--shares",
            value=shares,
            allowed="shares of the cost that some method has a setting of",
        )
    return entries, absent


def chosen(names: Iterable[str]) -> list[str]:
    """Methods to compare: these and the references; all where none is named.

    ImagePiece is followed by its control.
    Raises InputError for another name.
    """
    every = [name for name in METHODS if name != settings.DENSE["name"]]
    for name in names:
        if name not in every:
            hint = suggestion(name, every, f"allowed: {', '.join(every)}")
            raise InputError(field="--methods", value=name, hint=hint)
    wanted = {*names, *REFERENCES} if names else {*every}
    listed = [name for name in every if name in wanted]
    for variant, requested in reversed(VARIANTS.items()):
        if requested["name"] in listed:
            listed.insert(listed.index(requested["name"]) + 1, variant)
    return listed


def controlled(method: str) -> str | None:
    """The method whose control this is; None where it is none."""
    return method.split()[0] if method.endswith(CONTROL) else None


def _entries(checkpoint, method, shares, metric):
    """(MatchedMethods, {"share", "reason"} of where there are none)."""
    vit = checkpoint.vit
    settle = _by_time if metric == "ms" else _by_macs
    requested = VARIANTS.get(method, {"name": method})
    if vit.reduction["name"] == requested["name"]:  # its own fields
        own = {**vit.reduction, "counts": None, settings.LABEL: None}
        requested = {**own, **requested}
    try:
        vit.model_with({**requested, "counts": None})
    except InputError as error:
        return [], [{"share": None, "reason": str(error)}]
    entries = []
    absent = []
    for share in shares:
        try:
            reduction, *reached = settle(checkpoint, requested, share)
        except InputError as error:
            absent.append({"share": share, "reason": str(error)})
            continue
        if vit.lacks_selectors(reduction):
            return [], [{"share": None, "reason": "needs training"}]
        macs = share
        if metric == "ms":  # the share of the MACs that takes this share of the time
            dense = vit.gmacs_with(settings.DENSE)
            macs = round(vit.gmacs_with(reduction) / dense, 4)
        setting = {"macs": macs} | settings.differences({**requested, "macs": macs})
        setting.pop("name")
        entries.append(MatchedMethod(method, share, reduction, setting, *reached))
    return entries, absent


def _by_macs(checkpoint, requested, share):
    """(reduction, share reached) of the nearest cost."""
    vit = checkpoint.vit
    reduction = vit.reduction_at_cost({**requested, "macs": share})
    return reduction, vit.gmacs_with(reduction) / vit.gmacs_with(settings.DENSE)


def _by_time(checkpoint, requested, share):
    """(reduction, share reached, its speed) of the nearest of MAX_TRIALS timed ones.

    The first is the nearest by MACs, each further one as if time fell as MACs do.
    """
    target = share
    tried = {}
    for _ in range(MAX_TRIALS):
        reduction, macs = _by_macs(checkpoint, requested, min(1.0, target))
        if macs in tried:
            break
        speed = checkpoint.speed(reduction)
        tried[macs] = reduction, 1 / speed["ratio"], speed
        target *= share * speed["ratio"]
    return min(tried.values(), key=lambda trial: abs(trial[1] - share))


def nearest_floors(checkpoint, shares) -> list[tuple[MatchedMethod, MeasuredWeights]]:
    """The nearest of the `floors` of each kind at each share, with its weights."""
    pairs = []
    for listed, share in itertools.product(filter(None, floors(checkpoint)), shares):
        floor, cheaper = min(listed, key=lambda pair: abs(pair[0].reached - share))
        pairs.append((dataclasses.replace(floor, share=share), cheaper))
    return pairs


def floors(checkpoint: MeasuredWeights) -> list[list[tuple]]:
    """Cheaper dense weights: for smaller images, down to two patches; of fewer blocks.

    Images are those of the dense model, made smaller after their normalization, by
    antialiased bicubic weights.
    Returns of each kind pairs: a MatchedMethod, without a share, and its weights.
    """
    # Counts of a reduction fit neither a smaller image nor fewer blocks.
    dense = checkpoint.vit.with_reduction(settings.DENSE)
    both = sides(dense.image_size)
    patch = dense.model.patch_size

    def floor(kind, images, sized, **setting):
        fields = ", ".join(f"{k}={v}" for k, v in setting.items())
        cheaper = dataclasses.replace(
            checkpoint,
            vit=sized,
            images=images,
            programs={},
            name=f"{kind}, {fields}",
        )
        reached = sized.gmacs / dense.gmacs
        return MatchedMethod(kind, None, settings.DENSE, setting, reached), cheaper

    images = checkpoint.images
    smaller = []
    for removed in range(1, min(both) // patch - 1):  # patches a side
        size = tuple(side - removed * patch for side in both)
        shrunk = smaller_images(images, size)
        smaller.append(floor(FLOORS[0], shrunk, dense.at_size(size), image_size=size))
    fewer = [
        floor(FLOORS[1], images, dense.first_blocks(depth), depth=depth)
        for depth in range(1, dense.model.depth)
    ]
    return [smaller, fewer]


def smaller_images(images: Split, size: tuple[int, int]) -> Split:
    """The same images, made smaller on the device."""

    def alter(images, batch, model):
        shape = (images.shape[0], *size, images.shape[3])
        return jax.image.resize(images, shape, "cubic", antialias=True)

    setting = images.setting | {"smaller": size}
    return Split(setting, images.batches, alter, images.valid)


def measure_all(
    models: list[Model],
    key: Callable[[Model], Hashable],
    is_measured: Callable[[Model], bool],
    measure: Callable[[Model], dict],
) -> list[dict]:
    """`measure` of each; stderr says how many are left to be measured, and how long.

    A model takes as long as the mean of those before, most of it to compile its
    program; the first reads the images, too, and counts only for the second.

    key: of a model; of those with the same key one is measured
    is_measured, measure: of a model; a measured one costs nothing
    """
    every = {key(model): model for model in models}
    waiting = [model for model in every.values() if not is_measured(model)]
    if waiting:
        before = len(every) - len(waiting)
        text = f"{len(every)} settings, {before} of them measured before; each of the "
        text += f"other {len(waiting)} compiles a program"
        print(text, file=sys.stderr, flush=True)
    seconds = []
    for place, model in enumerate(waiting):
        text = f"{place + 1} of {len(waiting)}"
        if seconds:
            usual = np.mean(seconds[1:] or seconds)
            minutes = usual * (len(waiting) - place) / 60
            text += f", about {math.ceil(minutes)} min left"
        print(f"{text}: ", end="", file=sys.stderr, flush=True)
        began = time.monotonic()
        measure(model)
        seconds.append(time.monotonic() - began)
    return [measure(model) for model in models]


def comparisons(rights: dict[tuple[str, float], np.ndarray], dense) -> list[dict]:
    """Every comparison, each pair once, with p before and after Holm's correction.

    rights: bool [images], those that each method answers right at each share
    dense: those that the dense model does
    """
    lines = []
    for (method, share), right in rights.items():
        # ToMe's comparison with random tokens is that of random tokens with ToMe.
        names = REFERENCES[:1] if method in REFERENCES else REFERENCES
        names = () if share is None else names
        if control_of := controlled(method):
            names += (control_of,)
        others = {"dense": dense} | {
            name: rights[name, share]
            for name in names
            if name != method and (name, share) in rights
        }
        for name, other in others.items():
            line = {"method": method, "share": share, "to": name}
            line["points"] = list(statistics.paired_difference(right, other))
            line["gained"], line["lost"] = statistics.discordant(right, other)
            lines.append(line | {"p": statistics.mcnemar(right, other)})
    corrected = statistics.holm([line["p"] for line in lines])
    return [line | {"holm": p} for line, p in zip(lines, corrected, strict=True)]


def _figures(result):
    """The figures of a model as JSON has them: acc1 with its interval."""
    acc1 = statistics.accuracy(_right(result))
    return result | {"acc1": list(map(float, acc1))}


def _right(figures):
    return decode_bits(figures["right"], figures["images"])
