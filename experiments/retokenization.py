"""The declared experiment on retokenization: tables from the lines of its runs.

What was compared, with margins and rules, is declared in
docs/tables/retokenization/declared.md, and the experiment is over: nothing that decides
here may change. experiments/README.md says by which code its runs were made. Figures
are means over seeds, brackets Student's 95 % intervals over seeds, for these test
images.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments import intervals, published, study
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate import statistics

FOLDER = pathlib.Path(__file__).parent.parent / "docs" / "tables" / "retokenization"
STEMS = ("conv", "patch")
NAMES = {"dense": "dense", "imagepiece": "ImagePiece", "dropping": "dropping"}
TITLES = {
    f"{name}_{stem}": f"{NAMES[name]}, {stem} stem"
    for name, stem in itertools.product(NAMES, STEMS)
}
SEEDS = tuple(range(6))
RATES = ("0.8", "0.6", "0.4")  # whose mean accuracy P1 compares
LEVEL = 0.05  # of all three tests together


def read_runs(
    folder: pathlib.Path = FOLDER, systems: Iterable[str] = TITLES
) -> dict[str, list[dict]]:
    """The runs of each system, by seed."""
    found = study.read_runs(folder)
    runs = {}
    for name in systems:
        runs[name] = [found[f"{name}_seed{seed}"] for seed in SEEDS]
    return runs


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Points of a contrast, [seeds], and what was declared of it."""

    name: str
    claim: str
    points: np.ndarray
    bound: float  # the tested hypothesis: the mean is at most this
    refuted_at: float  # the claim is refuted where the interval ends at or below this
    strictly: bool = False  # refuted only where it ends below

    @property
    def estimate(self) -> statistics.Estimate:
        return intervals.student(self.points)

    @property
    def p(self) -> float:
        test = stats.ttest_1samp(self.points, self.bound, alternative="greater")
        return test.pvalue

    def verdict(self, holm: float) -> str:
        """ "supported", "refuted" or "open", by the interval and Holm's p."""
        interval = self.estimate
        if interval.low > self.bound and holm < LEVEL:
            return "supported"
        if interval.high < self.refuted_at:
            return "refuted"
        if interval.high == self.refuted_at and not self.strictly:
            return "refuted"
        return "open"


def accuracy(runs: Sequence[dict], rate: str = "trained") -> np.ndarray:
    """Accuracy in percent of the runs of a system at a keep rate, [seeds]."""
    trained_rate = runs[0]["settings"]["keep_rate"]
    if rate not in ("trained", f"{trained_rate:g}"):
        runs = [run["harsher"][rate] for run in runs]
    return np.array([run["acc1"] for run in runs])


def change(runs, ours, theirs, rates=("trained",)) -> np.ndarray:
    """Points that `ours` has more than `theirs`, mean over rates, [seeds]."""
    by_rate = []
    for rate in rates:
        points = accuracy(runs[ours], rate) - accuracy(runs[theirs], rate)
        by_rate.append(points)
    return np.mean(by_rate, axis=0)


def contrasts(runs: Mapping[str, Sequence[dict]]) -> tuple[Contrast, ...]:
    """The declared contrasts P1, P2 and P3."""
    merging = []
    to_dense = {}
    for stem in STEMS:
        ours = f"imagepiece_{stem}"
        merging.append(change(runs, ours, f"dropping_{stem}", RATES))
        to_dense[stem] = change(runs, ours, f"dense_{stem}")
    conv = to_dense["conv"]
    return (
        Contrast(
            "P1",
            "merging beats dropping",
            np.mean(merging, axis=0),
            bound=0.0,
            refuted_at=1.0,
            strictly=True,
        ),
        Contrast(
            "P2",
            "the conv stem makes merging safe",
            conv - to_dense["patch"],
            bound=0.0,
            refuted_at=0.0,
        ),
        Contrast(
            "P3",
            "ImagePiece is not worse than dense",
            conv,
            bound=-1.0,
            refuted_at=-1.0,
        ),
    )


def declared_table(declared: Sequence[Contrast]) -> str:
    """Table of P1, P2 and P3 with their verdicts."""
    corrected = statistics.holm([contrast.p for contrast in declared])
    lines = []
    for contrast, holm in zip(declared, corrected, strict=True):
        line = [
            contrast.name,
            contrast.claim,
            statistics.format_estimate(contrast.estimate, 2),
            f"at most {contrast.bound:g}",
            f"{contrast.p:.3g}",
            f"{holm:.3g}",
            contrast.verdict(holm),
        ]
        lines.append(line)
    head = ["", "claim", "points", "tested: it is", "p", "p, Holm", "verdict"]
    return markdown_table(head, lines)


