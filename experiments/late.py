"""At which depth should tokens leave? Late schedules beside others, at mild costs.

python -m experiments late --weights FILE --data csv:FILE --out FOLDER [--only NAMES]
python -m experiments late --list
python -m experiments late --out FOLDER --tables

docs/tables/late/declared.md declares it. A cell is a selector, a fate, a schedule and a
cost, and writes a line of FOLDER/runs.jsonl; the same command goes on with the cells
that have none. --only takes names, and patterns such as '*.late-2.*'. --tables writes
FOLDER/README.md from the lines that are there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import imagepiece_jax
from experiments import controls, dropping, parts, study
from experiments.damage import DAMAGE, damaged
from imagepiece_jax import cli
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.source import Subset
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models.variables import digest

WEIGHTS = cli.weights()
DATA = cli.data()
FOLDER = "docs/tables/late"
FLAGS = study.Flags(FOLDER)

# Selectors, with the methods whose they are: merged, dropped. What class attention
# drops are the tokens that are not among the most attended.
SELECTORS = {
    "similar keys": ("tome", "tome"),
    "energy": ("pitome", "pitome"),
    "most attended": ("attended", "evit"),
    "fusion": ("mctf", "mctf"),
    "density peaks": ("dpc_knn", "dpc_knn"),
    "agglomeration": ("atc", "atc"),
}
FATES = ("merged", "dropped")
BASE = "stages-3-6-9"
SCHEDULES = (BASE, "diffrate", "proportional-1", "late-1", "late-2", "late-3")
TESTED = "late-2"
COSTS = (0.85, 0.75, 0.66)  # of the dense model's MACs
NOISE = "noise .2"
ODD = slice(1, None, 2)
EVEN = slice(0, None, 2)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination at one cost."""

    selector: str
    fate: str
    schedule: str
    macs: float

    @property
    def method(self) -> str:
        return SELECTORS[self.selector][FATES.index(self.fate)]

    @property
    def name(self) -> str:
        return f"{self.method}.{self.fate}.{self.schedule}.{self.macs:g}"

    @property
    def reduction(self) -> dict[str, Any]:
        """Proportional attention where tokens are merged: else all sizes are 1."""
        merged = self.fate == "merged"
        cell = parts.Cell(self.method, self.fate, self.schedule, merged, self.macs)
        return dropping.as_method(cell.reduction)


class Dense(NamedTuple):
    """The cell of the model without a reduction."""

    name: str = "dense"
    reduction: None = None


DENSE = Dense()


def cells() -> Iterator[Any]:
    """All cells, in the order in which they run: what is tested comes first."""
    yield DENSE
    order = [BASE, TESTED]
    order += [name for name in SCHEDULES if name not in order]
    macs = (0.75, 0.66, 0.85)
    for schedule, share, fate, selector in itertools.product(
        order, macs, FATES, SELECTORS
    ):
        yield Cell(selector, fate, schedule, share)


# A cell


class Study:
    """The model, the images, and the dense model's answers.

    weights: a path that `load` takes
    photographs: a Source of images that have the model's size
    """

    def __init__(self, weights: str, photographs):
        self.vit = imagepiece_jax.load(weights)
        self.digests = {
            "weights": digest(self.vit.variables),
            "images": photographs.digest,
        }
        as_they_are = study.as_it_is(self.vit.image_size)
        odd = Subset(photographs, np.arange(len(photographs))[ODD])
        noisy = study.batches(odd, as_they_are)
        self.images = {
            "clean": list(study.batches(photographs, as_they_are)),
            "noise": [damaged(batch, DAMAGE[NOISE]) for batch in noisy],
        }

    @functools.cached_property
    def dense(self):
        """The dense model's logits, by condition."""
        answer = study.answerer(self.vit)
        return {name: answer(images) for name, images in self.images.items()}

    @controls.registered()
    def measure(self, cell) -> dict[str, Any]:
        """The figures of a cell, or why it has none."""
        if cell is DENSE:
            return self.figures(self.dense) | {"share": 1.0}
        try:
            vit = self.vit.with_reduction(cell.reduction)
        except InputError as error:
            return {"reduction": cell.reduction, "unreachable": str(error)}
        answer = study.answerer(vit)
        logits = {name: answer(images) for name, images in self.images.items()}
        share = vit.gmacs / self.vit.gmacs
        return {
            "reduction": vit.reduction.fields,
            "share": round(share, 4),
            **self.figures(logits),
        }

    def figures(self, logits) -> dict[str, Any]:
        """KL divergence and right answers of every image, by condition."""
        found = {}
        for name, images in self.images.items():
            own = logits[name]
            kl = study.divergence(self.dense[name], own)
            right = own.argmax(axis=1) == study.labels(images)
            found[name] = study.stored(kl, right)
        return found


# Results


class Results:
    """The lines of a folder of cells."""

    def __init__(self, folder):
        self.runs = study.read(cells(), folder)

    def judged(self, cell, condition: str) -> study.Judged | None:
        """Figures of a cell; None where it was not measured, or cannot be reached."""
        found = self.runs.get(cell)
        if found is None or condition not in found:
            return None
        return study.unpacked(found[condition])

    def unreachable(self, cell) -> bool:
        return "unreachable" in self.runs.get(cell, {})

    def mean_log_kl(self, fate, schedule, macs, condition) -> np.ndarray | None:
        """Log KL [images], the mean over all selectors; None where one is missing."""
        row = [Cell(selector, fate, schedule, macs) for selector in SELECTORS]
        found = [self.judged(cell, condition) for cell in row]
        if None in found:
            return None
        return np.mean([each.log_kl for each in found], axis=0)


