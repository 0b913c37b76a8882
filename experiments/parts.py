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
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments import intervals, study
from experiments.study import Judged
from imagepiece_jax.common import plotting
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits, read_lines
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import DENSE, Reduction

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
        fields = {
            "name": self.method,
            "prop_attn": self.prop_attn,
            "macs": self.macs,
            "counts": self.schedule,
        }
        if self.method == "evit":
            fields["fuse_token"] = False
        elif self.fate == "dropped" and self.method != "random":
            fields["fate"] = "drop"
        return fields

    def at(self, macs: float) -> "Cell":
        return dataclasses.replace(self, macs=macs)

    def __str__(self):
        selector = SELECTORS[self.fate][self.method]
        words = [selector, self.fate, self.schedule]
        if self.prop_attn:
            words.append("proportional attention")
        return ", ".join(words)


class Answers(NamedTuple):
    """Which images were right, by `reduction_key`: bool [images], or means over seeds.

    The images of imagenette may stand in another order in another study's answers, so
    the dense model's stand among them.
    """

    photographs: Mapping[str, np.ndarray]  # the odd rows
    imagenette: Mapping[str, np.ndarray]  # all


def cells() -> Iterable[Cell]:
    """All cells of `COST`; where tokens are dropped all sizes are 1."""
    for method in MERGING:
        for schedule in SCHEDULES:
            yield Cell(method, "merged", schedule, True)
            yield Cell(method, "merged", schedule, False)
    for method in DROPPING:
        for schedule in SCHEDULES:
            yield Cell(method, "dropped", schedule, False)


def read_points() -> dict[str, Judged]:
    """Everything that points.jsonl has, by `reduction_key`."""
    points = {}
    for point in read_lines(FOLDER / "points.jsonl"):
        result = point["result"]
        kl = np.array(result["kl"])
        right = decode_bits(result["right"], len(kl))
        key = reduction_key(point["setting"]["reduction"])
        points[key] = Judged(kl, right)
    return points


def measured_cells(points: Mapping[str, Judged]) -> dict[Cell, Judged]:
    """The measured cells, at all costs."""
    found = {}
    for cost in COSTS:
        for each in cells():
            cell = each.at(cost)
            key = reduction_key(cell.reduction)
            if key in points:
                found[cell] = points[key]
    return found


def reduction_key(reduction: Mapping, side: int = SIDE) -> str:
    """Key of a reduction, its defaults filled in, at an image size.

    Its schedule and its fate are names alone, which the package has no longer.
    """
    if isinstance(reduction, Reduction):
        reduction = reduction.all_fields
    fields = dict(reduction)
    schedule = fields.pop("counts", None)
    fate = fields.pop("fate", None)
    if fields.get("macs") is not None:  # beside which the points have all fields
        for field in METHODS[fields["name"]].found_for_macs:
            fields.pop(field, None)
    key = [Reduction.read(fields).all_fields, schedule, fate, side]
    return json.dumps(key, sort_keys=True)


def by_choice(found: Mapping[Cell, Judged]) -> list[Cell]:
    """Cells of `COST`, the least mean KL on even rows first."""
    means = {}
    for cell, judged in found.items():
        if cell.macs == COST:
            means[cell] = judged.kl[EVEN].mean()
    return sorted(means, key=means.get)


def of_schedules(method: str, fate: str, prop_attn: bool | None = None) -> list[Cell]:
    """A cell for each schedule.

    prop_attn: proportional attention; None: where tokens are merged
    """
    if prop_attn is None:
        prop_attn = fate == "merged"
    return [Cell(method, fate, schedule, prop_attn) for schedule in SCHEDULES]


# Tables of cells


def grid(found, fate, prop_attn) -> str:
    """Mean KL and accuracy on odd rows at `COST`, selectors by schedules."""
    lines = []
    for method, selector in SELECTORS[fate].items():
        row = of_schedules(method, fate, prop_attn)
        figures = [figures_of(found.get(cell)) for cell in row]
        lines.append([selector, *figures])
    with_or_without = "with" if prop_attn else "without"
    title = f"{fate}, {with_or_without} proportional attention"
    return markdown_table([f"KL / acc1 at {COST}: {title}", *SCHEDULES], lines)


