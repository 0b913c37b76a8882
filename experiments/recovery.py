"""What `recover` gives back, on several models: a cell is a recovery, and a line.

python -m experiments.recovery --assets FOLDER --imagenette FOLDER [--only CELLS]
    [--weights NAME=PATH ..]
python -m experiments.recovery --table

Declared before any cell was run: `recover` with its defaults learns from 400 of the 500
photographs of odd index, evenly spaced, and nothing else of the recipe is chosen here.
Judged are 300 photographs of even index, evenly spaced, and 200 of imagenette's test
images at 224 pixels: the distance from the dense model, before and after, and how often
the first class is the dense model's. CELLS are in the order in which they run, with
seed 0; SEEDS has the cells that run with seeds 1 and 2, too. Every cell that has run is
in the table, whatever it says. A cell that has its line in docs/tables/recovery.jsonl
is not run again. --weights names models that are not public: "ten", DeiT-Ti fine-tuned
to imagenette's ten classes by configs/deit_ti_finetune_small.py.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import git_revision
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import Source, Subset
from imagepiece_jax.training import recovery_loss
from imagepiece_jax.training.recovery_images import evaluation_batches
from imagepiece_jax.training.recovery_step import Teacher

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINES = ROOT / "docs/tables/recovery.jsonl"
LEARNED = 400
JUDGED = {"photographs": 300, "imagenette": 200}


class Cell(NamedTuple):
    """A recovery."""

    model: str
    reduction: Any  # as `load` takes it
    size: int = 224
    seed: int = 0


def tome(macs):
    return f"tome:macs={macs}"


CELLS = {
    "dinov2-tome-.6": Cell("dinov2", tome(0.6)),
    "deit-.5": Cell("deit", 0.5),
    "dinov2-tome-.5": Cell("dinov2", tome(0.5)),
    "deit-160-.5": Cell("deit", 0.5, 160),
    "deit-tome-.5": Cell("deit", tome(0.5)),
    "deit-evit-.5": Cell("deit", "evit:macs=0.5"),
    "ten-.5": Cell("ten", 0.5),
    "deit-.6": Cell("deit", 0.6),
    "deit-.4": Cell("deit", 0.4),
    "deit-160-.6": Cell("deit", 0.6, 160),
    "deit-160-.4": Cell("deit", 0.4, 160),
    "two-.5": Cell("two", 0.5),
    "dinov2-.6": Cell("dinov2", 0.6),
    "dinov2-.5": Cell("dinov2", 0.5),
}
SEEDS = ("deit-.5", "dinov2-tome-.6")
for seed in (1, 2):
    for name in SEEDS:
        CELLS[f"{name}-seed{seed}"] = CELLS[name]._replace(seed=seed)


def loaded(cell: Cell, paths: dict[str, str]) -> imagepiece_jax.Pretrained:
    """The reduced model of a cell; "two" is DeiT-Ti with the heads of two classes."""
    path = paths["deit" if cell.model == "two" else cell.model]
    vit = imagepiece_jax.load(path, image_size=cell.size)
    if cell.model == "two":
        vit = of_two_classes(vit)
    return vit.with_reduction(cell.reduction)


def of_two_classes(vit):
    """DeiT-Ti that tells ImageNet's animals (0 to 397) from the rest: mean logits."""
    head = vit.variables["params"]["head"]
    parts = {}
    for name, value in head.items():
        sides = value[..., :398].mean(-1), value[..., 398:].mean(-1)
        parts[name] = np.stack(sides, -1)
    params = {**vit.variables["params"], "head": parts}
    return dataclasses.replace(
        vit,
        model=vit.model.clone(num_classes=2),
        variables={**vit.variables, "params": params},
        class_names=None,
    )


