"""What a step of a recovery costs, and what asking the teacher once would save.

python -m experiments.recovery_steps --weights FILE [--time | --views 60]
    [--data csv:FILE]

--time writes docs/tables/recover/steps.json: operations by XLA and seconds of cores of
a step that trains norms and biases, and of one that trains everything, in turns.
--views 60 adds two recoveries of 60 steps to views.json there, from 100 photographs:
one whose crops are drawn anew for every step, and one with eight fixed views of each
image, to which the teacher answers once. Both write the tables of step.md there.
"""

import pathlib
import time
from typing import Any

import jax
import numpy as np

import imagepiece_jax
from experiments import results, study
from experiments.recover import Once
from imagepiece_jax import cli
from imagepiece_jax.common import parallel, timer
from imagepiece_jax.common.files import read_json, replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.batches import EvalBatches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Subset
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.training import recovery_images, recovery_step

DOCS = pathlib.Path(__file__).parent.parent / "docs"
FOLDER = DOCS / "tables" / "recover"
PAGE = FOLDER / "step.md"
WEIGHTS = cli.weights()
DATA = cli.data()
TIME = cli.switch("time", False, "measure the steps")
VIEWS = cli.integer("views", None, "recover so many steps, in both ways", 1)
SEED = cli.integer("seed", 0, "of these recoveries", 0)

REDUCTION = {"name": "diffrate", "counts": "stages-3-6-9", "macs": 0.5}
BATCH = 32
IMAGES = 100  # to recover from
OTHERS = 5  # one of so many is measured, too, if it is none of them
EACH = 8  # views of an image
RULES = timer.Rules(warmup=2, repeats=7, seconds=0.0)  # a turn is a step
PARTS = {"biases": "norms and biases", "all": "all parameters"}


# Steps


def measure_steps(vit) -> dict[str, Any]:
    """Operations and seconds of cores of a step, by what is trained."""
    size = vit.image_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1, BATCH, size, size, 3), np.uint8)
    steps = {}
    jobs = {}
    for part in PARTS:
        recipe = recovery_step.Recipe.for_model(vit, parameters=part)
        fit = recovery_step.Fit(vit, recipe)
        jobs[part] = timer.TimedCall(taking(fit, pixels))
        now = (np.float32(recipe.lr), np.int32(0))
        program = fit._step.compile(
            fit.state, fit.variables_of_both, pixels, *parallel.replicate(now)
        )
        flops = program.cost_analysis()["flops"]
        steps[part] = {"gflop": flops / BATCH / 1e9}
    # Seconds of cores: of a machine that does other things, too, only some are lent.
    readings = timer.measure(jobs, RULES, now=time.process_time)
    for part, step in steps.items():
        step["core"] = timer.spread(readings[part])
        ratios = timer.speedups(readings["all"], readings[part])
        step["ratio"] = timer.spread(ratios)
    forwards = {
        "student": forward_gflop(vit),
        "dense": forward_gflop(vit.with_reduction(None)),
    }
    return {"batch_size": BATCH, "forward": forwards, "steps": steps}


def taking(fit, pixels):
    """A function of a step's number that takes the step."""
    return lambda number: fit.take_step(pixels, number, fit.recipe.lr)


def forward_gflop(vit) -> float:
    """Operations of a forward pass by XLA, an image."""
    size = vit.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    apply = vit.model.clone(head_only=True).apply
    lowered = jax.jit(apply).lower(vit.variables, images)
    return lowered.cost_analysis()["flops"] / 1e9


def steps_table() -> str:
    """The table of what a step costs."""
    found = read_json(FOLDER / "steps.json")
    forward = found["forward"]
    lines = []
    for part, text in PARTS.items():
        step = found["steps"][part]
        students = (step["gflop"] - forward["dense"]) / forward["student"]
        line = [text, f"{step['gflop']:.2f}", f"1 + {students:.2f}"]
        line.append(study.spread(step["core"]))
        line.append(study.spread(step["ratio"]))
        lines.append(line)
    head = ["trained", "GFLOP an image", "dense and student forwards"]
    head += ["seconds of a core, a step", "times as fast as all"]
    return markdown_table(head, lines)


# Views