def draw(path: str | os.PathLike, found: Mapping[Cell, Judged]):
    """A PNG of the mean KL on odd rows at `COST`: selectors by schedules, in color.

    Where tokens are merged with proportional attention, above where they are dropped.
    """
    rows = {}
    for fate, selectors in SELECTORS.items():
        for method, selector in selectors.items():
            cells = of_schedules(method, fate, fate == "merged")
            rows[f"{selector}, {fate}"] = [found[cell].kl[ODD].mean() for cell in cells]
    values = np.log10([*rows.values()])
    figure = plotting.new_figure(9.5, 5.5, layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(values, aspect="auto", cmap="viridis_r")
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > middle else "black"
        look = {"ha": "center", "va": "center", "fontsize": 8, "color": color}
        axes.text(column, row, f"{10**value:.2f}", **look)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(SCHEDULES)), SCHEDULES, rotation=30, ha="right")
    bar = figure.colorbar(drawn, label="KL divergence from the dense model")
    ticks = (0.1, 0.2, 0.5, 1, 2, 5)
    bar.set_ticks(np.log10(ticks), labels=[f"{tick:g}" for tick in ticks])
    plotting.save_figure(figure, path, colors=144)


def costs(found, chosen) -> str:
    """The same figures of the best cells, at all costs."""
    lines = []
    for cell in chosen:
        figures = [figures_of(found.get(cell.at(cost))) for cost in COSTS]
        lines.append([str(cell), *figures])
    return markdown_table(["set", *map(str, COSTS)], lines)


def figures_of(judged: Judged | None) -> str:
    if judged is None:
        return ""
    kl = judged.kl[ODD].mean()
    acc1 = 100 * judged.right[ODD].mean()
    return f"{kl:.3f} / {acc1:.1f}"


# Shares: a table of two factors without repetitions, of the mean log KL of its cells


def shares(table) -> np.ndarray:
    """(schedule, selector, interaction) as shares of the sum of squares.

    table: [selectors, schedules]
    """
    centered = table - table.mean()
    selectors = centered.mean(axis=1)
    schedules = centered.mean(axis=0)
    rest = centered - selectors[:, None] - schedules[None, :]
    squares = [
        len(selectors) * np.sum(schedules**2),
        len(schedules) * np.sum(selectors**2),
        np.sum(rest**2),
    ]
    return np.array(squares) / np.sum(squares)


def balanced(found, fate, methods) -> np.ndarray:
    """Log KL [selectors, schedules, images] of the schedules that all methods reach."""
    rows = [of_schedules(name, fate) for name in methods]
    columns = []
    for column in zip(*rows, strict=True):
        if all(cell in found for cell in column):
            columns.append([odd_log_kl(found[cell]) for cell in column])
    return np.swapaxes(columns, 0, 1)


def odd_log_kl(judged: Judged) -> np.ndarray:
    return judged.log_kl[ODD]


def shares_table(found) -> str:
    """Shares of schedule, selector and interaction, by fate, with intervals.

    Rows without density peaks were added to the declared ones: these reduce before a
    block, so that the last one attends the two tokens with which DiffRate's shape ends.
    """
    lines = []
    for left_out, fate in itertools.product(("", "dpc_knn"), SELECTORS):
        methods = [name for name in SELECTORS[fate] if name != left_out]
        values = balanced(found, fate, methods)
        selectors, schedules, _ = values.shape
        label = f"{fate}, without density peaks" if left_out else fate
        for place, name in enumerate(("schedule", "selector", "interaction")):
            share = statistics.format_estimate(share_of(values, place))
            lines.append([label, f"{selectors} x {schedules}", name, share])
    return markdown_table(["fate", "cells", "part", "share of log KL, %"], lines)


def share_of(values: np.ndarray, place: int) -> statistics.Estimate:
    """Percent of one of the `shares` of [selectors, schedules, images]."""

    def share(index):
        means = values[:, :, index].mean(axis=2)
        return 100.0 * shares(means)[place]

    return intervals.bootstrap(share, values.shape[2])


# Tests


def contrasts(found) -> list[study.Test]:
    """The three declared contrasts at `COST`."""
    name = "B1 ToMe's matching: proportional - constant"
    pair = []
    for schedule in ("proportional", "constant"):
        cell = Cell("tome", "merged", schedule, True)
        pair.append(odd_log_kl(found[cell]))
    tests = [study.paired_test(name, "log KL", *pair)]
    similar = ("tome", "merged")
    for name, other in (
        ("B2 energy - similar keys, merged", ("pitome", "merged")),
        ("B3 similar keys: dropped - merged", ("tome", "dropped")),
    ):
        pair = mean_log_kl(found, other, similar)
        tests.append(study.paired_test(name, "log KL", *pair))
    return tests


