"""The page on models trained from scratch, written whole from the JSONs of the runs."""

import numpy as np

from experiments import render
from experiments.scratch import contrasts
from experiments.scratch.systems import DENSE, NEAR, RANDOM
from imagepiece_jax.evaluate import statistics

REFERENCE = "imagepiece_conv"
STUDENT = 4  # seeds from which on intervals are Student's


def text(results: list[dict], plan: dict) -> str:
    """The page, of the runs that there are."""
    systems = {each["name"]: each for each in plan["systems"]}
    rights = {
        name: {
            result["seed"]: bits(result)
            for result in results
            if result["system"] == name
        }
        for name in systems
    }
    parts = [
        "# Trained from scratch, at equal cost, over seeds",
        _about(results, plan),
        _table(systems, rights, results),
        contrasts.section(results),
        _findings(systems, rights),
        _limits(systems, rights, plan),
        _how(plan, results),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def bits(result: dict) -> np.ndarray:
    """Which test images a run has right, bool [images]."""
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
    values = np.asarray(values, np.float64)
    if len(values) < STUDENT:
        return statistics.hierarchical_bootstrap(values)
    return statistics.student(values.mean(axis=1))


def _about(results, plan):
    made, seeds = plan["settings"], sorted({result["seed"] for result in results})
    wanted = len(seeds) * len(plan["systems"])
    train, test, classes = plan["images"]
    side = made["image_size"] // made["patch"]
    convolutions = made["patch"].bit_length() - 1  # each halves the sides
    there = "" if len(results) == wanted else f" ({len(results)} of {wanted} runs yet)"
    return (
        "`python -m experiments scratch` trains every system below from "
        f"random weights, its reduction at work from the first step, on {train:,} "
        f"images of {classes} classes ({plan['data']}), and evaluates it once, at the "
        f"end, on {test:,} others. Images of {made['image_size']} pixels, patches of "
        f"{made['patch']} ({side * side} and the class token), width {made['width']}, "
        f"{made['depth']} blocks, {plan['epochs']} epochs, seeds "
        f"{', '.join(map(str, seeds)) or 'none yet'}{there}. ImagePiece keeps "
        f"{made['keep_rate']:g} at a prune step; dropping is its control, whose merge "
        "steps drop as many of the least attended tokens instead; other reductions "
        "have the convolutional stem, and keep what costs as many GMACs. That stem has "
        f"{convolutions} convolutions of 3 x 3 at this patch size"
        f"{'' if convolutions == 4 else ', not four as in the paper'}."
    )


def _table(systems, rights, results):
    empty = {"gmacs": np.nan}
    dense = systems.get(DENSE, empty)["gmacs"]
    reference = systems.get(REFERENCE, empty)["gmacs"]
    head = ["system", "GMACs", "of dense", "to ImagePiece's cost", render.TOKENS_LEFT]
    head += ["acc1, %", "by seed", "to dense, conv stem, points"]
    head += ["to random tokens, points", "s an epoch"]
    lines = []
    for name, system in systems.items():
        line = [system["title"], f"{system['gmacs']:.4g}"]
        line.append(f"{100 * system['gmacs'] / dense:.0f} %" if dense > 0 else "")
        equal = system["reduction"]["name"] != "none" and name != REFERENCE
        equal = equal and reference > 0
        line.append(f"{100 * system['gmacs'] / reference - 100:+.1f} %" * equal)
        line.append(system["tokens"])
        if not rights[name]:
            lines.append([*line, render.BLANK, "", "", "", ""])
            continue
        each = [rights[name][seed] for seed in sorted(rights[name])]
        line.append(statistics.format_estimate(interval(100.0 * np.array(each))))
        line.append(" ".join(f"{100 * right.mean():.1f}" for right in each))
        for base in (DENSE, RANDOM):
            change = difference(rights[name], rights.get(base, {}))
            change = None if name == base else change
            line.append(statistics.format_difference(change))
        own = [s for r in results if r["system"] == name for s in r["seconds"]]
        lines.append([*line, f"{np.median(own):.1f}"])
    return render.table(head, lines)


def _findings(systems, rights):
    """What the intervals say, as sentences."""
    lines = []
    for base, what in (
        (DENSE, "the dense model with the same stem"),
        (RANDOM, "random tokens"),
    ):
        groups = {"above": [], "below": [], "level": []}
        for name, system in systems.items():
            change = difference(rights[name], rights.get(base, {}))
            if change is None or name == base:
                continue
            words = f"{system['title']} ({change.value:+.1f})"
            if statistics.is_noise(change):
                groups["level"].append(words)
            else:
                groups["above" if change.value > 0 else "below"].append(words)
        said = [
            f"{words} {', '.join(groups[kind])}"
            for kind, words in (
                ("above", "better, beyond its interval:"),
                ("below", "worse, beyond its interval:"),
                ("level", "no difference that the interval shows:"),
            )
            if groups[kind]
        ]
        if said:
            lines.append(f"- Compared with {what}: {'; '.join(said)}.")
    return "\n".join(["## What it shows", "", *lines]) if lines else ""


def _limits(systems, rights, plan):
    counts = {len(each) for each in rights.values() if each}
    seeds = min(counts, default=0)
    started = [one["title"] for one in systems.values() if one["start"]]
    epochs, train = plan["epochs"], plan["images"][0]
    lines = [
        "- It is no statement about ImageNet: "
        f"{train * epochs:,} images seen in a run are "
        f"{100 * train * epochs / (300 * 1_281_167):.2g} % of the 300 epochs of the "
        "paper, the models are small, and none has converged. Accuracies here compare "
        "with each other and with nothing else.",
    ]
    if seeds < STUDENT:
        lines.append(
            f"- {seeds} seeds say little about how much another seed would change. The "
            "intervals resample seeds and images (below); where seeds alone vary they "
            "hold the truth for 61 % of two seeds and 80 % of three, not for 95 %. "
            "They are not corrected for the number of comparisons."
        )
    else:
        lines.append(
            "- Intervals are over seeds, for these test images. Those of the declared "
            "contrasts alone are corrected for the number of comparisons."
        )
    if started:
        lines.append(
            f"- {' and '.join(started)} starts from the dense model of its seed and "
            f"learns from it, as published: its {epochs} epochs are a fine-tuning "
            f"after the {epochs} of that model, so it was trained for twice as many, "
            f"its backbone at {plan['settings']['backbone_lr']:g} of the rate. A part "
            "of its lead over others, or all of it, may be that."
        )
    return "\n".join(["## What it cannot show", "", *lines])


def _how(plan, results):
    made = plan["settings"]
    machines = sorted({result["device"] for result in results})
    hours = sum(sum(result["seconds"]) for result in results) / 3600
    low, high = made["crop_area"]
    spread = [
        abs(s["gmacs"]) for s in plan["systems"] if s["reduction"]["name"] != "none"
    ]
    seeds = {name: set() for name in (one["system"] for one in results)}
    for one in results:
        seeds[one["system"]].add(one["seed"])
    few = min(map(len, seeds.values()), default=0) < STUDENT
    student = (
        "- Intervals: Student's t over the seeds' means, systems paired by seed "
        "(`imagepiece_jax/evaluate/statistics.py`)."
    )
    resampled = (
        "- Intervals: the images are drawn again with replacement, and so are the "
        "seeds; in each of 4,000 repeats all seeds and both systems have the same "
        "images, and systems are paired by seed. The seeds' deviations are first "
        "widened by the root of k / (k - 1), since k seeds drawn again vary too little "
        "by that. Percentiles 2.5 and 97.5 (`imagepiece_jax/evaluate/statistics.py`)."
    )
    if few and any(len(each) >= STUDENT for each in seeds.values()):
        resampled += f" From {STUDENT} seeds on: Student's t over the seeds' means."
    lines = [
        resampled if few else student,
        f"- The same for all: {made['train_batch_size']} images a step, AdamW, rate "
        f"{made['peak_lr']:g} after a linear warm-up over {made['warmup_share']:.0%} "
        f"of the run, then a cosine; weight decay {made['weight_decay']:g}, gradients "
        f"clipped at {made['clip_norm']:g}, label smoothing "
        f"{made['label_smoothing']:g}, random crops of {low:.0%} to {high:.0%} of the "
        "area and flips; no mixup, no RandAugment, no average of the weights; "
        f"{made['dtype']}.",
        "- A seed decides the first weights, the order of the images and their crops; "
        "order, crops and the first weights of shared parts are the same for all "
        "systems of a seed.",
    ]
    if max(spread) / min(spread) > 1 + NEAR:
        lines.append(
            f"- At this size costs come in steps of more than {NEAR:.0%}: how equal "
            "they are is in the table."
        )
    if results:
        lines.append(
            f"- {hours:.2g} hours of training in all, on {', '.join(machines)}."
        )
    return "\n".join(["## How it was done", "", *lines])
