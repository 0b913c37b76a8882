"""What recovery gives back: which recipe, for which reduction, beside smaller images.

python -m experiments recover --weights FILE --data csv:FILE --imagenette FILE.npz
    --out FOLDER [--only NAMES]
python -m experiments recover --list
python -m experiments recover --weights FILE --out FOLDER --time
python -m experiments recover --out FOLDER --tables

docs/tables/recover/declared.md declares it. A run is a cell of `cells()`, and writes a
line of FOLDER/runs.jsonl at its end; the same command goes on with the runs that have
none. --only takes names, and patterns such as 'three-0.5.*': lines that another machine
has measured into a folder of its own are appended. --time measures the models in turns
by OpenVINO, into FOLDER/times.json; of models that it lacks, later, beside the dense
one. --tables writes FOLDER/README.md from the lines that are there. --keep saves the
recovered models, too, as `load` takes them.
"""

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from scipy import special

import imagepiece_jax
from experiments import parts, study
from experiments.imagenette import Imagenette
from experiments.study import Judged
from imagepiece_jax import cli
from imagepiece_jax.common import parallel, rng, timer
from imagepiece_jax.common.files import (
    check_folder,
    make_folder,
    read_json,
    write_json,
)
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.source import Subset, evenly_spaced
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.inference.onnx_model import onnx_model
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models.variables import digest
from imagepiece_jax.reduction.reduction import DENSE, Reduction
from imagepiece_jax.training import (
    recover,
    recovery_images,
    recovery_loss,
    recovery_step,
)

WEIGHTS = cli.weights()
DATA = cli.data()
IMAGENETTE = cli.text("imagenette", None, "imagenette in one .npz file")
FOLDER = "docs/tables/recover"
FLAGS = study.Flags(FOLDER)
KEEP = cli.text("keep", None, "a folder that keeps every recovered model")
TIME = cli.switch("time", False, "measure the time of the models instead")

# The cells


class Student(NamedTuple):
    """What a model becomes that is cheaper than its dense form."""

    text: str
    reduction: Mapping[str, Any] | None = None
    image_size: int | None = None  # None: the teacher's
    blocks: int | None = None  # the first so many; None: all


class Way(NamedTuple):
    """A recipe: what is trained, by which loss, on which images."""

    text: str
    parameters: str = "biases"  # as a Recipe has it, or "lora"
    lr: float = 1e-3
    class_tokens: float = 0.5
    patches: float = 0.0
    mixed: bool = False  # whether MIXED of the images are mixed with another one
    images: int | None = None  # to learn from; None: all of the fold's
    passes: int = 8000  # of images
    learned: str = "photographs"  # or "imagenette"


def attended(macs, counts):
    """Most attended tokens stay, and all others join them."""
    return {"name": "diffrate", "counts": counts, "macs": macs}


