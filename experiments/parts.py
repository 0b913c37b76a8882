"""How many tokens stay, which leave, and what becomes of them: the parts crossed.

Every cell is one checkpoint with one selector, one schedule, merged or dropped, with
and without proportional attention, at one cost. Its figures are those of every image:
the KL divergence from the dense model's probabilities, and whether the class is right.
What is tested, and how, was declared before the first whole run, in `DECLARED`: nothing
that decides here may change after that.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.special import log_softmax, stdtr

from experiments import render
from imagepiece_jax.common import plotting
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits, encode_bits, plan_facts
from imagepiece_jax.reduction import settings

DECLARED = "docs/tables/parts/declared.md"
SCHEDULES = (
    "constant",
    "proportional",
    "proportional-1",
    "stages-3-6-9",
    "stages-1-2-7-11",
    "stages-1-2-3-6",
    "imagepiece",
    "diffrate",
    "curve",
)
# Selectors by the method whose they are, with what turns the rest of it off.
MERGING = {
    "tome": ("similar keys", {}),
    "pitome": ("energy", {}),
    "diffrate": ("most attended", {}),
    "mctf": ("fusion", {}),
    "dpc_knn": ("density peaks", {}),
    "atc": ("agglomeration", {}),
}
DROPPING = {
    "evit": ("class attention", {"fuse_token": False}),
    "random": ("random", {}),
    **{
        name: (selector, {"fate": "drop"})
        for name, (selector, _) in MERGING.items()
        if name != "diffrate"  # whose tokens, dropped, are those of class attention
    },
}
COST, OTHER_COSTS = 0.5, (0.75, 0.6, 0.4)
BEST = 35  # cells of `COST` that are measured at the others, too
PUBLISHED = {"name": "diffrate", "target": 0.6}  # of DeiT-Ti: `PUBLISHED_COST`
PUBLISHED_COST = 0.522
SCORES = ("class", "energy", "shift")  # in the place of attention received
LEVEL = 0.05
SMALLEST = 1e-8  # a KL whose logarithm is taken
REPEATS = 1000  # of resampled images
DIGITS = {"KL": 4, "log KL": 3, "points": 1}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of parts at one cost."""

    method: str
    fate: str  # "merged" or "dropped"
    schedule: str
    prop_attn: bool
    macs: float

    @property
    def selector(self) -> str:
        return _parts(self.fate)[self.method][0]

    @property
    def reduction(self) -> dict[str, Any]:
        own = _parts(self.fate)[self.method][1]
        return {
            "name": self.method,
            "macs": self.macs,
            "counts": self.schedule,
            "prop_attn": self.prop_attn,
            **own,
        }

    def at(self, macs: float) -> "Cell":
        return dataclasses.replace(self, macs=macs)


def _parts(fate):
    return MERGING if fate == "merged" else DROPPING


