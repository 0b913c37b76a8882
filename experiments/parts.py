"""The parts of the methods, crossed: tables from the points that were measured.

Every cell is one checkpoint with one selector, one schedule, merged or dropped, with
and without proportional attention, at one cost. What was tested, and how, is declared
in docs/tables/parts/declared.md; the experiment is over. `points.jsonl` there has the
KL divergence from the dense model and the right answers of every image by cell,
`elsewhere.jsonl` those of the chosen sets on other images, and `clock.jsonl` times by
`tools.onnx_speed` and `tools.compile_only`. Even rows chose, odd rows test.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments import intervals, study
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits
from imagepiece_jax.reduction import settings

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "tables" / "parts"
# "curve", which the package no longer has, is the S of 1 / (1 + exp(-8 (x - .5))) over
# the depth x, scaled to fall from 1 to 1 less the strength.
SCHEDULES = (
    *("constant", "proportional", "proportional-1", "stages-3-6-9"),
    *("stages-1-2-7-11", "stages-1-2-3-6", "imagepiece", "diffrate", "curve"),
)
MERGING = {
    "tome": "similar keys",
    "pitome": "energy",
    "diffrate": "most attended",
    "mctf": "fusion",
    "dpc_knn": "density peaks",
    "atc": "agglomeration",
}
# DiffRate's tokens, dropped, are those of class attention.
DROPPING = {"evit": "class attention", "random": "random"} | {
    name: selector for name, selector in MERGING.items() if name != "diffrate"
}
SELECTORS = {"merged": MERGING, "dropped": DROPPING}
COST = 0.5  # of choice and tests
COSTS = (0.75, 0.6, 0.5, 0.4)
PUBLISHED = {"name": "diffrate", "target": 0.6}
PUBLISHED_COST = 0.522
SMALLEST = 1e-8  # a KL whose logarithm is taken
ODD = slice(1, None, 2)
EVEN = slice(0, None, 2)
SIDE = 224


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of parts at one cost."""

    method: str
    fate: str  # "merged" or "dropped"
    schedule: str
    prop_attn: bool
    macs: float = COST

    @property
    def reduction(self) -> dict:
        fields = {"macs": self.macs, "counts": self.schedule}
        if self.method == "evit":
            fields["fuse_token"] = False
        elif self.fate == "dropped" and self.method != "random":
            fields["fate"] = "drop"
        return {"name": self.method, "prop_attn": self.prop_attn, **fields}

    def at(self, macs: float) -> "Cell":
        return dataclasses.replace(self, macs=macs)

    def __str__(self):
        sized = ", proportional attention" if self.prop_attn else ""
        selector = SELECTORS[self.fate][self.method]
        return f"{selector}, {self.fate}, {self.schedule}{sized}"


class Measured(NamedTuple):
    """KL divergences [images] of a cell, and which images were right, bool [images]."""

    kl: np.ndarray
    right: np.ndarray


class Answers(NamedTuple):
    """Which images were right, bool [images], by `reduction_key`."""

    photographs: Mapping[str, np.ndarray]  # the odd rows
    imagenette: Mapping[str, np.ndarray]  # all


def cells() -> Iterable[Cell]:
    """All cells of `COST`; where tokens are dropped all sizes are 1."""
    for method, schedule, sized in itertools.product(MERGING, SCHEDULES, (True, False)):
        yield Cell(method, "merged", schedule, sized)
    for method, schedule in itertools.product(DROPPING, SCHEDULES):
        yield Cell(method, "dropped", schedule, False)


def read_points() -> dict[str, Measured]:
    """Everything that points.jsonl has, by `reduction_key`."""
    points = {}
    for point in read_lines("points.jsonl"):
        result = point["result"]
        right = decode_bits(result["right"], len(result["kl"]))
        key = reduction_key(point["setting"]["reduction"])
        points[key] = Measured(np.array(result["kl"]), right)
    return points


def measured_cells(points: Mapping[str, Measured]) -> dict[Cell, Measured]:
    """The measured cells."""
    every = [cell.at(cost) for cost, cell in itertools.product(COSTS, cells())]
    keys = {cell: reduction_key(cell.reduction) for cell in every}
    return {cell: points[key] for cell, key in keys.items() if key in points}


def reduction_key(reduction: Mapping, side: int = SIDE) -> str:
    """Key of a reduction, its defaults filled in, at an image size.

    Its schedule is a name alone, as one of them is no longer in the package.
    """
    fields = dict(reduction)
    schedule = fields.pop("counts", None)
    return json.dumps([settings.with_defaults(fields), schedule, side], sort_keys=True)


