"""All methods on one checkpoint, matched in cost: what each loses, and the tests of it.

Every method stands at the setting of its knob whose cost is nearest to a share of the
dense model's (`--shares`), by MACs or by time on this device (`--metric ms`); all other
fields are its defaults, those that it was published with. Settings are chosen by cost
alone, so no image chooses. Differences are paired, on the same images: to the dense
model, to ToMe and random tokens at the same share, and of ImagePiece's controls (with
its token counts) to ImagePiece. All of them are one family of
exact McNemar tests, corrected by Holm's rule.
"""

import dataclasses
import json
import math
import sys
import time

import numpy as np
from flax import linen as nn

from experiments import compare_page, compare_plot, match_cost
from imagepiece_jax.benchmark import device
from imagepiece_jax.common.files import git_revision, replace_file
from imagepiece_jax.data.sources import short_name
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.methods import METHODS

# Of a share; a method that comes no nearer is not compared there. DiffRate's published
# lists for DeiT-Ti are 3.5 to 4.4 % away from the shares .75, .6 and .5.
TOLERANCE = 0.05
MAX_TRIALS = 4  # settings that are timed for one share
REFERENCES = ("tome", "random")  # beside the dense model
# ImagePiece with its token counts, but another fate of the least attended tokens: they
# are compared where it is, and with it.
CONTROLLED = "imagepiece"
CONTROLS = {
    f"{CONTROLLED} {kind} (control)": {"name": CONTROLLED, "inattentive": kind}
    for kind in ("drop", "random", "tome")
}


