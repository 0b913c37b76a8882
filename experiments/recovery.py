"""What `recover` gives back on several models; a cell is a recovery, and a line.

python -m experiments.recovery --assets FOLDER --imagenette FOLDER [--only CELLS]

Declared before any cell ran: `recover` with its defaults learns from 400 of the 500
photographs of odd index, evenly spaced, and no part of the recipe is chosen here.
DINOv2 gets 20 minutes instead (declared before its first cell ran). 300 photographs of
even index, evenly spaced, and 200 of imagenette's test images at 224 pixels judge: by
the distance from the dense model, before and after, and by the share of equal first
classes. A cell with a line in docs/results/recovery.jsonl is not run again.

"mean" is DeiT-Ti whose head reads the mean of the patches, untrained for it: it stands
in for a tower without class token. Its cells were added later, to compare reductions in
twelve, six and three blocks.

"peaks-COST-FOLD" has DeiT-Ti's accuracy in README's table: fold A learns from the even
photographs and answers for the odd ones, fold B the reverse. 100 even photographs chose
the recipe before last, and 300 odd ones the method (docs/results/peaks/declared.md):
none of them counts. "readme-COST-FOLD" has the same for `attended`.
`python -m experiments.results` writes the tables of the pages.

Patches that share a token at the end share a vector, where the dense model has one for
each: `unreachable` is the change of the maps that no shared vector can avoid.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import imagepiece_jax
from experiments import study
from experiments.peaks import judging_photographs
from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import git_revision, read_json_lines
from imagepiece_jax.common.statistics import format_estimate, paired_difference
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.evaluation.result_cache import decode_bits, encode_bits
from imagepiece_jax.recovery.recovery_images import read_image_batches
from imagepiece_jax.recovery.recovery_loss import relative_change
from imagepiece_jax.recovery.recovery_step import DenseTeacher
from imagepiece_jax.reduction.methods.recommended import LEAST_STAGED_MACS
from imagepiece_jax.reduction.provenance import follow_patches

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINES = ROOT / "docs/results/recovery.jsonl"
LEARNED = 400
JUDGED = {"photographs": 300, "imagenette": 200}
MINUTES = {"dinov2": 20}  # in place of the default number of steps


class Cell(NamedTuple):
    """A recovery."""

    model: str
    reduction: Any  # as `load` takes it
    size: int = 224
    seed: int = 0
    images: str = "learned"  # of `open_sources`


THREE = "stages-3-6-9"
SIX = "stages-0-2-4-6-8-10"


def in_blocks(method, macs):
    """In three blocks; below .45, where these lose more, in all except the first."""
    schedule = THREE if macs >= LEAST_STAGED_MACS else "proportional-1"
    return f"{method}:macs={macs}:counts={schedule}"


CELLS = {
    "dinov2-tome-.6": Cell("dinov2", "tome:macs=0.6"),
    "deit-.5": Cell("deit", in_blocks("attended", 0.5)),
    "dinov2-tome-.5": Cell("dinov2", "tome:macs=0.5"),
    "deit-160-.5": Cell("deit", in_blocks("attended", 0.5), 160),
    "deit-tome-.5": Cell("deit", "tome:macs=0.5"),
    "deit-evit-.5": Cell("deit", "evit:macs=0.5"),
    "deit-.6": Cell("deit", in_blocks("attended", 0.6)),
    "deit-.4": Cell("deit", in_blocks("attended", 0.4)),
    "deit-160-.6": Cell("deit", in_blocks("attended", 0.6), 160),
    "deit-160-.4": Cell("deit", in_blocks("attended", 0.4), 160),
    "mean-160-tome-.5": Cell("mean", "tome:macs=0.5", 160),
    "mean-160-tome-six-.5": Cell("mean", f"tome:macs=0.5:counts={SIX}", 160),
    "mean-160-tome-three-.5": Cell("mean", f"tome:macs=0.5:counts={THREE}", 160),
}
FOLDS = {"A": 1, "B": 0}  # the first judged photograph; every second one follows
COSTS = (0.6, 0.5, 0.4)
for cost in COSTS:
    for fold in FOLDS:
        for start, method in (("readme", "attended"), ("peaks", "peaks")):
            cell = Cell("deit", in_blocks(method, cost), images=fold)
            CELLS[f"{start}-{cost}-{fold}"] = cell
CELLS["deit-peaks-.5"] = Cell("deit", in_blocks("peaks", 0.5))
for seed in (1, 2):
    CELLS[f"deit-.5-seed{seed}"] = CELLS["deit-.5"]._replace(seed=seed)


def load_cell(cell, paths):
    """The reduced model of a cell."""
    path = paths["deit" if cell.model == "mean" else cell.model]
    vit = imagepiece_jax.load(path, image_size=cell.size)
    if cell.model == "mean":
        vit = study.mean_pooled(vit)
    return vit.with_reduction(cell.reduction)


def judge_recovery(vit, recovered, source):
    """Mean distances of a reduced model from the dense one, and equal first classes.

    Returns {"before": .., "after": ..}, of the model and of its recovered form.
    """
    teacher = DenseTeacher(vit.with_reduction(None))
    batches = read_image_batches(source, vit.preprocessing, 50)
    answered = teacher.pair_outputs(batches)

    def terms(variables, pixels, targets):
        images = teacher.normalize_pixels(pixels)
        outputs = teacher.comparison.compute_outputs(vit.model, variables, images)
        distances = teacher.comparison.loss_terms(outputs, targets)
        distances["logits"] = distances.pop("outputs")
        distances |= teacher.comparison.measure_images(outputs, targets)
        if "patches" in teacher.comparison.term_weights:
            change = unreachable_change(vit.model, variables, images, targets)
            distances["unreachable"] = change
        return distances

    program = parallel.pmap(terms)
    means = {}
    for word, model in (("before", vit), ("after", recovered)):
        student = parallel.replicate(model.variables)
        values = collections.defaultdict(list)  # {distance: of every image}
        for batch, targets in answered:
            distances = parallel.local_rows(program(student, batch["image"], targets))
            for name, of_batch in distances.items():
                values[name] += [*of_batch[batch["mask"]]]
        means[word] = {
            name: round(float(np.mean(of_images)), 5)
            for name, of_images in values.items()
        }
    return means


def unreachable_change(model, variables, images, targets):
    """The least change of patches that share tokens as they do in a model. [B].

    A token's best vector is the mean of the dense model's vectors of its patches, each
    divided by its square, as in `relative_change`.

    targets: the dense model's `answers`
    """
    outputs = model.with_execution(head_only=True).apply(variables, images)
    slot = follow_patches(outputs.results)[-1].token_of_patch
    patches = targets["patches"]
    share = 1 / jnp.sum(patches**2, axis=-1, keepdims=True)
    holds = jax.nn.one_hot(slot, patches.shape[1])  # [B, n, tokens]; 0 for DROPPED
    sums = jnp.einsum("bnt,bnd->btd", holds, share * patches)
    shares = jnp.einsum("bnt,bnd->btd", holds, share)
    best = jnp.einsum("bnt,btd->bnd", holds, sums / jnp.maximum(shares, 1e-12))
    return relative_change(best, patches, jnp.sum(holds, axis=-1))


def encode_right_answers(vit, source):
    """Which images of a source have the right first class, as bits in base64."""
    labels = source.labels[source.indices]
    right = np.zeros(len(source), bool)
    # The photographs are stored in the model's size: none is resized.
    whole = dataclasses.replace(vit.preprocessing, resize="none")
    batches = read_image_batches(source, whole, 50)
    for batch, answers in DenseTeacher(vit).pair_outputs(batches):
        is_image = batch["mask"]  # and not padding
        first = np.argmax(parallel.local_rows(answers)["outputs"], axis=-1)[is_image]
        index = batch["index"][is_image]
        right[index] = first == labels[index]
    return encode_bits(right)


def right_answers(lines, first_word, cost):
    """Right answers of both folds' judging photographs, bool, by name.

    first_word: "readme" or "peaks", of the cells' names
    Returns "dense", "before" and "after"; None if a fold has no line.
    """
    names = {fold: f"{first_word}-{cost}-{fold}" for fold in FOLDS}
    if not {*names.values()} <= lines.keys():
        return None
    is_judging = np.isin(np.arange(1000), judging_photographs())
    parts = {"dense": [], "before": [], "after": []}
    for fold, first in FOLDS.items():
        for name, text in lines[names[fold]]["right"].items():
            right = decode_bits(text, 1000)[first::2]
            parts[name].append(right[is_judging[first::2]])
    return {name: np.concatenate(parts[name]) for name in parts}


def points_lost(lines, first_word):
    """Points of accuracy to the dense model, off the shelf and recovered, by cost."""
    points = {}
    for cost in COSTS:
        if right := right_answers(lines, first_word, cost):
            lost = paired_difference(right["dense"], right["before"])
            recovered = paired_difference(right["dense"], right["after"])
            points[cost] = (lost, recovered)
    return points


def recovered_table(lines):
    """Points lost by peaks and by attended, off the shelf and recovered."""
    rows = []
    by_peaks = points_lost(lines, "peaks")
    by_attended = points_lost(lines, "readme")
    for cost in [cost for cost in COSTS if cost in by_peaks and cost in by_attended]:
        lost = map(format_estimate, (*by_peaks[cost], *by_attended[cost]))
        right = [right_answers(lines, s, cost)["after"] for s in ("peaks", "readme")]
        gain = format_estimate(paired_difference(*right), signs=True)
        rows.append([f"{cost:g}", *lost, gain])
    head = ["share", "peaks", "peaks, recovered", "attended", "attended, recovered"]
    return markdown_table([*head, "recovered peaks minus recovered attended"], rows)


def measure_cell(cell, paths, images):
    """The line of a cell."""
    start = time.monotonic()
    vit = load_cell(cell, paths)
    options = {"seed": cell.seed, "minutes": MINUTES.get(cell.model)}
    recovered = imagepiece_jax.recover(vit, images[cell.images], **options)
    minutes = (time.monotonic() - start) / 60
    (variant,) = recovered.recovery.variants
    line = cell._asdict()
    for name in ("measure", "before", "after", "interval", "steps", "changed"):
        line[name] = variant.record[name]
    line |= {"held_out": variant.record["held_out"], "curve": variant.record["curve"]}
    line["rate"] = variant.record["lr"]
    if cell.images in FOLDS:
        models = {"dense": vit.with_reduction(None), "before": vit, "after": recovered}
        encode = functools.partial(encode_right_answers, source=images["labeled"])
        line["right"] = {name: encode(model) for name, model in models.items()}
    else:
        judge = functools.partial(judge_recovery, vit, recovered)
        line["elsewhere"] = {name: judge(images[name]) for name in JUDGED}
    return line | {"minutes": round(minutes, 1), "revision": git_revision()}


def open_sources(assets, imagenette):
    """The images that cells learn from, and the images that judge."""
    photographs = as_source(assets / "data/nips2017_224_jpg/images")
    odd = photographs.subset(range(1, len(photographs), 2))
    even = photographs.subset(range(0, len(photographs), 2))
    sources = {"learned": odd.evenly_spaced(LEARNED), "A": even, "B": odd}
    table = assets / "data/nips2017_224_jpg/labels.csv"
    if table.exists():
        sources["labeled"] = open_source(f"csv:{table}", "val")
    sources["photographs"] = even.evenly_spaced(JUDGED["photographs"])
    tests = as_source(imagenette)
    sources["imagenette"] = tests.evenly_spaced(JUDGED["imagenette"])
    return sources


def read_lines():
    """{cell: its line} of all cells that have run."""
    return {line.pop("cell"): line for line in read_json_lines(LINES)}


def cells_table(lines):
    """The table of docs/results/recovery.md: the cells of today's recipe."""
    head = ["cell", "held out", "95 % of the change", *JUDGED, "minutes"]
    rows = []
    for name in CELLS:
        line = lines.get(name)
        if line is None or "right" in line:
            continue
        low, high = line["interval"]
        row = [name, f"{line['before']:.4f} -> {line['after']:.4f}"]
        row.append(f"{low:+.4f}, {high:+.4f}")
        for images in JUDGED:
            row.append(format_change(**line["elsewhere"][images]))
        rows.append([*row, f"{line['minutes']:.0f}"])
    return markdown_table(head, rows)


def format_change(before, after):
    """Distances before and after, in text; of an encoder also by vector and maps."""
    text = f"{before['distance']:.4f} -> {after['distance']:.4f}"
    if "patches" not in before:
        shares = [f"{100 * record['agreement']:.1f}" for record in (before, after)]
        return f"{text}; {' -> '.join(shares)} %"
    for name, word in (("logits", "vector"), ("patches", "maps")):
        text += f"; {word} {before[name]:.4f} -> {after[name]:.4f}"
    return f"{text} (least {after['unreachable']:.4f})"


def main():
    parser = study.folders_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=[*CELLS])
    args = parser.parse_args()
    lines = read_lines()
    files = {"deit": "deit_tiny_patch16_224.pth", "dinov2": "dinov2_small"}
    paths = {name: str(args.assets / "weights" / files[name]) for name in files}
    images = open_sources(args.assets, args.imagenette)
    for name in args.only:
        if name in lines:
            continue
        line = measure_cell(CELLS[name], paths, images)
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": name, **line}) + "\n")


if __name__ == "__main__":
    main()