THREE = "stages-3-6-9"
SHAPE = "diffrate"
SPREAD = "proportional-1"
STUDENTS = {
    "dense": Student("dense"),
    "three-0.6": Student("most attended, 3 blocks, .6", attended(0.6, THREE)),
    "three-0.5": Student("most attended, 3 blocks, .5", attended(0.5, THREE)),
    "three-0.4": Student("most attended, 3 blocks, .4", attended(0.4, THREE)),
    "shape-0.5": Student("most attended, DiffRate's shape, .5", attended(0.5, SHAPE)),
    "shape-0.4": Student("most attended, DiffRate's shape, .4", attended(0.4, SHAPE)),
    "spread-0.4": Student("most attended, same share, .4", attended(0.4, SPREAD)),
    "tome-0.5": Student("ToMe, .5", {"name": "tome", "macs": 0.5}),
    "fusion-0.5": Student(
        "fusion, DiffRate's shape, .5",
        {"name": "mctf", "counts": SHAPE, "macs": 0.5},
    ),
    "evit-0.5": Student("EViT, .5", {"name": "evit", "macs": 0.5}),
    "small-208": Student("dense, 208 pixels", image_size=208),
    "small-192": Student("dense, 192 pixels", image_size=192),
    "small-176": Student("dense, 176 pixels", image_size=176),
    "small-160": Student("dense, 160 pixels", image_size=160),
    "blocks-9": Student("dense, the first 9 blocks", blocks=9),
    "both-192": Student(
        "192 pixels, and 3 blocks at .5 of that", attended(0.5, THREE), 192
    ),
    "both-0.4": Student(
        "192 pixels, and 3 blocks, .4 together", attended(0.565, THREE), 192
    ),
}
WAYS = {
    "norms": Way("norms", "norms"),
    "base": Way("norms and biases (base)"),
    "lora": Way("LoRA of rank 32 on every kernel of the blocks", "lora"),
    "all-2e-5": Way("all, 2e-5", "all", 2e-5),
    "all-5e-5": Way("all, 5e-5", "all", 5e-5),
    "kl": Way("base, loss: KL alone", class_tokens=0.0),
    "all-tokens": Way("base, loss: patches, too", patches=0.5),
    "mixed": Way("base, half of the images mixed", mixed=True),
    "all-5e-5-mixed": Way("all, 5e-5, half mixed", "all", 5e-5, mixed=True),
    "images-50": Way("base, 50 images", images=50),
    "images-100": Way("base, 100 images", images=100),
    "images-250": Way("base, 250 images", images=250),
    "passes-2000": Way("base, 2,000 passes", passes=2000),
    "passes-32000": Way("base, 32,000 passes", passes=32000),
    "imagenette": Way("base, learned from imagenette", learned="imagenette"),
}
BASE = "base"
CANDIDATES = tuple(WAYS)[:9]  # of the choice: what takes other images or passes is not
CHOICE_STUDENT = "three-0.5"
OFF = "off"
CHOSEN = "chosen"
CHOICE_SEED = 0  # of the runs that choose
FIRST_SEED = 1  # of those that test
SEEDS = (1, 2, 3)
SEEDED = ("three-0.5", "three-0.6", "shape-0.5")  # recovered with all of SEEDS
FOLDS = {"A": "odd", "B": "even"}  # the rows that judge; the others are learned from
# Learned from imagenette, too: declared when the first run had been judged.
LATER_IMAGENETTE = ("three-0.6", "three-0.4", "small-176")
# Declared when three blocks at .4 and DiffRate's shape at .5 had been judged.
LATER_STUDENTS = ("shape-0.4", "spread-0.4", "both-0.4")
SIZES = ("small-208", "small-192", "small-176", "small-160")
RIVALS = SIZES[1:]  # that R2 may compare
MIXED = 0.5  # share of the images that are mixed with another one
RANK = 32
IMAGENETTE_LEARNED = 500
DIGITS = 6
MARGIN = 1.5  # points of R3


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a student, recovered in a way; or off the shelf."""

    student: str
    way: str = OFF  # of WAYS, OFF or CHOSEN
    fold: str = "A"
    seed: int = FIRST_SEED
    imagenette: bool = False  # whether it is judged on imagenette, too

    @property
    def name(self) -> str:
        if self.way == OFF:
            return f"{self.student}.{OFF}"
        return f"{self.student}.{self.way}.{self.fold}{self.seed}"


def cells() -> Iterator[Cell]:
    """All runs of the study, in the order in which they are run."""
    elsewhere = ("dense", "three-0.6", "three-0.5", "shape-0.5")
    for student in STUDENTS:
        yield Cell(student, imagenette=student in elsewhere)
    for way in WAYS:
        yield Cell(CHOICE_STUDENT, way, seed=CHOICE_SEED)
    for student in SEEDED:
        for seed in SEEDS:
            for fold in FOLDS:
                judged = student != "shape-0.5" or (fold, seed) == ("A", FIRST_SEED)
                yield Cell(student, CHOSEN, fold, seed, judged)
    for student in ("three-0.4", *RIVALS, "blocks-9", "both-192"):
        for fold in FOLDS:
            yield Cell(student, CHOSEN, fold)
    for student in ("small-208", "tome-0.5", "fusion-0.5", "evit-0.5"):
        yield Cell(student, CHOSEN)
    for student in LATER_IMAGENETTE:
        yield Cell(student, "imagenette", seed=CHOICE_SEED)
    for student in LATER_STUDENTS:
        for fold in FOLDS:
            yield Cell(student, CHOSEN, fold)


# A run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Weights, images, and the folder of the results."""

    weights: str  # a path that `load` takes
    photographs: Any  # a Source, of the model's size
    imagenette: Any  # a Source, or None
    out: pathlib.Path
    students: Mapping[str, Student] = dataclasses.field(default_factory=STUDENTS.copy)
    ways: Mapping[str, Way] = dataclasses.field(default_factory=WAYS.copy)
    batch_size: int = 32
    keep: pathlib.Path | None = None  # a folder for the recovered models

    @functools.cached_property
    def teacher(self):
        return self.load()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Of the weights and of the photographs."""
        photographs = self.photographs.digest
        return {"weights": digest(self.teacher.variables), "images": photographs}

    def load(self, **options):
        return imagepiece_jax.load(self.weights, **options)

    def student(self, name: str):
        """The Pretrained of a student."""
        student = self.students[name]
        vit = self.teacher
        if student.image_size:
            vit = self.load(image_size=student.image_size)
        if student.blocks:
            vit = first_blocks(vit, student.blocks)
        return vit.with_reduction(student.reduction)

    def way(self, cell: Cell) -> str:
        """The name of the way of a cell that is recovered."""
        if cell.way != CHOSEN:
            return cell.way
        found = Results(self.out)
        absent = [run for run in candidates() if run.name not in found.runs]
        if absent:
            problem = f"of {cell.name} is chosen by other runs"
            hint = f"run {', '.join(run.name for run in absent)} first"
            raise InputError("the recipe", problem=problem, hint=hint)
        return choose(found).way

    def run(self, cell: Cell) -> dict[str, Any]:
        """The results of a cell, as its line has them."""
        named = OFF if cell.way == OFF else self.way(cell)
        way = self.ways.get(named)
        vit = self.student(cell.student)
        fit = fit_of(vit, self.teacher, way, cell.seed, self.batch_size)
        result = {
            "settings": self.settings(cell),
            "way": named,
            "recipe": way and way._asdict(),
            "reduction": vit.reduction.fields,
            "seed": cell.seed,
            "gmacs": vit.gmacs,
        }
        rows = slice(None)
        if way is not None:
            learned_rows, rows = fold_rows(cell.fold)
            result |= self.learn(fit, way, cell.seed, learned_rows)
            if self.keep is not None:
                recovered = dataclasses.replace(vit, variables=fit.variables())
                imagepiece_jax.save(self.keep / cell.name, recovered)
        result["judged"] = self.judge(fit, rows)
        if cell.imagenette:
            result["imagenette"] = self.judge_imagenette(fit)
        return result

    def settings(self, cell: Cell) -> dict[str, Any]:
        """What a cell is, as JSON."""
        student = self.students[cell.student]._asdict()
        return dataclasses.asdict(cell) | {"student": student}

    def learn(self, fit, way: Way, seed: int, rows: slice) -> dict[str, Any]:
        """Recover, as `imagepiece_jax.recover` does; the state becomes the best."""
        began = time.monotonic()
        if way.learned == "imagenette":
            images = self.needed_imagenette().spread(IMAGENETTE_LEARNED)
            preprocessing = study.enlarged(fit.batch_image_size)
        else:
            images = Subset(self.photographs, np.arange(len(self.photographs))[rows])
            preprocessing = study.as_it_is(fit.batch_image_size)
        learned, held = recovery_images.divided(images, self.batch_size)
        learned = learned.spread(way.images)
        fit.hold_out(self.batches(held, preprocessing))
        course = recover.Course(fit)
        start = course.start
        area = fit.recipe.area
        crop = TrainTransform(
            fit.batch_image_size, "random_resized", area, shift=0, flip=True
        )
        crops = recovery_images.Crops(
            learned, crop, self.batch_size, seed, fit.recipe.steps
        )
        course.run(crops)
        best = course.best
        interval = statistics.mean_difference(best["distance"], start["distance"])
        changed = interval.high < 0
        fit.start()
        if changed:
            trained = parallel.replicate(course.trained)
            fit.state = fit.state._replace(trained=trained)
        if not changed:
            best = start
        return {
            "steps": fit.recipe.steps,
            "batch_size": self.batch_size,
            "images_learned": len(learned),
            "curve": [[step, round(value, DIGITS)] for step, value in course.curve],
            "changed": changed,
            "selection": {"before": rounded(start), "after": rounded(best)},
            "seconds_learning": round(time.monotonic() - began, 1),
        }

    def judge(self, fit, rows: slice) -> dict[str, Any]:
        """KL divergence from the teacher, and right answers, of photographs."""
        own = np.arange(len(self.photographs))[rows]
        images = Subset(self.photographs, own)
        divergences = []
        rights = []
        for batch in self.batches(images, study.as_it_is(fit.batch_image_size)):
            fit.hold_out([batch])
            found = fit.measure()
            divergences += rounded(found)
            rights.append(found["class"] == study.labels([batch]))
        right = np.concatenate(rights)
        return {"kl": divergences, **study.stored_right(right)}

    def judge_imagenette(self, fit) -> dict[str, Any]:
        """Right answers among 1,000 classes, of all of imagenette.

        The teacher is asked once: its answers decide about the divergence alone, which
        is not read here.
        """
        images = self.needed_imagenette()
        rights = []
        answers = None
        for batch in self.batches(images, study.enlarged(fit.batch_image_size)):
            if answers is None:
                fit.hold_out([batch])
                ((_, answers),) = fit.held
            fit.held = [(batch, answers)]
            found = fit.measure()
            rights.append(found["class"] == study.labels([batch]))
        return study.stored_right(np.concatenate(rights))

    def needed_imagenette(self):
        if self.imagenette is None:
            problem = "is missing, and a run needs it"
            raise InputError("--imagenette", problem=problem, hint="give its .npz file")
        return self.imagenette

    def batches(self, images, preprocessing):
        return study.batches(images, preprocessing, self.batch_size)

    def write(self, cell: Cell):
        """Run a cell and write its line, unless it is there."""
        study.run([cell], self.out, self.digests, self.run)


def fold_rows(fold: str) -> tuple[slice, slice]:
    """(rows to learn from, rows that judge)."""
    even = slice(0, None, 2)
    odd = slice(1, None, 2)
    return (even, odd) if FOLDS[fold] == "odd" else (odd, even)


def first_blocks(vit, count: int):
    """A dense model without its later blocks."""
    plan = vit.model.plan
    later = {f"blocks_{block}" for block in range(count, len(plan))}
    params = vit.variables["params"]
    params = {name: params[name] for name in params if name not in later}
    return dataclasses.replace(
        vit,
        model=vit.model.clone(plan=plan[:count]),
        variables={**vit.variables, "params": params},
    )


class Comparison(recovery_loss.Comparison):
    """Of a student that may have fewer blocks, the last with the teacher's last."""

    def terms(self, student, teacher):
        if "class_tokens" in self.read:
            teacher = {**teacher}
            depth = student["class_tokens"].shape[1]
            rows = teacher["class_tokens"]
            if depth < rows.shape[1]:
                first = rows[:, : depth - 1]
                last = rows[:, -1:]
                teacher["class_tokens"] = jnp.concatenate([first, last], 1)
        return super().terms(student, teacher)

    def measure(self, student, teacher):
        own = student["logits"].argmax(-1)
        return super().measure(student, teacher) | {"class": own}