def judged(vit, source: Source) -> dict[str, float]:
    """Mean distances of a reduced model from the dense one, and equal first classes."""
    teacher = Teacher(
        vit.with_reduction(None), evaluation_batches(source, vit.preprocessing, 50)
    )
    student = parallel.replicate(vit.variables)
    read = teacher.comparison.read

    def terms(variables, pixels, targets):
        images = teacher.normalized(pixels)
        own = recovery_loss.answers(vit.model, variables, images, read)
        measured = teacher.comparison.measure(own, targets)
        return teacher.comparison.terms(own, targets) | measured

    program = parallel.pmap(terms)
    parts = []
    for batch, targets in teacher.held_out:
        found = parallel.local(program(student, batch["image"], targets))
        parts.append({name: found[name][batch["mask"]] for name in found})
    means = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        means[name] = round(float(values.mean()), 5)
    return means


def measured(cell: Cell, paths: dict[str, str], images: dict[str, Source]) -> dict:
    """The line of a cell."""
    began = time.monotonic()
    vit = loaded(cell, paths)
    better = imagepiece_jax.recover(vit, images["learned"], seed=cell.seed)
    minutes = (time.monotonic() - began) / 60
    (cost,) = better.recovery.costs
    record = cost.record
    elsewhere = {}
    for name in JUDGED:
        pair = [judged(each, images[name]) for each in (vit, better)]
        elsewhere[name] = dict(zip(("before", "after"), pair, strict=True))
    fields = ("measure", "before", "after", "interval", "steps", "rate", "changed")
    return {
        **cell._asdict(),
        **{name: record[name] for name in (*fields, "held_out", "curve")},
        "elsewhere": elsewhere,
        "minutes": round(minutes, 1),
        "revision": git_revision(),
    }


def images_of(assets: pathlib.Path, imagenette: pathlib.Path) -> dict[str, Source]:
    """The images that cells learn from, and those that judge them."""
    photographs = as_source(assets / "data/nips2017_224_jpg/images")
    odd = Subset(photographs, np.arange(1, len(photographs), 2))
    even = Subset(photographs, np.arange(0, len(photographs), 2))
    found = {"learned": odd.spread(LEARNED)}
    found["photographs"] = even.spread(JUDGED["photographs"])
    tests = as_source(imagenette)
    found["imagenette"] = tests.spread(JUDGED["imagenette"])
    return found


def read_lines() -> dict[str, dict]:
    """{cell: its line} of all cells that have run."""
    lines = {}
    if LINES.exists():
        for text in LINES.read_text("utf-8").splitlines():
            line = json.loads(text)
            lines[line.pop("cell")] = line
    return lines


def table(lines: dict[str, dict]) -> str:
    """The table of docs/recovery.md."""
    head = ["cell", "held out", "95 % of the change", *JUDGED, "minutes"]
    rows = []
    for name, line in lines.items():
        low, high = line["interval"]
        row = [name, f"{line['before']:.4f} -> {line['after']:.4f}"]
        row.append(f"{low:+.4f}, {high:+.4f}")
        for images in JUDGED:
            row.append(pairs_text(**line["elsewhere"][images]))
        rows.append([*row, f"{line['minutes']:.0f}"])
    return markdown_table(head, rows)


def pairs_text(before: dict[str, float], after: dict[str, float]) -> str:
    """Distances before and after, in text; of an encoder also by vector and maps."""
    text = f"{before['distance']:.4f} -> {after['distance']:.4f}"
    if "patches" not in before:
        shares = [f"{100 * each['agreement']:.1f}" for each in (before, after)]
        return f"{text}; {' -> '.join(shares)} %"
    for name, word in (("logits", "vector"), ("patches", "maps")):
        text += f"; {word} {before[name]:.4f} -> {after[name]:.4f}"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--assets", type=pathlib.Path)
    parser.add_argument("--imagenette", type=pathlib.Path, help="the folder val")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=[*CELLS])
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    lines = read_lines()
    if args.table:
        print(table(lines))
        return
    weights = args.assets / "weights"
    paths = {
        "deit": str(weights / "deit_tiny_patch16_224.pth"),
        "dinov2": str(weights / "dinov2_small"),
        **dict(pair.split("=", 1) for pair in args.weights),
    }
    images = images_of(args.assets, args.imagenette)
    for name in args.only:
        if name in lines or CELLS[name].model not in {*paths, "two"}:
            continue
        line = measured(CELLS[name], paths, images)
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": name, **line}) + "\n")


if __name__ == "__main__":
    main()