def primary(results: Results) -> list[study.Test]:
    """L1 to L7."""
    tests = []
    for fate in FATES:
        for macs in COSTS:
            name = f"L{len(tests) + 1} {fate}, {macs:g}, mean of six selectors"
            ours = results.mean_log_kl(fate, TESTED, macs, "clean")
            theirs = results.mean_log_kl(fate, BASE, macs, "clean")
            tests.append(study.paired_test(name, "log KL", ours, theirs))
    name = "L7 class attention, dropped, 0.75"
    pair = []
    for schedule in (TESTED, BASE):
        cell = Cell("most attended", "dropped", schedule, 0.75)
        found = results.judged(cell, "clean")
        pair.append(None if found is None else found.log_kl)
    tests.append(study.paired_test(name, "log KL", *pair))
    return tests


class Choice(NamedTuple):
    """The schedule that even rows choose, and what odd rows say of it."""

    schedule: str
    change: Any  # Estimate of its mean log KL minus BASE's
    level: tuple[str, ...]  # schedules that odd rows do not tell from it


def choose(results: Results, fate: str, macs: float) -> Choice | None:
    """By the declared rule; None where a cell is not measured yet."""
    found = {}
    for schedule in SCHEDULES:
        row = [Cell(selector, fate, schedule, macs) for selector in SELECTORS]
        if any(results.unreachable(cell) for cell in row):
            continue
        log_kl = results.mean_log_kl(fate, schedule, macs, "clean")
        if log_kl is None:
            return None
        found[schedule] = log_kl
    best = min(found, key=lambda schedule: found[schedule][EVEN].mean())
    ours = found[best][ODD]
    level = []
    for schedule, log_kl in found.items():
        change = statistics.mean_difference(log_kl[ODD], ours)
        if schedule != best and change.low <= 0:
            level.append(schedule)
    change = statistics.mean_difference(ours, found[BASE][ODD])
    return Choice(best, change, tuple(level))


# The page

INTRODUCTION = """\
Written by `python -m experiments late --tables` from `runs.jsonl`.
[declared.md](declared.md) says what was declared before the cells were run. DeiT-Ti off
the shelf; KL is the mean divergence from the dense model, brackets are 95 % intervals
over images."""


def page(folder) -> str:
    """The tables of the cells that are there, as Markdown."""
    results = Results(folder)
    head = (f"{TESTED} - {BASE}", "unit", "difference")
    blocks = [
        "# When tokens should leave",
        INTRODUCTION,
        study.crops_text("photographs"),
        "## Tests",
        study.tests_table(primary(results), *head),
        "## Which schedule at which cost",
        choices_table(results),
    ]
    titles = {"clean": "1,000 photographs", "noise": f"{NOISE}, odd rows"}
    for condition, title in titles.items():
        for fate in FATES:
            blocks.append(f"## {fate.capitalize()}, {title}")
            blocks.append(figures_table(results, fate, condition))
            blocks.append(differences_table(results, fate, condition))
    return study.page(blocks, cells(), results.runs)


def choices_table(results) -> str:
    """The schedule that even rows choose, by fate and cost."""
    lines = []
    for fate, macs in itertools.product(FATES, COSTS):
        line = [fate, f"{macs:g}"]
        choice = choose(results, fate, macs)
        if choice is None:
            lines.append([*line, "not measured yet", "", ""])
            continue
        change = ""
        if choice.schedule != BASE:
            change = statistics.format_difference(choice.change, 3)
        level = ", ".join(choice.level) or "none"
        lines.append([*line, choice.schedule, change, level])
    head = ["fate", "MACs", "even rows choose", f"log KL to {BASE}, odd rows"]
    return markdown_table([*head, "not told from it on odd rows"], lines)


def grid(results, fate, text) -> list[list[str]]:
    """Rows of costs and selectors, with text(cell) for each schedule."""
    lines = []
    for macs, selector in itertools.product(COSTS, SELECTORS):
        row = [Cell(selector, fate, schedule, macs) for schedule in SCHEDULES]
        words = []
        for cell in row:
            unreachable = results.unreachable(cell)
            words.append("not reached" if unreachable else text(cell))
        lines.append([f"{macs:g}", selector, *words])
    return lines


def figures_table(results, fate, condition) -> str:
    """KL and accuracy of every cell."""
    dense = results.judged(DENSE, condition)

    def text(cell):
        found = results.judged(cell, condition)
        if found is None:
            return ""
        acc1 = 100 * found.right.mean()
        return f"{found.kl.mean():.4f} / {acc1:.1f}"

    head = "KL / acc1"
    if dense is not None:
        head += f"; dense {100 * dense.right.mean():.1f}"
    return markdown_table(["MACs", head, *SCHEDULES], grid(results, fate, text))


def differences_table(results, fate, condition) -> str:
    """Log KL and points of every cell, minus those of BASE with the same selector."""

    def text(cell):
        base = dataclasses.replace(cell, schedule=BASE)
        ours = results.judged(cell, condition)
        theirs = results.judged(base, condition)
        if cell == base or ours is None or theirs is None:
            return ""
        change = statistics.mean_difference(ours.log_kl, theirs.log_kl)
        points = statistics.paired_difference(ours.right, theirs.right)
        return (
            f"{statistics.format_estimate(change, 2, signs=True)} / "
            f"{statistics.format_estimate(points, signs=True)}"
        )

    head = ["MACs", f"log KL / points, to {BASE}", *SCHEDULES]
    return markdown_table(head, grid(results, fate, text))


def main():
    chosen = FLAGS.cells_to_run(cells(), page)
    if not chosen:
        return
    weights = cli.required(WEIGHTS)
    photographs = open_source(cli.required(DATA), "val", num_classes=1000)
    whole = Study(weights, photographs)
    study.run(chosen, FLAGS.folder, whole.digests, whole.measure)


if __name__ == "__main__":
    cli.run(main)