def fit_of(vit, teacher, way: Way | None, seed: int, batch_size: int):
    """A Fit whose measure has the student's classes, too.

    way: None: nothing is trained
    """
    fields = {"steps": 1, "class_tokens": 0.0}
    kind = recovery_step.Fit
    if way is not None:
        fields = {
            "steps": math.ceil(way.passes / batch_size),
            "parameters": way.parameters,
            "lr": way.lr,
            "class_tokens": way.class_tokens,
            "patches": way.patches,
        }
        if way.mixed:
            kind = Mixed
        if way.parameters == "lora":
            kind = Adapters
            fields["parameters"] = "all"
    recipe = recovery_step.Recipe(batch_size=batch_size, seed=seed, **fields)
    fit = kind(vit, recipe, teacher)
    fit.comparison = Comparison(vit, recipe)  # before anything is compiled
    return fit


class Mixed(recovery_step.Fit):
    """A Fit of which MIXED of the images are mixed with another one of the batch."""

    def seen(self, images, step):
        places = parallel.positions(len(images))
        keys = rng.sample_keys(self.recipe.seed, step, places, rng.Purpose.MIX)
        return mix(images, parallel.reverse(images), keys, MIXED)


def mix(images, partners, keys, share):
    """Mix some of the images with partners, as weighted means.

    images, partners: [B, H, W, 3]
    keys: [B], a random key for each image
    share: share of the images that are mixed
    Source: mixup, Zhang et al., 2018, with Beta(1, 1).
    """
    drawn = jax.vmap(lambda key: rng.uniform(key, (2, 1, 1, 1)))(keys)
    chosen = drawn[:, 0] < share
    amount = jnp.where(chosen, drawn[:, 1], 1.0)
    return amount * images + (1 - amount) * partners


