"""What a step of a recovery costs, and what asking the teacher once would save.

python -m experiments.recovery_steps --weights FILE [--time | --views 60]
    [--data csv:FILE]

--time writes docs/tables/recover/steps.json: operations by XLA and seconds of cores of
a step that trains norms and biases, and of one that trains everything, in turns.
--views 60 adds two recoveries of 60 steps to views.json there, from 100 photographs:
one whose crops are drawn anew for every step, and one with eight fixed views of each
image, to which the teacher answers once. Both write the tables of step.md
there.
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

import imagepiece_jax
from experiments import results
from imagepiece_jax import cli
from imagepiece_jax.common import parallel, timer
from imagepiece_jax.common.files import read_json, replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.loader import EvalBatches, TrainBatches
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.registry import open_source
from imagepiece_jax.data.source import Subset
from imagepiece_jax.data.transforms import TrainTransform
from imagepiece_jax.training import recover, recovery_step

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
        fit = recovery_step.Fit(
            vit, recovery_step.Recipe.for_model(vit, parameters=part)
        )
        rate = fit.recipe.lr

        def step(number, fit=fit, rate=rate):
            return fit.take(pixels, number, rate)

        jobs[part] = timer.TimedCall(step, jax.block_until_ready)
        now = parallel.replicate((np.float32(rate), np.int32(0)))
        program = fit._step.compile(fit.state, fit.weights, pixels, *now)
        steps[part] = {"gflop": program.cost_analysis()["flops"] / BATCH / 1e9}
    # Seconds of cores: of a machine that does other things, too, only some are lent.
    readings = timer.measure(jobs, RULES, now=time.process_time)
    for part in PARTS:
        steps[part]["core"] = timer.spread(readings[part])
        ratio = timer.speedups(readings["all"], readings[part])
        steps[part]["ratio"] = timer.spread(ratio)
    forwards = {}
    for name, each in (("student", vit), ("dense", vit.with_reduction(None))):
        forwards[name] = forward_gflop(each)
    return {"batch_size": BATCH, "forward": forwards, "steps": steps}


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
        line.append("{:.2f} [{:.2f}, {:.2f}]".format(*step["core"]))
        line.append("{:.2f} [{:.2f}, {:.2f}]".format(*step["ratio"]))
        lines.append(line)
    head = ["trained", "GFLOP an image", "dense and student forwards"]
    head += ["seconds of a core, a step", "times as fast as all"]
    return markdown_table(head, lines)


# Views


class Once(recovery_step.Fit):
    """A Fit that also steps by answers that the teacher has given before."""

    def __init__(self, *args):
        super().__init__(*args)
        self._without_teacher = parallel.pmap(
            self._step_by_answers, donate_argnums=0, program="step without a teacher"
        )

    def take_answered(self, pixels, targets, rate):
        """A step as `take`, with the teacher's answers."""
        rate = parallel.replicate(np.float32(rate))
        self.state, loss = self._without_teacher(
            self.state, self.weights, pixels, targets, rate
        )
        return loss

    def answers_to(self, pixels) -> Mapping[str, np.ndarray]:
        """The teacher's answers to views, [views, ..], batch by batch."""
        parts = []
        for first in range(0, len(pixels), BATCH):
            batch = pixels[None, first : first + BATCH]
            parts.append(parallel.local(self._targets(self.weights, batch)))
        return jax.tree.map(lambda *x: np.concatenate([each[0] for each in x]), *parts)

    def _step_by_answers(self, state, weights, pixels, targets, rate):
        images = self._normalized(pixels)

        def loss_of(trained):
            own = self.answers_of(weights[0], trained, images)
            return self.comparison.loss(own, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        updates, moments = self.adam.update(gradient, state.moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        trained = optax.apply_updates(state.trained, updates)
        return recovery_step.State(trained, moments), loss


def try_views(vit, source, steps: int, seed: int) -> list[dict[str, Any]]:
    """Recoveries with crops that are drawn anew, and with fixed views."""
    few = source.spread(IMAGES)
    learned, held = recover.divided(few, BATCH)
    others = np.setdiff1d(np.arange(1, len(source), OTHERS), few.indices)
    plain = Preprocessing(vit.image_size, resize="none")
    options = {"batch_size": BATCH, "placement": parallel.placement()}
    rows = []
    for kind, learn in (("fresh", learn_anew), ("views", learn_views)):
        recipe = recovery_step.Recipe.for_model(vit, steps=steps, seed=seed)
        fit = Once(vit, recipe)
        crop = TrainTransform(
            vit.image_size, "random_resized", recipe.area, shift=0, flip=True
        )
        began = time.process_time()
        learn(fit, learned, crop)
        row = {"kind": kind, "seed": seed, "steps": steps}
        row["core"] = round(time.process_time() - began, 1)
        for name, images in (("held", held), ("other", Subset(source, others))):
            fit.hold(EvalBatches(images, plain, **options).batches(threads=2))
            found = fit.measure()
            row[name] = round(float(found["measure"].mean()), 4)
        rows.append(row)
    return rows


def learn_anew(fit, learned, crop):
    """As `recover` learns: every step has crops of its own."""
    batches = TrainBatches(
        learned,
        crop,
        batch_size=BATCH,
        placement=parallel.placement(),
        seed=fit.recipe.seed,
        start_step=0,
        stop_step=fit.recipe.steps,
    )
    for step, batch in enumerate(batches.batches(threads=2)):
        rate = fit.recipe.rate(step, fit.recipe.steps)
        fit.take(batch["image"][:, 0], step, rate).block_until_ready()


def learn_views(fit, learned, crop):
    """By EACH views of every image, and the teacher's answers to them."""
    rng = np.random.default_rng(fit.recipe.seed)
    images = [learned.read(place)[0] for place in range(len(learned))]
    views = np.stack([crop(image, rng) for image in images * EACH])
    targets = fit.answers_to(views)
    order = []
    while len(order) < BATCH * fit.recipe.steps:
        order += rng.permutation(len(views)).tolist()
    for step in range(fit.recipe.steps):
        places = np.array(order[BATCH * step : BATCH * (step + 1)])
        rate = fit.recipe.rate(step, fit.recipe.steps)
        own = {name: targets[name][None, places] for name in targets}
        fit.take_answered(views[None, places], own, rate).block_until_ready()


def views_table() -> str:
    """The table of recoveries with fixed views."""
    texts = {"fresh": "drawn anew", "views": f"{EACH} fixed views an image"}
    lines = []
    for row in read_json(FOLDER / "views.json")["runs"]:
        line = [texts[row["kind"]], row["seed"], row["steps"], f"{row['core']:.0f}"]
        lines.append([*line, f"{row['held']:.4f}", f"{row['other']:.4f}"])
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
