"""The three declared contrasts of retokenization, from the JSONs of the runs.

Declared, with margins and rules, in `DECLARED` before the first run: nothing that
decides here may change after that.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from experiments import render
from imagepiece_jax.evaluate import statistics

DECLARED = "docs/tables/retokenization/declared.md"
SYSTEMS = tuple(
    f"{name}_{stem}"
    for name in ("dense", "imagepiece", "dropping")
    for stem in ("patch", "conv")
)
SEEDS = tuple(range(6))
RATES = ("0.8", "0.6", "0.4")  # whose mean accuracy P1 compares
LEVEL = 0.05  # of all three tests together
FEWEST = 2  # seeds
DEVIATION = 0.6  # points, of paired differences between seeds: what was expected
POWER = 0.8416  # quantile of the normal: four of five repetitions


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Points of a contrast, [seeds], and what was declared of it.

    bound: the hypothesis that is tested is that the mean is at most this; refuted_at:
    the claim is refuted where the interval ends at or below this (`strictly`: below).
    """

    name: str
    claim: str
    points: np.ndarray
    bound: float
    refuted_at: float
    strictly: bool = False

    @property
    def estimate(self) -> statistics.Estimate:
        return statistics.student(self.points)

    @property
    def p(self) -> float:
        return statistics.student_p(self.points, self.bound)

    def verdict(self, holm: float) -> str:
        """ "supported", "refuted" or "open", by the interval and Holm's p."""
        interval = self.estimate
        if interval.low > self.bound and holm < LEVEL:
            return "supported"
        at_end = interval.high == self.refuted_at and not self.strictly
        return "refuted" if interval.high < self.refuted_at or at_end else "open"


def contrasts(accuracies: Mapping[str, Mapping[int, Mapping[str, float]]]):
    """P1, P2 and P3 as Contrasts, of the seeds that all six systems have.

    accuracies: system -> seed -> {keep rate or "trained": percent}. None for fewer than
    two such seeds.
    """
    if len(_seeds(accuracies)) < FEWEST:
        return None

    def change(ours, theirs, rates=("trained",)):
        return _change(accuracies, ours, theirs, rates)

    def over_stems(stem):
        return change(f"imagepiece_{stem}", f"dropping_{stem}", RATES)

    def to_dense(stem):
        return change(f"imagepiece_{stem}", f"dense_{stem}")

    merging = (over_stems("patch") + over_stems("conv")) / 2
    safe = to_dense("conv") - to_dense("patch")
    return (
        Contrast("P1", "merging beats dropping", merging, 0.0, 1.0, strictly=True),
        Contrast("P2", "the conv stem makes merging safe", safe, 0.0, 0.0),
        Contrast(
            "P3", "ImagePiece is not worse than dense", to_dense("conv"), -1.0, -1.0
        ),
    )


def read(results: list[dict]) -> dict[str, dict[int, dict[str, float]]]:
    """`accuracies` of the JSONs of those runs that were made for the contrasts."""
    accuracies = {}
    for result in results:
        trained = {f"{result['settings']['keep_rate']:g}": result["acc1"]}
        harsher = {rate: each["acc1"] for rate, each in result["harsher"].items()}
        by_rate = {"trained": result["acc1"], **trained, **harsher}
        if result["system"] in SYSTEMS and by_rate.keys() >= _needed(result["system"]):
            accuracies.setdefault(result["system"], {})[result["seed"]] = by_rate
    return accuracies


def _needed(system):
    return set() if system.startswith("dense") else set(RATES)


def section(results: list[dict]) -> str:
    """A part of the page; empty without two seeds of all six systems."""
    accuracies = read(results)
    declared = contrasts(accuracies)
    if declared is None:
        return ""
    count = len(declared[0].points)
    return "\n\n".join(
        [
            "## The declared contrasts",
            f"Over {count} seeds, by the rules of {DECLARED}. {_power(count)}",
            declared_table(declared),
            "Described, not tested:",
            beside_table(accuracies),
        ]
    )