def mean_log_kl(found, one: tuple[str, str], other: tuple[str, str]) -> np.ndarray:
    """Log KL [2, images], means over the schedules that both reach.

    one, other: (method, fate)
    """
    logs = []
    for pair in zip(of_schedules(*one), of_schedules(*other), strict=True):
        if all(cell in found for cell in pair):
            logs.append([odd_log_kl(found[cell]) for cell in pair])
    return np.mean(logs, axis=0)


def primary(points: Mapping[str, Judged]) -> study.Test:
    """C1: the chosen set minus DiffRate's published list, KL at its cost."""
    best, *_ = by_choice(measured_cells(points))
    chosen = best.at(PUBLISHED_COST).reduction
    ours = points[reduction_key(chosen)]
    theirs = points[reduction_key(PUBLISHED)]
    name = f"C1 chosen - DiffRate at {PUBLISHED_COST}"
    return study.paired_test(name, "KL", ours.kl[ODD], theirs.kl[ODD])


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
    ("H200", 256): "JAX, H200",
    ("H200, DeiT-S", 256): "JAX, H200, DeiT-S",
}


class Rounded(NamedTuple):
    """A setting in int8, and where it was timed."""

    name: str
    share: float  # of the dense MACs
    off_the_shelf: np.ndarray | None  # right answers on photographs
    recovered: np.ndarray | None  # likewise
    ratios: Mapping[tuple[str, int], list[float]]  # by (runtime, batch size)


def clock(recovered: Answers, rounded: Iterable[Rounded]) -> str:
    """Every timed setting, the dense model first, off the shelf and recovered.

    recovered: right answers of recovered models
    rounded: the last rows
    """
    by_model = {}
    for speed in read_lines(FOLDER / "clock.jsonl"):
        by_model.setdefault(speed["model"], []).append(speed)
    off = rights()
    rows = []
    for name, speeds in by_model.items():
        first = speeds[0]
        key = reduction_key(first["reduction"], first["image_size"])
        row = [name, f"{1 / first['macs']:.2f}"]
        for answers in (off, recovered):
            row.append(acc1_cell(answers.photographs.get(key)))
        for answers in (off, recovered):
            row.append(points_to_dense(answers, key))
        ratios = {
            (speed["runtime"], speed["batch"]): speed["ratio"] for speed in speeds
        }
        rows.append(row + ratio_cells(ratios))
    for each in rounded:
        row = [each.name, f"{each.share:.2f}"]
        row += [acc1_cell(each.off_the_shelf), acc1_cell(each.recovered), "", ""]
        rows.append(row + ratio_cells(each.ratios))
    head = ["setting", "MACs", "acc1, off the shelf", "acc1, recovered"]
    head += ["imagenette, off the shelf", "imagenette, recovered"]
    head += TIMED.values()
    return markdown_table(head, rows)


def ratio_cells(ratios: Mapping) -> list[str]:
    return [ratio_cell(ratios.get(place)) for place in TIMED]


def acc1_cell(right: np.ndarray | None) -> str:
    return "" if right is None else f"{100 * right.mean():.1f}"


def points_to_dense(answers: Answers, key: str) -> str:
    """Points on imagenette of a model to the dense one, whose images are the same."""
    dense = reduction_key(DENSE)
    reduced = answers.imagenette.get(key)
    if key == dense or reduced is None:
        return ""
    change = study.points(reduced, answers.imagenette[dense])
    return statistics.format_difference(change)


def rights() -> Answers:
    """Right answers of models off the shelf."""
    photographs = {}
    imagenette = {}
    points = read_lines(FOLDER / "points.jsonl")
    for point in (*points, *read_lines(FOLDER / "elsewhere.jsonl")):
        setting = point["setting"]
        result = point["result"]
        name = point["experiment"]
        if name not in ("parts", "level", "carried") or "damage" in setting:
            continue
        images = result.get("images") or len(result["kl"])
        right = decode_bits(result["right"], images)
        if name == "parts":  # those of "carried" are of odd rows already
            right = right[ODD]
        side, *_ = setting.get("resized", [SIDE])
        key = reduction_key(setting["reduction"], side)
        found = imagenette if name == "level" else photographs
        found.setdefault(key, right)
    return Answers(photographs, imagenette)


def ratio_cell(ratio: list[float] | None) -> str:
    """Times as fast as dense, with the lowest and the highest ratio."""
    if ratio is None:
        return ""
    value, *ends = ratio
    if not ends or ends == [value, value]:
        return f"{value:.2f}"
    return study.spread(ratio)