def described_table(runs: Mapping[str, Sequence[dict]]) -> str:
    """Table of the differences that were not tested."""
    lines = []
    for name, points in described(runs):
        lines.append([name, mean_cell(points, 2)])
    return markdown_table(["", "points"], lines)


def described(runs) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, points [seeds]) of differences that were not tested.

    Dropping - dense, and its P2, were added after the declaration.
    """
    merged = {}
    dropped = {}
    for stem in STEMS:
        pair = (f"imagepiece_{stem}", f"dropping_{stem}")
        name = f"ImagePiece - dropping, {stem} stem"
        yield f"{name}, P1's rates", change(runs, *pair, RATES)
        for rate in RATES:
            yield f"{name}, keep {rate}", change(runs, *pair, (rate,))
        dense = f"dense_{stem}"
        merged[stem] = change(runs, f"imagepiece_{stem}", dense)
        yield f"ImagePiece - dense, {stem} stem", merged[stem]
        dropped[stem] = change(runs, f"dropping_{stem}", dense)
        yield f"dropping - dense, {stem} stem", dropped[stem]
    by_stem = dropped["conv"] - dropped["patch"]
    yield "P2 of dropping: (dropping - dense), conv stem - patch stem", by_stem
    yield "P2 - P2 of dropping", merged["conv"] - merged["patch"] - by_stem
    paper = change(runs, "imagepiece_conv", "dense_patch")
    yield "ImagePiece, conv stem - dense, patch stem (the paper's)", paper
    dense = change(runs, "dense_conv", "dense_patch")
    yield "dense, conv stem - dense, patch stem", dense


def accuracy_table(runs: Mapping[str, Sequence[dict]], field: str, title: str) -> str:
    """Accuracy as trained, and of each entry of a field, where a system has some.

    field: "harsher", keep rates without training, or "masked", masks of one patch
    title: of an entry's column, such as "keep {}"
    """
    lines = []
    entries = []
    for name, label in TITLES.items():
        first = runs[name][0]
        if not first[field]:
            continue
        entries = list(first[field])
        line = [label, mean_cell(accuracy(runs[name]), 1)]
        for entry in entries:
            accuracies = [run[field][entry]["acc1"] for run in runs[name]]
            line.append(mean_cell(accuracies, 1))
        lines.append(line)
    head = ["acc1, %", "as trained", *map(title.format, entries)]
    return markdown_table(head, lines)


def merges_table(runs: Mapping[str, Sequence[dict]]) -> str:
    """Measures of ImagePiece's merges (the paper's tables 5, 6 and 8), by stem."""
    head = [""]
    head += [f"{stem} stem, DeiT-S ({published.LABEL})" for stem in STEMS]
    names = [f"imagepiece_{stem}" for stem in STEMS]
    head += [TITLES[name] for name in names]
    lines = []
    for measure in measures():
        line = [measure.label]
        for figure in (measure.conv, measure.patch):
            line.append("" if figure is None else str(figure))
        for name in names:
            values = []
            for run in runs[name]:
                value, _, _ = functools.reduce(dict.get, measure.path, run["merges"])
                values.append(value)
            line.append(mean_cell(values, measure.digits))
        lines.append(line)
    return markdown_table(head, lines)


class Measure(NamedTuple):
    """A measure of merges, and what is published of it with either stem."""

    label: str
    path: tuple[str, ...]  # where a run's `merges` have it
    digits: int
    conv: float | None = None
    patch: float | None = None


def measures() -> Iterator[Measure]:
    """All measures of the table."""
    for block, theirs in published.REASSESS.items():
        label = f"merged tokens that count as attentive in layer {block + 1}, %"
        yield Measure(label, ("reassess", str(block), "own"), 1, theirs)
    first, last = published.SIMILARITY["ImagePiece"]
    patch = published.LCB_SIMILARITY["patch"]
    label = "similarity of merged pairs, lowest 1 % of images"
    path = ("similarity", "lowest first")
    yield Measure(f"{label}, first merge", path, 3, first, patch)
    path = ("similarity", "lowest last")
    yield Measure(f"{label}, last merge", path, 3, last)
    label = "similarity at the first merge, all images: of"
    path = ("lcb-similarity", "pairs")
    yield Measure(f"{label} merged pairs", path, 3)
    path = ("lcb-similarity", "candidates")
    yield Measure(f"{label} all pairs of candidates", path, 3)
    path = ("lcb-similarity", "distance")
    yield Measure("distance of these merged pairs, patches", path, 2)


def mean_cell(values, digits: int) -> str:
    """Mean over seeds with Student's interval."""
    return statistics.format_estimate(intervals.student(values), digits)