def read_lines(name: str) -> Iterable[dict]:
    return map(json.loads, (FOLDER / name).read_text("utf-8").splitlines())


def by_choice(found: Mapping[Cell, Measured]) -> list[Cell]:
    """Cells of `COST`, the least mean KL on even rows first."""
    ours = [cell for cell in found if cell.macs == COST]
    return sorted(ours, key=lambda cell: found[cell].kl[EVEN].mean())


def of_schedules(method: str, fate: str, prop_attn: bool | None = None) -> list[Cell]:
    """A cell for each schedule; proportional attention where tokens are merged."""
    sized = fate == "merged" if prop_attn is None else prop_attn
    return [Cell(method, fate, schedule, sized) for schedule in SCHEDULES]


# Tables of cells


def grid(found, fate, prop_attn) -> str:
    """Mean KL and accuracy on odd rows at `COST`, selectors by schedules."""
    lines = []
    for method, selector in SELECTORS[fate].items():
        row = of_schedules(method, fate, prop_attn)
        lines.append([selector, *(_figures(found.get(cell)) for cell in row)])
    title = f"{fate}, {'with' if prop_attn else 'without'} proportional attention"
    return markdown_table([f"KL / acc1 at {COST}: {title}", *SCHEDULES], lines)


def costs(found, chosen) -> str:
    """The same figures of the best cells, at all costs."""
    lines = [
        [str(cell), *(_figures(found.get(cell.at(cost))) for cost in COSTS)]
        for cell in chosen
    ]
    return markdown_table(["set", *map(str, COSTS)], lines)


def _figures(measured):
    if measured is None:
        return ""
    return f"{measured.kl[ODD].mean():.3f} / {100 * measured.right[ODD].mean():.1f}"


# Shares: a table of two factors without repetitions, of the mean log KL of its cells


def shares(table) -> np.ndarray:
    """(schedule, selector, interaction) as shares of the sum of squares.

    table: [selectors, schedules]
    """
    centered = table - table.mean()
    rows = centered.mean(axis=1)
    columns = centered.mean(axis=0)
    rest = centered - rows[:, None] - columns[None, :]
    squares = len(rows) * np.sum(columns**2), len(columns) * np.sum(rows**2)
    squares = np.array([*squares, np.sum(rest**2)])
    return squares / squares.sum()


def balanced(found, fate, methods) -> np.ndarray:
    """Log KL [selectors, schedules, images] of the schedules that all methods reach."""
    columns = zip(*(of_schedules(name, fate) for name in methods), strict=True)
    reached = [column for column in columns if all(cell in found for cell in column)]
    values = [[_log_kl(found[cell]) for cell in column] for column in reached]
    return np.swapaxes(values, 0, 1)


def _log_kl(measured):
    return np.log(np.maximum(measured.kl[ODD], SMALLEST))


def shares_table(found) -> str:
    """Shares of schedule, selector and interaction, by fate, with intervals.

    Rows without density peaks were added to the declared ones: these reduce before a
    block, so that the last one attends the two tokens with which DiffRate's shape ends.
    """
    lines = []
    for left_out, fate in itertools.product(("", "dpc_knn"), SELECTORS):
        methods = [name for name in SELECTORS[fate] if name != left_out]
        values = balanced(found, fate, methods)
        label = f"{fate}, without density peaks" if left_out else fate
        for place, name in enumerate(("schedule", "selector", "interaction")):

            def share(index, values=values, place=place):
                return 100.0 * shares(values[:, :, index].mean(axis=2))[place]

            estimate = intervals.bootstrap(share, values.shape[2])
            line = [label, f"{values.shape[0]} x {values.shape[1]}", name]
            lines.append([*line, statistics.format_estimate(estimate)])
    return markdown_table(["fate", "cells", "part", "share of log KL, %"], lines)


# Tests


def contrasts(found) -> list[study.Test]:
    """The three declared contrasts at `COST`."""

    def over(one, other):
        pairs = zip(of_schedules(*one), of_schedules(*other), strict=True)
        pairs = [pair for pair in pairs if all(cell in found for cell in pair)]
        logs = [[_log_kl(found[cell]) for cell in pair] for pair in pairs]
        return np.mean(logs, axis=0)

    def tome(schedule):
        return _log_kl(found[Cell("tome", "merged", schedule, True)])

    similar = ("tome", "merged")
    pairs = {
        "B1 ToMe's matching: proportional - constant": (
            tome("proportional"),
            tome("constant"),
        ),
        "B2 energy - similar keys, merged": over(("pitome", "merged"), similar),
        "B3 similar keys: dropped - merged": over(("tome", "dropped"), similar),
    }
    return [study.paired_test(name, "log KL", *pair) for name, pair in pairs.items()]


