"""How often a recovery is kept that changed nothing, or halved the divergence.

python -m experiments.chance

`recover` keeps the best of eight measures where `statistics.best_is_lower` says so. The
KLs are real: of single photographs, off the shelf and after recoveries of the study
`recover`, fold A. A draw takes some of them with replacement, and scales the measures
so that over all photographs their mean is the start's ("none") or half of it.
Writes docs/tables/recover/chance.json, and the table of chance.md there.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import recover, results, study
from imagepiece_jax.common.files import read_json, replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.evaluate.statistics import best_is_lower, mean_difference
from imagepiece_jax.training.recover import LEVEL, MEASURES

FOLDER = results.ROOT / recover.FOLDER
PAGE = FOLDER / "chance.md"
FILE = FOLDER / "chance.json"
DRAWS = 500
HELD_OUT = (16, 40, 100)  # numbers of images
CHANGES = {"none": 1.0, "halved": 0.5}  # the mean of a measure, as a share of the start
# Recoveries of three blocks at .5, each of which is a measure
RECOVERIES = ("chosen.A1", "chosen.A2", "chosen.A3", "base.A0", "kl.A0", "mixed.A0")
RECOVERIES += ("norms.A0", "images-100.A0")
EIGHT = "most attended, 3 blocks, .5; eight recoveries"
# Students whose measures lie between the start and one recovery
STUDENTS = ("three-0.5", "three-0.4", "spread-0.4", "shape-0.4", "evit-0.5")


def divergences(name: str) -> np.ndarray:
    """The KLs of a run on fold A's odd photographs. [500]"""
    kl = np.array(study.read_runs(FOLDER)[name]["judged"]["kl"])
    return kl[1::2] if len(kl) == 1000 else kl


def eight_recoveries() -> tuple[np.ndarray, np.ndarray]:
    """(KLs of the start [500], of eight recoveries that differ [8, 500])."""
    measures = [divergences(f"three-0.5.{name}") for name in RECOVERIES]
    return divergences("three-0.5.off"), np.stack(measures)


def moments(student: str) -> tuple[np.ndarray, np.ndarray]:
    """(KLs of the start, of eight moments of a recovery), as `eight_recoveries`.

    The study kept no image's KL on the way. A moment is a weighted geometric mean of
    start and end, and each image's deviates from it by 15 %.
    """
    start = divergences(f"{student}.off")
    end = divergences(f"{student}.chosen.A1")
    draw = np.random.default_rng(1)
    measures = []
    for share in np.linspace(0.3, 1.0, MEASURES):
        logs = (1 - share) * np.log(start + 1e-5) + share * np.log(end + 1e-5)
        measures.append(np.exp(logs + 0.15 * draw.normal(size=len(logs))))
    return start, np.stack(measures)


def shares_kept(
    start: np.ndarray, measures: np.ndarray, images: int, draws: int = DRAWS
) -> dict[str, float]:
    """Percent of draws in which the best of the measures is kept, by two rules.

    start: [n], measures: [measures, n], with the means that the change has
    images: number of images in a draw
    """
    draw = np.random.default_rng(0)
    ranks = 0
    student = 0
    for _ in range(draws):
        drawn = draw.integers(0, len(start), images)
        own = start[drawn]
        found = measures[:, drawn]
        best = found[found.mean(1).argmin()]
        ranks += best_is_lower(found, own) < LEVEL
        student += mean_difference(best, own).high < 0
    return {"ranks": 100 * ranks / draws, "student": 100 * student / draws}


def scaled(start: np.ndarray, measures: np.ndarray, change: float) -> np.ndarray:
    """Measures whose means are a share of the start's."""
    return measures * (change * start.mean() / measures.mean(1, keepdims=True))


def all_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{text of a case: (KLs of the start, of the measures)}."""
    cases = {EIGHT: eight_recoveries()}
    for student in STUDENTS:
        cases[recover.STUDENTS[student].text] = moments(student)
    return cases


def simulated() -> list[dict[str, Any]]:
    """A row of shares for every case, number of images and change."""
    rows = []
    for text, (start, measures) in all_cases().items():
        for images in HELD_OUT:
            for change, share in CHANGES.items():
                own = scaled(start, measures, share)
                kept = shares_kept(start, own, images)
                rows.append({"case": text, "images": images, "change": change, **kept})
    return rows


def table(rows: list[Mapping[str, Any]]) -> str:
    """The table of chance.md."""
    found = {}
    for row in rows:
        key = row["case"], row["images"]
        found.setdefault(key, {})[row["change"]] = row
    lines = []
    for (case, images), changes in found.items():
        line = [case, images]
        for rule in ("ranks", "student"):
            line += [f"{changes[change][rule]:.1f}" for change in CHANGES]
        lines.append(line)
    head = ["measures", "images held out", "none", "halved"]
    head += ["none, by Student's interval", "halved, by Student's interval"]
    return markdown_table(head, lines)


def tables() -> dict[str, str]:
    """The table of the page, by the name in its marks."""
    return {"recovery-chance": table(read_json(FILE)["rows"])}


def main():
    write_json(FILE, {"draws": DRAWS, "rows": simulated()})
    replace_file(PAGE, results.filled(PAGE.read_text("utf-8"), tables()))


if __name__ == "__main__":
    main()