def compare(context):
    """Compare all methods; writes compare.json, compare.md and compare.png."""
    report = measure(context)
    out = context.out
    replace_file(out / "compare.json", compare_page.dumps(report))
    report = json.loads((out / "compare.json").read_text())
    text = compare_page.page(report, plot="compare.png")
    replace_file(out / "compare.md", text)
    compare_plot.draw(out / "compare.png", report)
    print(text, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A method at one share: its reduction, the cost reached, and how it was timed."""

    method: str
    share: float
    reduction: dict
    shown: dict  # fields of the knob, and those that are not the method's defaults
    reached: float
    speed: dict | None = None

    @property
    def is_near(self) -> bool:
        return abs(self.reached - self.share) <= TOLERANCE * self.share


def measure(context) -> dict:
    """The report: everything that page and plot are made from, as JSON has it."""
    pretrained = context.pretrained
    entries, left_out = [], []
    for method in chosen(context.settings.methods):
        found = _entries(context, method)
        if isinstance(found, str):
            left_out.append({"method": method, "reason": found})
        else:
            entries += found
    near = [entry for entry in entries if entry.is_near]
    if not near:
        shares = ",".join(f"{share:g}" for share in context.settings.shares)
        raise InputError(
            f"--shares is {shares}: no method has a setting of this cost; allowed are "
            "shares that one has"
        )
    reductions = [settings.DENSE, *(entry.reduction for entry in near)]
    dense, *results = evaluate_all(context, pretrained, reductions)
    return {
        "weights": pretrained.name,
        "digest": pretrained.digest,
        "fields": {k: v for k, v in pretrained.fields.items() if k != "preprocessing"},
        "trained_as": pretrained.reduction["name"],
        "images": context.images.setting | {"data": short_name(context.images.name)},
        "metric": context.settings.metric,
        "shares": sorted(context.settings.shares, reverse=True),
        "tolerance": TOLERANCE,
        "timing": _timing(context),
        "git": git_revision(),
        "versions": device.versions(),
        "left_out": left_out,
        "out_of_reach": [_line(entry) for entry in entries if not entry.is_near],
        "dense": _figures(dense),
        "settings": [
            _line(entry) | _figures(result)
            for entry, result in zip(near, results, strict=True)
        ],
        "comparisons": comparisons(
            {
                (entry.method, entry.share): result.right
                for entry, result in zip(near, results, strict=True)
            },
            dense.right,
        ),
    }


def chosen(names: tuple[str, ...]) -> list[str]:
    """Methods to compare: these and the references; all where none is named.

    After ImagePiece come its controls. InputError for another name.
    """
    known = [name for name in METHODS if name != settings.DENSE["name"]]
    for name in names:
        if name not in known:
            hint = suggestion(name, known, f"allowed are {', '.join(known)}")
            raise InputError(f"--methods is {name!r}; {hint}")
    wanted = {*names, *REFERENCES} if names else {*known}
    found = [name for name in METHODS if name in wanted]
    if CONTROLLED in found:
        place = found.index(CONTROLLED) + 1
        found[place:place] = CONTROLS
    return found


def _entries(context, method) -> list[Entry] | str:
    """An Entry for each share, or why the method is left out."""
    pretrained = context.pretrained
    own = CONTROLS.get(method, {"name": method})
    name = own["name"]
    if pretrained.reduction["name"] == name:  # a run: its fields, not the defaults
        own = {**pretrained.reduction, **own}
    depth = len(pretrained.model(settings.DENSE).plan)
    priced = match_cost.priced(pretrained.gmacs, match_cost.settings(own, depth))
    if not priced:
        try:
            pretrained.model(own)
        except InputError as error:
            return f"does not fit this model: {error}"
        return "does not fit this model"
    priced = _trained(pretrained, priced)
    if not priced:
        return "needs training"
    knob = METHODS[name]().knob(depth)[0]
    find = _by_time if context.settings.metric == "ms" else _by_macs
    found = []
    for share in sorted(context.settings.shares, reverse=True):
        reduction, reached, speed = find(context, priced, share)
        shown = {k: reduction[k] for k in knob if k in reduction}
        shown = settings.changed(reduction) | shown
        shown.pop("name")
        found.append(Entry(method, share, reduction, shown, reached, speed))
    return found


def _trained(pretrained, priced):
    """Those of `priced` whose parameters the weights hold.

    From the cheapest on: a step that keeps every token has no parameters.
    """
    if not any(name.startswith("reducer") for name in pretrained.state_dict):
        return [] if pretrained.untrained(priced[-1][1]) else priced
    lacking, found = {}, []
    for cost, reduction in reversed(priced):
        # A reducer that learns and its block decide the parameters, whatever it keeps.
        plan = enumerate(pretrained.model(reduction).plan)
        steps = [(block, layer.step.reducer) for block, layer in plan if layer.counts]
        key = str([step for step in steps if isinstance(step[1], nn.Module)])
        if key not in lacking:
            lacking[key] = pretrained.untrained(reduction)
        if not lacking[key]:
            found.append((cost, reduction))
    return found


def _by_macs(context, priced, share):
    """(reduction, share reached, None) of the nearest cost."""
    dense = context.pretrained.gmacs(settings.DENSE)
    cost, reduction = match_cost.closest(priced, share * dense)
    return reduction, cost / dense, None


def _by_time(context, priced, share):
    """(reduction, share reached, its speed) of the nearest of MAX_TRIALS timed ones.

    The first is the nearest by MACs, each further one as if time fell as MACs do.
    """
    target, tried = share, {}
    for _ in range(MAX_TRIALS):
        reduction, macs, _ = _by_macs(context, priced, target)
        if macs in tried:
            break
        speed = context.speed(context.pretrained, reduction)
        tried[macs] = reduction, 1 / speed["ratio"], speed
        target *= share * speed["ratio"]
    return min(tried.values(), key=lambda found: abs(found[1] - share))


def evaluate_all(context, pretrained, reductions: list[dict]) -> list:
    """A result of each; stderr says how many are left to be measured, and how long.

    The time is estimated from those measured before, as if it rose with the MACs.
    """
    waiting = {}
    for reduction in reductions:
        if not context.evaluated(pretrained, reduction):
            waiting[str(settings.completed(reduction))] = reduction
    costs = [pretrained.gmacs(reduction) for reduction in waiting.values()]
    began = time.monotonic()
    for place, reduction in enumerate(waiting.values()):
        left = ""
        if place:
            seconds = (time.monotonic() - began) / sum(costs[:place])
            left = f", about {math.ceil(seconds * sum(costs[place:]) / 60)} min left"
        count = f"{place + 1} of {len(waiting)}{left}: "
        print(count, end="", file=sys.stderr, flush=True)
        context.evaluate(pretrained, reduction)
    return [context.evaluate(pretrained, reduction) for reduction in reductions]


def comparisons(rights: dict[tuple[str, float], np.ndarray], dense) -> list[dict]:
    """Every comparison, each pair once, with p before and after Holm's correction.

    rights: which images each method has right at each share; dense: the dense model.
    """
    found = []
    for (method, share), right in rights.items():
        others = {"dense": dense}
        # ToMe's comparison with random tokens is that of random tokens with ToMe.
        names = REFERENCES if method not in REFERENCES else REFERENCES[:1]
        names += (CONTROLLED,) if method in CONTROLS else ()
        others |= {to: rights[to, share] for to in names if (to, share) in rights}
        others.pop(method, None)
        for to, other in others.items():
            gained, lost = statistics.discordant(right, other)
            line = {"method": method, "share": share, "to": to}
            line["points"] = list(statistics.paired_difference(right, other))
            line |= {"gained": gained, "lost": lost}
            found.append(line | {"p": statistics.mcnemar(right, other)})
    corrected = statistics.holm([line["p"] for line in found])
    return [line | {"holm": p} for line, p in zip(found, corrected, strict=True)]


def _line(entry):
    """An Entry as JSON has it."""
    speed = {} if entry.speed is None else {"speed": entry.speed}
    return {
        "method": entry.method,
        "share": entry.share,
        "reached": entry.reached,
        "setting": entry.shown,
        "reduction": settings.completed(entry.reduction),
        **speed,
    }


def _figures(result):
    """Figures of a result: accuracy as [value, low, high], `right` as bits."""
    kept = ("acc5", "loss", "gmacs", "tokens", "tokens_per_block", "images", "right")
    return {"acc1": list(result.accuracy)} | {k: result.figures[k] for k in kept}


def _timing(context):
    """How speeds were measured; None where costs are MACs."""
    if context.settings.metric != "ms":
        return None
    rules = dataclasses.asdict(context.settings.rules)
    return {
        "device": device.name(),
        "batch_size": context.settings.speed_batch_size,
        **rules,
    }