class Adapters(recovery_step.Fit):
    """A Fit that trains LoRA's factors, in place of parameters."""

    def trained_of(self, params):
        return adapters(params, self.recipe.seed)

    def joined(self, params, trained):
        return folded(params, trained)


def adapters(params, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """LoRA's two factors of every kernel of the blocks, by its path.

    A is drawn, B is zero: nothing has changed.

    Source: Hu et al., 2022, with a scale of 1.
    """
    draws = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(params, sep="/")
    found = {}
    for path, leaf in sorted(leaves.items()):
        if path.startswith("blocks_") and path.endswith("/kernel"):
            rows, columns = leaf.shape
            a = draws.normal(0, rows**-0.5, (rows, RANK))
            b = np.zeros((RANK, columns), np.float32)
            found[path] = {"a": a.astype(np.float32), "b": b}
    return found


def folded(params, factors):
    """Parameters with W + A B in place of W."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, pair in factors.items():
        flat[path] = flat[path] + pair["a"] @ pair["b"]
    return traverse_util.unflatten_dict(flat, sep="/")


class Once(recovery_step.Fit):
    """A Fit that also steps by answers that the teacher has given before."""

    def __init__(self, *args):
        super().__init__(*args)
        self._without_teacher = parallel.pmap(
            self._step_by_answers, donate_argnums=0, program="step without a teacher"
        )

    def take_answered(self, pixels, targets, rate):
        """As `take_step`, with the answers of the teacher in place of the teacher.

        targets: a batch of what `answers_to` returns, with an axis of devices
        """
        rate = parallel.replicate(np.float32(rate))
        self.state, loss = self._without_teacher(
            self.state, self.variables_of_both, pixels, targets, rate
        )
        return loss

    def answers_to(self, pixels, size: int) -> Mapping[str, np.ndarray]:
        """The teacher's answers to views, [views, ..], by batches of `size`."""
        by_name = {}
        for first in range(0, len(pixels), size):
            batch = pixels[None, first : first + size]
            targets = self._targets(self.variables_of_both, batch)
            answers = parallel.local(targets)
            for name, answer in answers.items():
                by_name.setdefault(name, []).append(answer[0])
        return {name: np.concatenate(parts) for name, parts in by_name.items()}

    def _step_by_answers(self, state, both, pixels, targets, rate):
        student, _ = both
        images = self._normalized(pixels)

        def loss_of(trained):
            answered = self.answers_of(student, trained, images)
            return self.comparison.loss(answered, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        updates, moments = self.adam.update(gradient, state.moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        trained = optax.apply_updates(state.trained, updates)
        return recovery_step.State(trained, moments), loss


def rounded(found) -> list[float]:
    """The distance of every image to the teacher."""
    return [round(float(value), DIGITS) for value in found["distance"]]


# Results, the choice and the tests


class Results:
    """The lines of a folder of runs, by name."""

    def __init__(self, folder):
        self.runs = study.read_runs(folder)
        self.times = None
        times = pathlib.Path(folder, "times.json")
        if times.exists():
            self.times = read_json(times)["models"]

    def photographs(self, cell: Cell) -> Judged | None:
        """On the rows that judge the cell's fold; None where a run is missing."""
        run = self.runs.get(cell.name)
        if run is None:
            return None
        judged = study.unpacked(run["judged"])
        if cell.way == OFF:
            _, rows = fold_rows(cell.fold)
            judged = Judged(judged.kl[rows], judged.right[rows])
        if cell.fold == "B":  # which judges what fold A learns and chooses from
            choosing = choosing_places(len(judged.kl))
            judged = Judged(*(np.delete(values, choosing) for values in judged))
        return judged

    def crossfitted(
        self, student: str, way: str, seed: int = FIRST_SEED, folds: str = "AB"
    ) -> Judged | None:
        """On the photographs, each judged by the fold that did not learn from it.

        Without those that chose the recipe.

        folds: the folds that judge
        """
        found = [self.photographs(Cell(student, way, fold, seed)) for fold in folds]
        if None in found:
            return None
        return Judged(*map(np.concatenate, zip(*found, strict=True)))

    def recovered(self, student: str, folds: str) -> Judged | None:
        """`crossfitted` with the chosen recipe, as means over the declared seeds."""
        seeds = seeds_of(student)
        found = [self.crossfitted(student, CHOSEN, seed, folds) for seed in seeds]
        if None in found:
            return None
        return Judged(*map(mean_by_image, zip(*found, strict=True)))

    def recovered_imagenette(self, student: str) -> np.ndarray | None:
        """Right answers on imagenette with the chosen recipe, of fold A.

        As means over the seeds that were judged there.
        """
        runs = [Cell(student, CHOSEN, seed=seed) for seed in seeds_of(student)]
        found = [self.imagenette(cell) for cell in runs]
        judged = [right for right in found if right is not None]
        return mean_by_image(judged) if judged else None

    def imagenette(self, cell: Cell) -> np.ndarray | None:
        """Right answers on imagenette."""
        run = self.runs.get(cell.name)
        if run is None or "imagenette" not in run:
            return None
        return study.unpacked_right(run["imagenette"])


def seeds_of(student: str) -> tuple[int, ...]:
    """The seeds with which a student is recovered by the chosen recipe."""
    return SEEDS if student in SEEDED else (FIRST_SEED,)


def mean_by_image(found: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over seeds, image by image; a single one itself, with its type."""
    return np.mean(found, axis=0) if len(found) > 1 else found[0]


def answers(results) -> parts.Answers:
    """Right answers of the models that fold A recovered.

    On imagenette those of the dense model, too.
    """
    photographs = {}
    imagenette = {}
    dense = results.imagenette(Cell("dense"))
    if dense is not None:
        imagenette[parts.reduction_key(DENSE)] = dense
    for name, student in STUDENTS.items():
        found = results.recovered(name, "A")
        if found is None or student.blocks:
            continue
        reduction = Reduction.read(student.reduction)
        key = parts.reduction_key(reduction, student.image_size or parts.SIDE)
        photographs[key] = found.right
        elsewhere = results.recovered_imagenette(name)
        if elsewhere is not None:
            imagenette[key] = elsewhere
    return parts.Answers(photographs, imagenette)


def candidates() -> list[Cell]:
    """The runs among which the recipe is chosen."""
    return [Cell(CHOICE_STUDENT, way, seed=CHOICE_SEED) for way in CANDIDATES]


def choosing_places(count: int) -> np.ndarray:
    """Places among the `count` even rows whose images choose the recipe."""
    held = max(recovery_images.MIN_HELD_OUT, count // recovery_images.HELD_OUT)
    return evenly_spaced(count, min(recovery_images.MAX_HELD_OUT, held))


class Choice(NamedTuple):
    """A way, and the KL on the selection images of all candidates, by way."""

    way: str
    least: str  # whose KL is the least
    change: Any  # Estimate of the least minus base
    means: Mapping[str, float]


def choose(results: Results) -> Choice:
    """By the declared rule: the least KL on the selection images.

    Base stays where the interval of the paired difference from it includes zero.
    """
    kl = {}
    means = {}
    for cell in candidates():
        run = results.runs[cell.name]
        kl[cell.way] = run["selection"]["after"]
        means[cell.way] = float(np.mean(kl[cell.way]))
    least = min(means, key=means.get)
    change = statistics.mean_difference(kl[least], kl[BASE])
    way = least if change.high < 0 else BASE
    return Choice(way, least, change, means)


def same_time(times: Mapping[str, Any], student: str = CHOICE_STUDENT) -> str:
    """The smaller image whose median time is nearest, as a ratio, to a student's.

    Of two that are equally near it is the larger one.
    """
    own, *_ = times[student]["seconds"]

    def distance(size):
        median, *_ = times[size]["seconds"]
        return abs(math.log(median / own))

    return min(RIVALS, key=distance)


def level_p(change) -> float:
    """Two-sided p, so that it is below .05 where the interval is above -MARGIN.

    change: Estimate of a difference of accuracies in points
    """
    center = (change.low + change.high) / 2
    half = (change.high - change.low) / 2
    error = half / special.ndtri(0.975)
    below = float(special.ndtr(-(center + MARGIN) / error))
    return min(1.0, 2 * below)


def primary(results: Results) -> list[study.Test]:
    """R1 to R3."""
    tests = [recovered_test(results), same_time_test(results)]
    for cost in ("0.5", "0.6"):
        tests.append(level_test(results, cost))
    return tests


def recovered_test(results) -> study.Test:
    """R1, by McNemar."""
    name = "R1 recovered - off the shelf, 3 blocks, .5, imagenette"
    ours = results.imagenette(Cell("three-0.5", CHOSEN))
    off = results.imagenette(Cell("three-0.5"))
    return study.accuracy_test(name, ours, off, "different")


def same_time_test(results) -> study.Test:
    """R2, by Student."""
    size, ours, rival = same_time_pair(results)
    against = "a smaller image" if size is None else STUDENTS[size].text
    name = f"R2 3 blocks, .5 - {against}, both recovered, photographs"
    if ours is None or rival is None:
        return study.Test(name, "KL", None)
    return study.paired_test(name, "KL", ours.kl, rival.kl, "different")


def same_time_pair(results) -> tuple[str | None, Judged | None, Judged | None]:
    """R2's size, and the figures of both models; None for what is not measured."""
    ours = results.crossfitted("three-0.5", CHOSEN)
    if not results.times:
        return None, ours, None
    size = same_time(results.times)
    return size, ours, results.crossfitted(size, CHOSEN)


def level_test(results, cost: str) -> study.Test:
    """R3 at a cost: that the interval lies above -MARGIN."""
    name = f"R3 recovered - dense, 3 blocks, {cost}, imagenette"
    ours = results.imagenette(Cell(f"three-{cost}", CHOSEN))
    dense = results.imagenette(Cell("dense"))
    tested = f"above -{MARGIN}"
    if ours is None or dense is None:
        return study.Test(name, "points", None, tested=tested)
    change = statistics.paired_difference(ours, dense)
    return study.Test(name, "points", change, level_p(change), "level", tested)


# The page


def page(folder) -> str:
    """The tables of the runs that are there, as Markdown."""
    results = Results(folder)
    blocks = [
        "# What recovery gives back",
        INTRODUCTION,
        study.crops_text("photographs", "imagenette"),
        "## Tests",
        study.tests_table(primary(results)),
        rival_accuracy(results),
        "## Recipes",
        recipes_table(results),
        choice_text(results),
        "## Reductions and rivals",
        students_table(results),
        "## Seeds and folds",
        seeds_table(results),
        "## Time",
        times_table(results),
    ]
    every = list(cells())
    measured = [cell for cell in every if cell.name in results.runs]
    return study.page(blocks, every, measured)


INTRODUCTION = """\
Written by `python -m experiments recover --tables` from `runs.jsonl`.
[declared.md](declared.md) says what was declared before the runs. DeiT-Ti; KL is the
mean divergence from the dense model at 224 pixels, points are accuracy minus the dense
model's on the same images, with 95 % intervals. "Reductions and rivals" has means over
three seeds for the models under "Seeds and folds"; the tests are of the first seed, as
declared."""


def rival_accuracy(results) -> str:
    """The accuracies of R2's pair, beside it."""
    _, ours, rival = same_time_pair(results)
    if ours is None or rival is None:
        return ""
    change = statistics.paired_difference(ours.right, rival.right)
    points = statistics.format_difference(change)
    return f"Points of accuracy of R2's pair on the same photographs: {points}."


def recipes_table(results) -> str:
    """Every way for the student of the choice, on odd rows."""
    off = figures(results, Cell(CHOICE_STUDENT))
    lines = [["off the shelf", *off, "", ""]]
    for name, way in WAYS.items():
        cell = Cell(CHOICE_STUDENT, name, seed=CHOICE_SEED)
        run = results.runs.get(cell.name)
        chosen = ""
        minutes = ""
        if run:
            chosen = f"{np.mean(run['selection']['after']):.4f}"
            minutes = f"{run['seconds_learning'] / 60:.1f}"
        lines.append([way.text, *figures(results, cell), chosen, minutes])
    head = [STUDENTS[CHOICE_STUDENT].text, "KL", "points", "KL, selection", "minutes"]
    return markdown_table(head, lines)


def choice_text(results) -> str:
    """A sentence on the choice. Raises InputError for a run with another recipe."""
    if any(cell.name not in results.runs for cell in candidates()):
        return "The recipe is not chosen yet: candidates are missing."
    choice = choose(results)
    for run in results.runs.values():
        if run["settings"]["way"] == CHOSEN and run["way"] != choice.way:
            problem = f"was run with {run['way']}, and {choice.way} is chosen"
            raise InputError(run["name"], problem=problem, hint="run it again")
    change = statistics.format_difference(choice.change, 4)
    return (
        f"Chosen: {WAYS[choice.way].text}. The least KL on the selection images has "
        f"{WAYS[choice.least].text}; its difference from base there is {change}."
    )


def figures(results, cell) -> list[str]:
    """KL and points on the rows that judge a cell's fold."""
    dense = Cell("dense", fold=cell.fold)
    return judged_figures(results.photographs(cell), results.photographs(dense))


def judged_figures(found: Judged | None, dense: Judged | None) -> list[str]:
    """KL, and points to the dense model; blank where one is missing."""
    if found is None:
        return ["", ""]
    points = ""
    if dense is not None:
        change = study.points(found.right, dense.right)
        points = statistics.format_estimate(change, signs=True)
    return [f"{found.kl.mean():.4f}", points]


def students_table(results) -> str:
    """Every student off the shelf and recovered, crossfitted where both folds are."""
    lines = []
    for name, student in STUDENTS.items():
        off = Cell(name)
        run = results.runs.get(off.name)
        gmacs = f"{run['gmacs']:.2f}" if run else ""
        speed = ""
        if results.times and name in results.times:
            speed = study.spread(results.times[name]["ratio"])
        line = [
            student.text,
            gmacs,
            speed,
            *crossfitted_figures(results, name),
            elsewhere_points(results, results.imagenette(off)),
            elsewhere_points(results, results.recovered_imagenette(name)),
        ]
        lines.append(line)
    head = ["model", "GMACs", "times as fast", "rows"]
    head += ["KL, off the shelf", "points, off the shelf"]
    head += ["KL, recovered", "points, recovered"]
    head += ["points, imagenette, off the shelf", "points, imagenette, recovered"]
    return markdown_table(head, lines)


def crossfitted_figures(results, student: str) -> list[str]:
    """Which rows judge, and the figures off the shelf and recovered on them."""
    rows = "all"
    off = results.crossfitted(student, OFF)
    own = results.recovered(student, "AB")
    dense = results.crossfitted("dense", OFF)
    if own is None:
        own = results.recovered(student, "A")
        if own is not None:
            rows = "odd"
            off = results.photographs(Cell(student))
            dense = results.photographs(Cell("dense"))
    return [rows, *judged_figures(off, dense), *judged_figures(own, dense)]


def elsewhere_points(results, own: np.ndarray | None) -> str:
    """Points to the dense model on imagenette; blank where one is missing."""
    dense = results.imagenette(Cell("dense"))
    if own is None or dense is None:
        return ""
    change = study.points(own, dense)
    return statistics.format_estimate(change, signs=True)


def seeds_table(results) -> str:
    """Every run with the chosen recipe of the students that have several seeds."""
    lines = []
    for cell in cells():
        repeated = cell.student in SEEDED
        if cell.way == CHOSEN and repeated and cell.name in results.runs:
            line = [
                STUDENTS[cell.student].text,
                FOLDS[cell.fold],
                cell.seed,
                *figures(results, cell),
                elsewhere_points(results, results.imagenette(cell)),
            ]
            lines.append(line)
    if not lines:
        return "No run yet."
    head = ["model", "judged rows", "seed", "KL", "points", "points, imagenette"]
    return markdown_table(head, lines)


def times_table(results) -> str:
    """Times of a batch, and beside the dense model's."""
    if not results.times:
        return "Not measured yet."
    lines = []
    for name in STUDENTS:
        found = results.times.get(name)
        if found is None:
            continue
        milliseconds = [1e3 * seconds for seconds in found["seconds"]]
        times = study.spread(milliseconds, 1)
        lines.append([STUDENTS[name].text, times, study.spread(found["ratio"])])
    head = ["model", "ms, batch of 8", "times as fast as dense"]
    size = STUDENTS[same_time(results.times)].text
    note = (
        "OpenVINO, in turns; brackets are the lowest and the highest. Models that were "
        "declared later took turns of their own with the dense one. "
        f"R2 compares {size}."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


# Times


BATCH = 8
REPEATS = 15
SECONDS = 1.0
WARMUP = 5


def measure_times(
    whole: Study, measured=(), repeats=REPEATS, seconds=SECONDS
) -> dict[str, Any]:
    """Seconds of a batch by OpenVINO of every student, in turns, with spread.

    measured: names of students that are left out; the dense model is not
    """
    jobs = {}
    for name in whole.students:
        if name == "dense" or name not in measured:
            jobs[name] = openvino_job(whole.student(name))
    rules = timer.Rules(warmup=WARMUP, repeats=repeats, seconds=seconds)
    readings = timer.measure(jobs, rules, rest=lambda: time.sleep(0.1))
    models = {}
    for name, own in readings.items():
        ratios = timer.speedups(readings["dense"], own)
        models[name] = {"seconds": timer.spread(own), "ratio": timer.spread(ratios)}
    import openvino

    found = study.versions() | {"openvino": openvino.__version__}
    return {
        "batch_size": BATCH,
        "repeats": repeats,
        "versions": found,
        "models": models,
    }


def openvino_job(vit):
    """A TimedCall of a model as its ONNX graph, in float32 on the CPU."""
    import openvino

    shape = (BATCH, *sides(vit.image_size), 3)
    draw = np.random.default_rng(0)
    images = draw.normal(size=shape).astype(np.float32)
    graph = onnx_model(vit, batch_size=BATCH)
    core = openvino.Core()
    model = core.read_model(graph.SerializeToString())
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", hints)

    def run(number):
        return compiled([images])[0]

    return timer.TimedCall(run)


def main():
    folder = FLAGS.folder
    chosen = FLAGS.cells_to_run(cells(), page)
    if not chosen:
        return
    cli.required(WEIGHTS)
    check_folder("--out", folder)
    if TIME.value:
        whole = Study(
            weights=WEIGHTS.value, photographs=None, imagenette=None, out=folder
        )
        make_folder("--out", folder)
        file = folder / "times.json"
        measured = read_json(file)["models"] if file.exists() else {}
        found = measure_times(whole, measured)
        found["models"] |= measured
        write_json(file, found)
        return
    photographs = open_source(cli.required(DATA), "val", num_classes=1000)
    imagenette = Imagenette(IMAGENETTE.value) if IMAGENETTE.value else None
    whole = Study(
        weights=WEIGHTS.value,
        photographs=photographs,
        imagenette=imagenette,
        out=folder,
        keep=pathlib.Path(KEEP.value) if KEEP.value else None,
    )
    study.run(chosen, folder, whole.digests, whole.run)


if __name__ == "__main__":
    cli.run(main)