def try_views(vit, source, steps: int, seed: int) -> list[dict[str, Any]]:
    """Recoveries with crops that are drawn anew, and with fixed views."""
    few = source.spread(IMAGES)
    learned, held = recovery_images.divided(few, BATCH)
    others = np.setdiff1d(np.arange(1, len(source), OTHERS), few.indices)
    judged = {"held": held, "other": Subset(source, others)}
    recipe = recovery_step.Recipe.for_model(vit, steps=steps, seed=seed)
    crop = TrainTransform(
        vit.image_size, "random_resized", recipe.area, shift=0, flip=True
    )
    rows = []
    for kind, learn in (("fresh", learn_anew), ("views", learn_views)):
        fit = Once(vit, recipe)
        began = time.process_time()
        learn(fit, learned, crop)
        seconds = time.process_time() - began
        row = {
            "kind": kind,
            "seed": seed,
            "steps": steps,
            "core": round(seconds, 1),
        }
        for name, images in judged.items():
            row[name] = round(mean_measure(fit, images), 4)
        rows.append(row)
    return rows


def mean_measure(fit, images) -> float:
    """The measure of images that were not learned from."""
    sequence = EvalBatches(
        images,
        Preprocessing(fit.batch_image_size, resize="none"),
        batch_size=BATCH,
        placement=parallel.placement(),
    )
    fit.hold_out(sequence.batches(threads=2))
    found = fit.measure()
    return float(found["distance"].mean())


def learn_anew(fit, learned, crop):
    """As `recover` learns: every step has crops of its own."""
    crops = recovery_images.Crops(
        learned, crop, BATCH, fit.recipe.seed, fit.recipe.steps
    )
    for step, pixels in enumerate(crops):
        rate = fit.recipe.rate(step, fit.recipe.steps)
        fit.take_step(pixels, step, rate).block_until_ready()


def learn_views(fit, learned, crop):
    """Take all steps on EACH fixed views of an image, which the teacher answers once.

    learned: the Source of the images
    crop: function (image, rng) that makes a view
    """
    recipe = fit.recipe
    rng = np.random.default_rng(recipe.seed)
    images = []
    for place in range(len(learned)):
        image, *_ = learned.read(place)
        images.append(image)
    views = np.stack([crop(image, rng) for image in images * EACH])
    targets = fit.answers_to(views, BATCH)
    order = []
    while len(order) < BATCH * recipe.steps:
        order += rng.permutation(len(views)).tolist()
    for step in range(recipe.steps):
        first = BATCH * step
        places = np.array(order[first : first + BATCH])
        rate = recipe.rate(step, recipe.steps)
        answers = {name: values[None, places] for name, values in targets.items()}
        loss = fit.take_answered(views[None, places], answers, rate)
        loss.block_until_ready()


def views_table() -> str:
    """The table of recoveries with fixed views."""
    texts = {"fresh": "drawn anew", "views": f"{EACH} fixed views an image"}
    found = read_json(FOLDER / "views.json")
    lines = []
    for row in found["runs"]:
        line = [
            texts[row["kind"]],
            row["seed"],
            row["steps"],
            f"{row['core']:.0f}",
            f"{row['held']:.4f}",
            f"{row['other']:.4f}",
        ]
        lines.append(line)
    head = ["crops", "seed", "steps", "seconds of a core"]
    return markdown_table([*head, "KL, held out", "KL, other photographs"], lines)


def tables() -> dict[str, str]:
    """The tables of step.md, by the names that stand in their marks."""
    return {"recovery-steps": steps_table(), "recovery-views": views_table()}


def main():
    vit = imagepiece_jax.load(cli.required(WEIGHTS), reduction=REDUCTION)
    if TIME.value:
        write_json(FOLDER / "steps.json", measure_steps(vit))
    if VIEWS.value:
        source = open_source(cli.required(DATA), "val", num_classes=1000)
        path = FOLDER / "views.json"
        runs = read_json(path)["runs"] if path.exists() else []
        runs += try_views(vit, source, VIEWS.value, SEED.value)
        write_json(path, {"runs": runs})
    replace_file(PAGE, results.filled(PAGE.read_text("utf-8"), tables()))


if __name__ == "__main__":
    cli.run(main)