def cells() -> Iterator[Cell]:
    """All cells of `COST`; where tokens are dropped sizes are 1, with or without."""
    for method, schedule, sized in itertools.product(MERGING, SCHEDULES, (True, False)):
        yield Cell(method, "merged", schedule, sized, COST)
    for method, schedule in itertools.product(DROPPING, SCHEDULES):
        yield Cell(method, "dropped", schedule, False, COST)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation says of every image: kl [n], right [n], and its share."""

    kl: np.ndarray
    right: np.ndarray
    share: float

    @classmethod
    def of_json(cls, result: Mapping[str, Any]) -> "Measured":
        right = decode_bits(result["right"], len(result["kl"]))
        return cls(np.array(result["kl"]), right, result["share"])

    def of(self, rows: slice) -> "Measured":
        return Measured(self.kl[rows], self.right[rows], self.share)


EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


class Divergence:
    """Evaluations of one checkpoint, each with its divergence from the dense model."""

    def __init__(self, context):
        self._context = context
        self._weights = context.pretrained

    def of(self, reduction: Mapping[str, Any]) -> Measured | None:
        """None where no counts come near its cost, which is found before all else."""
        try:
            self._weights.model(reduction)
        except InputError:
            return None
        setting = self._context.checkpoint(self._weights).setting("parts", reduction)
        what = f"{settings.label(reduction)}, {len(self._context.images)} images"
        found = self._context.cache.result(
            setting, lambda: self._measured(reduction), what
        )
        return Measured.of_json(found)

    def _measured(self, reduction):
        vit, logits, labels = self._logits(reduction)
        facts = plan_facts(vit.model, vit.image_size)
        ours = log_softmax(logits.astype(np.float64), axis=1)
        kl = np.sum(np.exp(self._dense) * (self._dense - ours), axis=1)
        return {
            "kl": [float(f"{value:.6g}") for value in kl],
            "right": encode_bits(logits.argmax(axis=1) == labels),
            "share": facts["gmacs"] / self._dense_gmacs,
            **facts,
        }

    def _logits(self, reduction):
        def measure(outputs, batch):
            return {"logits": outputs.logits, "label": batch["label"]}

        vit = self._weights.pretrained(reduction)
        run = self._context.measurement(vit.model, vit.variables, measure)
        arrays = run()
        return vit, arrays["logits"], arrays["label"]

    @functools.cached_property
    def _dense(self):
        _, logits, _ = self._logits(settings.DENSE)
        return log_softmax(logits.astype(np.float64), axis=1)

    @functools.cached_property
    def _dense_gmacs(self):
        model = self._weights.model(settings.DENSE)
        return plan_facts(model, self._weights.config.image_size)["gmacs"]


def parts(context):
    """Every cell, the best ones at other costs, and the declared tests; parts.md."""
    divergence = Divergence(context)
    found = {cell: divergence.of(cell.reduction) for cell in cells()}
    found = {cell: each for cell, each in found.items() if each is not None}
    ordered = by_choice(found)
    chosen, spared = ordered[0], next(filter(_maps_spared(context), ordered))
    beside = {
        "published": divergence.of(PUBLISHED),
        "chosen": divergence.of(chosen.at(PUBLISHED_COST).reduction),
        "ToMe": divergence.of({"name": "tome", "macs": COST}),
        "MCTF": divergence.of({"name": "mctf", "macs": COST}),
    }
    for cell, cost in itertools.product(ordered[:BEST], OTHER_COSTS):
        each = divergence.of(cell.at(cost).reduction)
        if each is not None:
            found[cell.at(cost)] = each
    render.page(
        context,
        "parts",
        "selectors, schedules and fates, crossed",
        render.note(context),
        *(grid(found, fate, sized) for fate, sized in GRIDS),
        "### At other costs",
        costs(found, ordered[:BEST]),
        "### Shares of schedule and selector",
        shares_table(found),
        "### Contrasts",
        tests_table(contrasts(found)),
        f"### The chosen set: {_name(chosen)}; without attention map: {_name(spared)}",
        tests_table(primary(beside)),
        tests_table(secondary(found[chosen], found[spared], beside)),
        "### Fusion by other scores, without the attention map",
        *by_scores(divergence, found[chosen], found[spared]),
    )


def by_choice(found: Mapping[Cell, Measured]) -> list[Cell]:
    """Cells of `COST`, the least mean KL on even rows first."""
    cells = [cell for cell in found if cell.macs == COST]
    return sorted(cells, key=lambda cell: found[cell].of(EVEN).kl.mean())


def by_scores(divergence, chosen, spared) -> tuple[str, str]:
    """Table and tests of fusion that reads another score than the map's columns."""
    fused = Cell("mctf", "merged", "diffrate", True, COST).reduction
    found = {score: divergence.of({**fused, "score": score}) for score in SCORES}
    best = min(found, key=lambda score: found[score].of(EVEN).kl.mean())
    ours = found[best].of(ODD).kl
    return (
        render.table(
            [f"KL / acc1 at {COST}", *SCORES],
            [["fusion, diffrate", *map(_cell, found.values())]],
        ),
        tests_table(
            [
                paired(f"{best} - {name}", ours, other.of(ODD).kl, "KL")
                for name, other in (("chosen", chosen), ("no attention map", spared))
            ]
        ),
    )


def kept(path: str | pathlib.Path) -> dict[Cell, Measured]:
    """The cells of a points.jsonl, in the order of `cells`, then at other costs."""
    results = {}
    for line in pathlib.Path(path).read_text("utf-8").splitlines():
        point = json.loads(line)
        results[_key(point["setting"]["reduction"])] = point["result"]
    every = [cell.at(cost) for cost in (COST, *OTHER_COSTS) for cell in cells()]
    keys = {cell: _key(settings.completed(cell.reduction)) for cell in every}
    return {
        cell: Measured.of_json(results[key])
        for cell, key in keys.items()
        if key in results
    }


def _key(reduction):
    return json.dumps(reduction, sort_keys=True)