def declared_table(declared: Sequence[Contrast]) -> str:
    """P1, P2 and P3 with their verdicts."""
    corrected = statistics.holm([each.p for each in declared])
    lines = [
        [
            each.name,
            each.claim,
            statistics.format_estimate(each.estimate, 2),
            f"at most {each.bound:g}",
            f"{each.p:.3g}",
            f"{holm:.3g}",
            each.verdict(holm),
        ]
        for each, holm in zip(declared, corrected, strict=True)
    ]
    head = ["", "claim", "points", "tested: it is", "p", "p, Holm", "verdict"]
    return render.table(head, lines)


def beside_table(accuracies) -> str:
    """What stands beside the contrasts, of the seeds that all six systems have."""
    lines = [
        [name, statistics.format_estimate(statistics.student(points), 2)]
        for name, points in _descriptive(accuracies)
    ]
    return render.table(["", "points"], lines)


# What a schedule is worth, declared in TRAINED_DECLARED: (claim, system, less system).
TRAINED_DECLARED = "docs/tables/trained_schedules/declared.md"
TRAINED = {
    "T1": ("class attention: proportional - stages", "evit_proportional", "evit"),
    "T2": ("ToMe's matching: proportional - constant", "tome_proportional", "tome"),
}


def trained_schedules(results: list[dict]) -> str:
    """A part of the page: T1 and T2, two-sided; empty without two seeds of all four."""
    found = {}
    for result in results:
        found.setdefault(result["system"], {})[result["seed"]] = result["acc1"]
    systems = [name for _, *pair in TRAINED.values() for name in pair]
    seeds = sorted(set.intersection(*(set(found.get(name, ())) for name in systems)))
    if len(seeds) < FEWEST:
        return ""
    points = [
        np.array([found[ours][seed] - found[theirs][seed] for seed in seeds])
        for _, ours, theirs in TRAINED.values()
    ]
    p = [
        2 * min(statistics.student_p(sign * each, 0.0) for sign in (1, -1))
        for each in points
    ]
    lines = [
        [
            name,
            claim,
            statistics.format_difference(statistics.student(each), 2),
            f"{one:.3g}",
            f"{holm:.3g}",
            "decided" if holm < LEVEL else "open",
        ]
        for (name, (claim, *_)), each, one, holm in zip(
            TRAINED.items(), points, p, statistics.holm(p), strict=True
        )
    ]
    head = ["", "contrast", "points", "p", "p, Holm", "verdict"]
    return "\n\n".join(
        [
            "## What a schedule is worth",
            f"Over {len(seeds)} seeds, by the rules of {TRAINED_DECLARED}.",
            render.table(head, lines),
        ]
    )


def _descriptive(accuracies):
    """(name, points [seeds]) of what stands beside the contrasts.

    What says dropping - dense, or P2 of dropping, was added when results were known.
    """
    change, merged, dropped = functools.partial(_change, accuracies), {}, {}
    for stem in ("conv", "patch"):
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


def _change(accuracies, ours, theirs, rates=("trained",)):
    """Points that `ours` has more than `theirs`, mean over rates. -> [seeds]."""
    pairs = [(accuracies[ours][s], accuracies[theirs][s]) for s in _seeds(accuracies)]
    return np.array([np.mean([a[r] - b[r] for r in rates]) for a, b in pairs])


def _seeds(accuracies):
    """Those that all six systems have."""
    return sorted(set.intersection(*(set(accuracies.get(s, ())) for s in SYSTEMS)))


def _power(seeds):
    """Which difference so many seeds show, as a sentence."""
    reach = stdtrit(seeds - 1, 0.975) + POWER  # standard errors
    shown = reach * DEVIATION / np.sqrt(seeds)
    return (
        f"Where paired differences deviate by {DEVIATION:g} points between seeds, "
        f"{seeds} seeds show {shown:.2g} points in four of five repetitions "
        f"({np.sqrt(2) * shown:.2g} of P2, a difference of two)."
    )
