"""The declared experiment on retokenization: tables from the JSONs of its runs.

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
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from experiments import intervals, published
from imagepiece_jax.common.files import read_json
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
    return {
        name: [read_json(folder / f"{name}_seed{seed}.json") for seed in SEEDS]
        for name in systems
    }


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
        return stats.ttest_1samp(self.points, self.bound, alternative="greater").pvalue

    def verdict(self, holm: float) -> str:
        """ "supported", "refuted" or "open", by the interval and Holm's p."""
        interval = self.estimate
        if interval.low > self.bound and holm < LEVEL:
            return "supported"
        at_end = interval.high == self.refuted_at and not self.strictly
        return "refuted" if interval.high < self.refuted_at or at_end else "open"


def accuracy(runs: Sequence[dict], rate: str = "trained") -> np.ndarray:
    """Accuracy in percent of the runs of a system at a keep rate, [seeds]."""
    if rate in ("trained", f"{runs[0]['settings']['keep_rate']:g}"):
        return np.array([run["acc1"] for run in runs])
    return np.array([run["harsher"][rate]["acc1"] for run in runs])


def _change(runs, ours, theirs, rates=("trained",)):
    """Points that `ours` has more than `theirs`, mean over rates. -> [seeds]."""
    each = [accuracy(runs[ours], r) - accuracy(runs[theirs], r) for r in rates]
    return np.mean(each, axis=0)


def contrasts(runs: Mapping[str, Sequence[dict]]) -> tuple[Contrast, ...]:
    """P1, P2 and P3."""
    change = functools.partial(_change, runs)
    merging = [change(f"imagepiece_{s}", f"dropping_{s}", RATES) for s in STEMS]
    conv, patch = (change(f"imagepiece_{s}", f"dense_{s}") for s in STEMS)
    beats = "P1", "merging beats dropping", np.mean(merging, axis=0)
    return (
        Contrast(*beats, bound=0.0, refuted_at=1.0, strictly=True),
        Contrast("P2", "the conv stem makes merging safe", conv - patch, 0.0, 0.0),
        Contrast("P3", "ImagePiece is not worse than dense", conv, -1.0, -1.0),
    )


def declared_table(declared: Sequence[Contrast]) -> str:
    """P1, P2 and P3 with their verdicts."""
    corrected = statistics.holm([each.p for each in declared])
    lines = []
    for each, holm in zip(declared, corrected, strict=True):
        points = statistics.format_estimate(each.estimate, 2)
        line = [each.name, each.claim, points, f"at most {each.bound:g}"]
        lines.append([*line, f"{each.p:.3g}", f"{holm:.3g}", each.verdict(holm)])
    head = ["", "claim", "points", "tested: it is", "p", "p, Holm", "verdict"]
    return markdown_table(head, lines)


def described_table(runs: Mapping[str, Sequence[dict]]) -> str:
    """Differences that were not tested."""
    lines = [[name, _mean(points, 2)] for name, points in _described(runs)]
    return markdown_table(["", "points"], lines)


def _described(runs):
    """(name, points [seeds]); dropping - dense and its P2 were added afterwards."""
    change = functools.partial(_change, runs)
    merged = {}
    dropped = {}
    for stem in STEMS:
        pair = (f"imagepiece_{stem}", f"dropping_{stem}")
        name = f"ImagePiece - dropping, {stem} stem"
        yield f"{name}, P1's rates", change(*pair, RATES)
        for rate in RATES:
            yield f"{name}, keep {rate}", change(*pair, (rate,))
        merged[stem] = change(f"imagepiece_{stem}", f"dense_{stem}")
        yield f"ImagePiece - dense, {stem} stem", merged[stem]
        dropped[stem] = change(f"dropping_{stem}", f"dense_{stem}")
        yield f"dropping - dense, {stem} stem", dropped[stem]
    by_stem = dropped["conv"] - dropped["patch"]
    yield "P2 of dropping: (dropping - dense), conv stem - patch stem", by_stem
    yield "P2 - P2 of dropping", merged["conv"] - merged["patch"] - by_stem
    paper = change("imagepiece_conv", "dense_patch")
    yield "ImagePiece, conv stem - dense, patch stem (the paper's)", paper
    yield "dense, conv stem - dense, patch stem", change("dense_conv", "dense_patch")


def accuracy_table(runs: Mapping[str, Sequence[dict]], field: str, title: str) -> str:
    """Accuracy as trained, and of each entry of a field, where a system has some.

    field: "harsher", keep rates without training, or "masked", masks of one patch
    title: of an entry's column, such as "keep {}"
    """
    lines = []
    for name, label in TITLES.items():
        if columns := [*runs[name][0][field]]:
            each = [[run[field][e]["acc1"] for run in runs[name]] for e in columns]
            each = [accuracy(runs[name]), *each]
            lines.append([label, *(_mean(accuracies, 1) for accuracies in each)])
    head = ["acc1, %", "as trained", *map(title.format, columns)]
    return markdown_table(head, lines)


def merges_table(runs: Mapping[str, Sequence[dict]]) -> str:
    """Measures of ImagePiece's merges (the paper's tables 5, 6 and 8), by stem."""
    names = [f"imagepiece_{stem}" for stem in STEMS]
    lines = []
    for label, path, digits, theirs in _measures():
        line = [label, *("" if value is None else str(value) for value in theirs)]
        for name in names:
            figures = [run["merges"] for run in runs[name]]
            values = [functools.reduce(dict.get, path, each) for each in figures]
            line.append(_mean([value for value, _, _ in values], digits))
        lines.append(line)
    head = ["", *(f"{stem} stem, DeiT-S ({published.LABEL})" for stem in STEMS)]
    return markdown_table([*head, *(TITLES[name] for name in names)], lines)


def _measures():
    """(label, where it is, digits, published with either stem) of each measure."""
    for block, theirs in published.REASSESS.items():
        label = f"merged tokens that count as attentive in layer {block + 1}, %"
        yield label, ("reassess", str(block), "own"), 1, (theirs, None)
    first, last = published.SIMILARITY["ImagePiece"]
    patch = published.LCB_SIMILARITY["patch"]
    lowest = "similarity of merged pairs, lowest 1 % of images"
    yield f"{lowest}, first merge", ("similarity", "lowest first"), 3, (first, patch)
    yield f"{lowest}, last merge", ("similarity", "lowest last"), 3, (last, None)
    at = "lcb-similarity"
    every = "similarity at the first merge, all images: of "
    yield f"{every}merged pairs", (at, "pairs"), 3, (None, None)
    yield f"{every}all pairs of candidates", (at, "candidates"), 3, (None, None)
    yield "distance of these merged pairs, patches", (at, "distance"), 2, (None, None)


def _mean(values, digits):
    return statistics.format_estimate(intervals.student(values), digits)