def draw(path: str | pathlib.Path, found: Mapping[Cell, Measured]):
    """A PNG of the mean KL on odd rows at `COST`: selectors by schedules, in color.

    Where tokens are merged with proportional attention, above where they are dropped.
    """
    rows = [(m, "merged", True) for m in MERGING] + [
        (m, "dropped", False) for m in DROPPING
    ]
    values = np.array(
        [
            [_kl(found.get(Cell(m, fate, s, sized, COST))) for s in SCHEDULES]
            for m, fate, sized in rows
        ]
    )
    figure = plotting.new_figure(9.5, 5.5, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(
        np.log10(values), cmap="viridis_r", vmin=-1.1, vmax=0.3, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        light = np.log10(value) > -0.6
        axes.text(
            column,
            row,
            f"{value:.2f}" if np.isfinite(value) else "",
            color="white" if light else "black",
            ha="center",
            va="center",
            fontsize=8,
        )
    names = [f"{_parts(fate)[m][0]}, {fate}" for m, fate, _ in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xticks(range(len(SCHEDULES)), SCHEDULES, rotation=30, ha="right")
    bar = figure.colorbar(drawn, label="KL divergence from the dense model")
    ticks = (0.1, 0.2, 0.5, 1, 2)
    bar.set_ticks(np.log10(ticks), labels=[f"{tick:g}" for tick in ticks])
    plotting.save_figure(figure, path)


def _kl(measured):
    return np.nan if measured is None else measured.of(ODD).kl.mean()


def _maps_spared(context):
    """Whether a cell reads no attention but the class token's."""

    def spared(cell):
        plan = context.pretrained.model(cell.reduction).plan
        return not any("attn_columns" in layer.reads for layer in plan)

    return spared


def _name(cell):
    sized = ", proportional attention" if cell.prop_attn else ""
    return f"{cell.selector}, {cell.fate}, {cell.schedule}{sized}"


# Tables of cells

GRIDS = (("merged", True), ("merged", False), ("dropped", False))


def grid(found, fate, prop_attn) -> str:
    """Mean KL and accuracy on odd rows at `COST`, selectors by schedules."""
    lines = []
    for method, (selector, _) in _parts(fate).items():
        at = [Cell(method, fate, s, prop_attn, COST) for s in SCHEDULES]
        lines.append([selector, *(_cell(found.get(cell)) for cell in at)])
    title = f"{fate}, {'with' if prop_attn else 'without'} proportional attention"
    head = [f"KL / acc1 at {COST}: {title}", *SCHEDULES]
    return render.table(head, lines)


def costs(found, chosen) -> str:
    """The same of the best cells, at all costs."""
    head = ["set", *map(str, (OTHER_COSTS[0], OTHER_COSTS[1], COST, OTHER_COSTS[2]))]
    lines = [
        [_name(cell), *(_cell(found.get(cell.at(float(cost)))) for cost in head[1:])]
        for cell in chosen
    ]
    return render.table(head, lines)


def _cell(measured):
    if measured is None:
        return ""
    odd = measured.of(ODD)
    return f"{odd.kl.mean():.3f} / {100 * odd.right.mean():.1f}"


# What is added to the declared shares: density peaks reduce before a block, so that the
# last one attends the two tokens with which DiffRate's shape ends.
WITHOUT = "without density peaks"
SHARED = [
    *((fate, [*parts]) for fate, parts in (("merged", MERGING), ("dropped", DROPPING))),
    *(
        (fate, [name for name in parts if name != "dpc_knn"])
        for fate, parts in (("merged", MERGING), ("dropped", DROPPING))
    ),
]


# Shares: a table of two factors without repetitions, of the mean log KL of its cells


def shares(table) -> np.ndarray:
    """(schedule, selector, interaction) as shares of the sum of squares.

    table: [selectors, schedules]
    """
    centered = table - table.mean()
    rows, columns = centered.mean(axis=1), centered.mean(axis=0)
    rest = centered - rows[:, None] - columns[None, :]
    squares = np.array(
        [
            len(rows) * np.sum(columns**2),
            len(columns) * np.sum(rows**2),
            np.sum(rest**2),
        ]
    )
    return squares / squares.sum()


def balanced(found, fate, names) -> tuple[list[str], np.ndarray]:
    """Schedules that all reach, and log KL [selectors, schedules, images].

    names: methods whose selectors count
    """
    sized = fate == "merged"
    at = {
        schedule: [Cell(name, fate, schedule, sized, COST) for name in names]
        for schedule in SCHEDULES
    }
    reached = [name for name, group in at.items() if all(c in found for c in group)]
    values = [
        [_log_kl(found[cell]) for cell in row]
        for row in zip(*(at[name] for name in reached), strict=True)
    ]
    return reached, np.array(values)


def _log_kl(measured):
    return np.log(np.maximum(measured.of(ODD).kl, SMALLEST))


def shares_table(found) -> str:
    """Shares of schedule, selector and interaction, by fate, with intervals."""
    lines = []
    for fate, names in SHARED:
        schedules, values = balanced(found, fate, names)
        images = values.shape[2]
        for place, name in enumerate(("schedule", "selector", "interaction")):
            estimate = statistics.bootstrap(
                lambda index, values=values, place=place: (
                    100.0 * shares(values[:, :, index].mean(axis=2))[place]
                ),
                images,
                REPEATS,
            )
            count = f"{values.shape[0]} x {len(schedules)}"
            shown = fate if len(names) == len(_parts(fate)) else f"{fate}, {WITHOUT}"
            lines.append([shown, count, name, statistics.format_estimate(estimate)])
    return render.table(["fate", "cells", "part", "share of log KL, %"], lines)


# Tests


@dataclasses.dataclass(frozen=True)
class Test:
    """A paired comparison: its mean difference, two-sided p, and what was compared."""

    name: str
    unit: str
    estimate: statistics.Estimate
    p: float


def paired(name: str, ours, theirs, unit: str = "log KL") -> Test:
    """Test of one number an image, by Student's t."""
    change = np.asarray(ours) - np.asarray(theirs)
    estimate = statistics.student(change)
    error = change.std(ddof=1) / np.sqrt(len(change))
    p = 2 * stdtr(len(change) - 1, -abs(change.mean()) / error) if error else 1.0
    return Test(name, unit, estimate, float(p))


def answers(name: str, ours: Measured, theirs: Measured) -> Test:
    """Test of right answers, by McNemar."""
    rights = ours.of(ODD).right, theirs.of(ODD).right
    change = statistics.paired_difference(*rights)
    return Test(name, "points", change, statistics.mcnemar(*rights))


def contrasts(found) -> list[Test]:
    """The three declared contrasts at `COST`, of odd rows."""

    def log_kl(method, fate, schedule):
        cell = found.get(Cell(method, fate, schedule, fate == "merged", COST))
        return None if cell is None else _log_kl(cell)

    def over(one, other):
        pairs = [(log_kl(*one, s), log_kl(*other, s)) for s in SCHEDULES]
        pairs = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
        return [np.mean(side, axis=0) for side in zip(*pairs, strict=True)]

    same = ("tome", "merged")
    return [
        paired(
            "B1 ToMe's matching: proportional - constant",
            log_kl(*same, "proportional"),
            log_kl(*same, "constant"),
        ),
        paired("B2 energy - similar keys, merged", *over(("pitome", "merged"), same)),
        paired("B3 similar keys: dropped - merged", *over(("tome", "dropped"), same)),
    ]


def primary(beside) -> list[Test]:
    """The chosen set minus the published list of its cost."""
    ours, theirs = (beside[name].of(ODD).kl for name in ("chosen", "published"))
    return [paired(f"C1 chosen - DiffRate at {PUBLISHED_COST}", ours, theirs, "KL")]


def secondary(chosen, spared, beside) -> list[Test]:
    """Chosen sets against published ToMe and MCTF at `COST`, in KL and accuracy."""
    pairs = [
        (f"{name} - {other}", ours, beside[other])
        for name, ours in (("chosen", chosen), ("no attention map", spared))
        for other in ("ToMe", "MCTF")
    ]
    tests = [
        paired(f"{name} at {COST}", a.of(ODD).kl, b.of(ODD).kl, "KL")
        for name, a, b in pairs
    ]
    pairs.append(("chosen - DiffRate", beside["chosen"], beside["published"]))
    return tests + [answers(f"{name}, acc1", a, b) for name, a, b in pairs]


def tests_table(tests: list[Test]) -> str:
    """Tests of one family, corrected together."""
    corrected = statistics.holm([test.p for test in tests])
    lines = [
        [
            test.name,
            test.unit,
            statistics.format_difference(
                test.estimate, 1 if test.unit == "points" else 3
            ),
            f"{test.p:.3g}",
            f"{holm:.3g}",
            "decided" if holm < LEVEL else "open",
        ]
        for test, holm in zip(tests, corrected, strict=True)
    ]
    head = ["comparison", "unit", "difference", "p", "p, Holm", "verdict"]
    return render.table(head, lines)