def primary(points: Mapping[str, Measured]) -> study.Test:
    """C1: the chosen set minus DiffRate's published list, KL at its cost."""
    best = by_choice(measured_cells(points))[0].at(PUBLISHED_COST)
    ours, theirs = (
        points[reduction_key(each)].kl[ODD] for each in (best.reduction, PUBLISHED)
    )
    name = f"C1 chosen - DiffRate at {PUBLISHED_COST}"
    return study.paired_test(name, "KL", ours, theirs)


def tests_table(tests: Iterable[study.Test]) -> str:
    """Tests of one family, corrected together."""
    return study.tests_table(tests, "comparison", "unit", "difference")


# Settings by time

TIMED = {  # (runtime, batch size): heading
    ("JAX", 8): "JAX, CPU",
    ("OpenVINO", 8): "OpenVINO, CPU",
    ("onnxruntime", 8): "onnxruntime, CPU",
    ("JAX", 1): "JAX, CPU, batch 1",
    ("OpenVINO", 1): "OpenVINO, CPU, batch 1",
    ("H200", 256): "H200, estimated",
    ("H200, DeiT-S", 256): "H200, DeiT-S, estimated",
}


def clock(recovered: Answers, left_out: tuple[str, ...] = ()) -> str:
    """Every timed setting, the dense model first, off the shelf and recovered.

    recovered: right answers of recovered models
    left_out: words of settings and columns that are not in the table, which then has
        no intervals of times either
    """
    speeds = list(read_lines("clock.jsonl"))
    off = rights()
    rows = []
    for name in dict.fromkeys(speed["model"] for speed in speeds):
        own = [speed for speed in speeds if speed["model"] == name]
        key = reduction_key(own[0]["reduction"], own[0]["image_size"])
        ratios = {(speed["runtime"], speed["batch"]): speed["ratio"] for speed in own}
        row = [name, f"{1 / own[0]['macs']:.2f}"]
        row += [_acc1(answers.photographs.get(key)) for answers in (off, recovered)]
        row += [_points_to_dense(answers, key, off) for answers in (off, recovered)]
        row += [_ratio(ratios.get(place), not left_out) for place in TIMED]
        rows.append(row)
    head = ["setting", "MACs", "acc1, off the shelf", "acc1, recovered"]
    head += ["imagenette, off the shelf", "imagenette, recovered"]
    head += TIMED.values()

    def stays(text):
        return not any(word in text for word in left_out)

    columns = [stays(name) for name in head]
    rows = [list(itertools.compress(row, columns)) for row in rows if stays(row[0])]
    return markdown_table(list(itertools.compress(head, columns)), rows)


def _acc1(right) -> str:
    return "" if right is None else f"{100 * right.mean():.1f}"


def _points_to_dense(answers, key, off) -> str:
    """Points on imagenette of a model to the dense one."""
    dense = reduction_key(settings.DENSE)
    if key == dense or key not in answers.imagenette:
        return ""
    pair = answers.imagenette[key], off.imagenette[dense]
    return statistics.format_difference(statistics.paired_difference(*pair))


def rights() -> Answers:
    """Right answers of models off the shelf."""
    photographs = {}
    imagenette = {}
    for point in (*read_lines("points.jsonl"), *read_lines("elsewhere.jsonl")):
        setting = point["setting"]
        result = point["result"]
        name = point["experiment"]
        if name not in ("parts", "level", "carried") or "damage" in setting:
            continue
        images = result["images"] if "images" in result else len(result["kl"])
        right = decode_bits(result["right"], images)
        side = setting.get("resized", [SIDE])[0]
        found = imagenette if name == "level" else photographs
        right = right[ODD] if name == "parts" else right  # carried: odd rows already
        found.setdefault(reduction_key(setting["reduction"], side), right)
    return Answers(photographs, imagenette)


def _ratio(ratio, spread):
    if ratio is None:
        return ""
    value, *ends = ratio
    spread = spread and ends and ends != [value, value]
    return f"{value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if spread else "")
