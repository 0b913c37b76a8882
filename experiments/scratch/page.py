"""The page on models trained from scratch, written whole from the JSONs of the runs."""

import numpy as np

from experiments import intervals, render
from experiments.scratch.systems import DENSE, RANDOM
from imagepiece_jax.evaluate import statistics

STUDENT = 4  # seeds from which on intervals are Student's
NOTES = f"""\
Brackets are 95 % intervals, differences are paired by seed. From {STUDENT} seeds on
intervals are Student's over seeds, for these test images; of fewer seeds both seeds and
images are drawn again (`hierarchical_bootstrap`), and of two or three seeds such an
interval holds the truth for 61 or 80 % of seeds. A system that starts from another has
trained for twice as many epochs. Accuracies of models so small and so briefly trained
compare only with each other."""


def text(results: list[dict], plan: dict) -> str:
    """The page, of the runs that there are."""
    systems = {each["name"]: each for each in plan["systems"]}
    rights = {name: by_seed(results, name) for name in systems}
    parts = [
        "# Trained from scratch, at equal cost, over seeds",
        _settings_table(results, plan),
        _table(systems, rights),
        NOTES.replace("\n", " "),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def by_seed(results: list[dict], system: str) -> dict[int, np.ndarray]:
    """The test images that the runs of a system have right, by seed."""
    return {run["seed"]: bits(run) for run in results if run["system"] == system}


def bits(result: dict) -> np.ndarray:
    """The test images that a run has right, bool [images]."""
    packed = np.frombuffer(bytes.fromhex(result["right"]), np.uint8)
    return np.unpackbits(packed)[: result["images"]].astype(bool)


def difference(ours: dict, theirs: dict) -> statistics.Estimate | None:
    """Points of accuracy between two systems, paired by seed; None: no common seed."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return interval([100.0 * (ours[s].astype(float) - theirs[s]) for s in seeds])


def interval(values) -> statistics.Estimate:
    """Mean of [seeds, images]: by Student's t over seeds where there are enough."""
    if len(values) < STUDENT:
        return intervals.hierarchical_bootstrap(values)
    return intervals.student(np.mean(values, axis=1))


def _settings_table(results, plan):
    train, test, classes = plan["images"]
    seeds = sorted({result["seed"] for result in results})
    seconds = sum(sum(result["seconds"]) for result in results)
    rows = {
        "data": plan["data"],
        "training images": f"{train:,}",
        "test images": f"{test:,}",
        "classes": classes,
        **plan["settings"],
        "seeds": ", ".join(map(str, seeds)),
        "runs": f"{len(results)} of {len(seeds) * len(plan['systems'])}",
        "hours of training": f"{seconds / 3600:.2g}",
        "devices": ", ".join(sorted({result["device"] for result in results})),
    }
    return render.table(["setting", "value"], rows.items())


def _table(systems, rights):
    head = ["system", "GMACs", render.TOKENS_LEFT, "starts from", "acc1, %", "by seed"]
    head += ["to dense, conv stem, points", "to random tokens, points"]
    lines = []
    for name, system in systems.items():
        line = [system["title"], f"{system['gmacs']:.4g}"]
        line += [system["tokens"], system["start"]]
        if not rights[name]:
            lines.append([*line, render.BLANK, "", "", ""])
            continue
        each = [rights[name][seed] for seed in sorted(rights[name])]
        line.append(statistics.format_estimate(interval(100.0 * np.array(each))))
        line.append(" ".join(f"{100 * right.mean():.1f}" for right in each))
        for base in (DENSE, RANDOM):
            change = difference(rights[name], rights.get(base, {}))
            change = None if name == base else change
            line.append(statistics.format_difference(change))
        lines.append(line)
    return render.table(head, lines)
