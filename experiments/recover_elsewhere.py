"""Does recovery hold elsewhere? Recovered models under damage, rounded, on other data.

python -m experiments recover_elsewhere --weights FILE --data csv:FILE
    --recovered FOLDER --imagenette FILE.npz --encoder FOLDER --decoder FILE
    --out FOLDER [--only NAMES]
python -m experiments recover_elsewhere --list
python -m experiments recover_elsewhere --weights FILE --data csv:FILE
    --recovered FOLDER --out FOLDER --time
python -m experiments recover_elsewhere --out FOLDER --tables

docs/tables/recover_elsewhere/declared.md declares it. --recovered has the models that
`experiments recover --keep` saves; those that this study recovers itself join them. A
cell whose model is not there yet waits: the same command goes on. --time measures the
fastest forms, into FOLDER/times.json. --tables writes FOLDER/README.md.
"""

import dataclasses
import functools
import importlib.util
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import imagepiece_jax
from experiments import dense_head, maps, parts, quantize, study
from experiments.damage import DAMAGE, damaged
from experiments.imagenette import Imagenette
from experiments.study import Judged
from imagepiece_jax import cli
from imagepiece_jax.common import signals, timer
from imagepiece_jax.common.files import make_folder, read_json, write_json
from imagepiece_jax.common.image_size import patch_grid, sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.class_names import imagenet_names
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Subset, evenly_spaced
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.inference.features import feature_map, final_norm
from imagepiece_jax.inference.onnx_model import onnx_model, write_onnx
from imagepiece_jax.input.registry import open_source
from imagepiece_jax.models.variables import digest

WEIGHTS = cli.weights()
DATA = cli.data()
RECOVERED = cli.text("recovered", None, "the folder of the recovered models")
IMAGENETTE = cli.text("imagenette", None, "imagenette in one .npz file")
ENCODER = cli.text("encoder", None, "weights of a DINOv2-S")
DECODER = cli.text("decoder", None, "a weights file: the maps' head")
FOLDER = "docs/tables/recover_elsewhere"
FLAGS = study.Flags(FOLDER)
TIME = cli.switch("time", False, "measure times instead")


def attended(macs, counts="stages-3-6-9"):
    """Most attended tokens stay, and all others join them."""
    return {"name": "diffrate", "counts": counts, "macs": macs}


class Student(NamedTuple):
    """A model that recovers; `base` names its weights."""

    text: str
    reduction: Mapping[str, Any] | None
    image_size: int = 224
    base: str = "weights"  # or "encoder"


STUDENTS = {
    "three-0.5": Student("3 blocks, .5", attended(0.5)),
    "three-0.6": Student("3 blocks, .6", attended(0.6)),
    "shape-0.5": Student("DiffRate's shape, .5", attended(0.5, "diffrate")),
    "small-176": Student("dense, 176 pixels", None, 176),
    "three-0.4": Student("3 blocks, .4", attended(0.4)),
    # These are recovered here.
    "large-0.5": Student("3 blocks, .5, 384 pixels", attended(0.5), 384),
    "tome-0.6": Student("ToMe, .6", {"name": "tome", "macs": 0.6}, 224, "encoder"),
    "tome-0.5": Student("ToMe, .5", {"name": "tome", "macs": 0.5}, 224, "encoder"),
    "attended-0.6": Student("3 blocks, .6", attended(0.6), 224, "encoder"),
    "attended-0.5": Student("3 blocks, .5", attended(0.5), 224, "encoder"),
}
STORED = tuple(STUDENTS)[:5]  # recovered by `experiments recover`
DAMAGED = STORED[:4]
ENCODERS = tuple(STUDENTS)[6:]
OFF = "off"
RECOVERED_FORM = "recovered"
REVERSE = "from imagenette"
THREE_BLOCKS = "most attended in 3 blocks .5"  # as the table by time calls it
NNCF = "int8-openvino"  # int8 by NNCF in OpenVINO
FOLDS = {"A": slice(1, None, 2), "B": slice(0, None, 2)}  # the rows that judge
SEED = 1
STEPS = 125  # of 32 images, of the models that are recovered here
CALIBRATION = 100
LEARNED_OF_IMAGENETTE = 500
CLEAN = "as they are"
STRONG = ("noise .2", "blur 2", "JPEG 10")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model in one of its forms, and what it is judged on."""

    kind: str
    student: str  # or "dense"
    form: str = OFF
    fold: str = "A"

    @property
    def name(self) -> str:
        form = self.form.replace(" ", "-")
        return f"{self.kind}.{self.student}.{form}.{self.fold}"

    @property
    def folder(self) -> str | None:
        """The name of the recovered model, in the folder of them."""
        if self.form == OFF:
            return None
        if self.form == REVERSE:
            return f"{self.student}.imagenette.A0"
        name = f"{self.student}.chosen.{self.fold}{SEED}"
        # `experiments recover` has a ToMe at .5, too, of another model.
        return name if self.student in STORED else f"{self.kind}.{name}"


FORMS = (OFF, RECOVERED_FORM)
# Forms of the models that imagenette judges beside the dense one.
ON_IMAGENETTE = {
    "three-0.5": (*FORMS, REVERSE),
    "three-0.6": (*FORMS, REVERSE),
    "three-0.4": (OFF, REVERSE),
    "shape-0.5": FORMS,
    "small-176": (OFF, REVERSE),
}


def cells() -> Iterator[Cell]:
    """All cells, in the order in which they run."""
    for fold in FOLDS:
        yield Cell("damage", "dense", OFF, fold)
        for student in DAMAGED:
            for form in FORMS:
                yield Cell("damage", student, form, fold)
        for kind in ("bfloat16", "int8"):
            yield from rounded_cells(kind, fold)
    yield Cell("damage", "three-0.5", REVERSE)
    yield Cell("imagenette", "dense")
    for student, forms in ON_IMAGENETTE.items():
        for form in forms:
            yield Cell("imagenette", student, form)
    yield Cell("large", "dense")
    for form in FORMS:
        yield Cell("large", "large-0.5", form)
    for student in ENCODERS:
        for form in FORMS:
            yield Cell("maps", student, form)
    if importlib.util.find_spec("nncf"):
        for fold in FOLDS:
            yield from rounded_cells(NNCF, fold)


def rounded_cells(kind: str, fold: str) -> Iterator[Cell]:
    """The dense model and one student, rounded.

    kind: NNCF: int8 in OpenVINO, where it is installed
    """
    yield Cell(kind, "dense", OFF, fold)
    for form in FORMS:
        yield Cell(kind, "three-0.5", form, fold)


# A cell


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Weights, images and folders; None for those that no chosen cell needs."""

    weights: str  # paths that `load` takes
    photographs: Any  # a Source, of `size` pixels
    recovered: pathlib.Path
    imagenette: Any = None  # a Source
    encoder: str | None = None
    decoder: str | None = None
    students: Mapping[str, Student] = dataclasses.field(default_factory=STUDENTS.copy)
    steps: int = STEPS
    calibration: int = CALIBRATION
    size: int = 224
    large: int = 384

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        weights = digest(imagepiece_jax.load(self.weights).variables)
        return {"weights": weights, "images": self.photographs.digest}

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The figures of a cell, as JSON values by name."""
        vit = self.model(cell)
        found = {"reduction": vit.reduction.fields, "gmacs": vit.gmacs}
        if vit.recovery is not None:
            (cost,) = vit.recovery.costs
            found["recovery"] = dataclasses.asdict(cost)
        return found | MEASURES[cell.kind](self, cell, vit)

    # Models

    def missing(self, cell: Cell) -> str | None:
        """What a cell waits for."""
        if cell.kind == "imagenette" and self.imagenette is None:
            return "--imagenette"
        if cell.kind == "maps" and not (self.encoder and self.decoder):
            return "--encoder and --decoder"
        if cell.student in STORED and cell.folder is not None:
            folder = pathlib.Path(self.recovered, cell.folder)
            if not folder.exists():
                return str(folder)
        return None

    def model(self, cell: Cell):
        """The Pretrained of a cell."""
        if cell.student == "dense":
            large = cell.kind == "large"
            return self.dense_model(self.large if large else self.size)
        student = self.students[cell.student]
        off = self.off(student)
        if cell.form == OFF:
            return off
        folder = self.recovered / cell.folder
        if not folder.exists():
            imagepiece_jax.save(folder, self.recover(cell, off))
        vit = imagepiece_jax.load(folder)
        if decisions(vit) != decisions(off):
            problem = f"has {vit.label}"
            allowed = f"a model with {off.label}"
            raise InputError(allowed=allowed, problem=problem, place=folder)
        return vit

    def off(self, student: Student):
        """A student off the shelf, whose images have the photographs' size."""
        path = self.encoder if student.base == "encoder" else self.weights
        vit = imagepiece_jax.load(path, image_size=student.image_size)
        return vit.with_reduction(student.reduction)

    def dense_model(self, size: int, base: str = "weights"):
        return self.off(Student("dense", None, size, base))

    def recover(self, cell: Cell, off):
        """A student that is recovered here, from the rows that do not judge."""
        learned = self.rows(cell.fold, learned=True)
        images = Subset(self.photographs, learned)
        # Images of the photographs' size as they are; larger ones are enlarged.
        crop = Preprocessing(off.image_size, crop=1.0)
        vit = dataclasses.replace(off, preprocessing=crop)
        return imagepiece_jax.recover(vit, images, steps=self.steps, seed=SEED)

    # Images

    def rows(self, fold: str, learned: bool = False) -> np.ndarray:
        """Places of the photographs that judge a fold, or that it learns from."""
        if learned:
            fold = {"A": "B", "B": "A"}[fold]
        places = np.arange(len(self.photographs))
        return places[FOLDS[fold]]

    @functools.lru_cache(maxsize=2)  # noqa: B019 a study lives as long as its process
    def clean(self, fold: str) -> list[dict[str, Any]]:
        """Batches of the rows that judge."""
        images = Subset(self.photographs, self.rows(fold))
        return list(study.batches(images, study.as_it_is(self.size)))

    def images(self, fold: str, damage: str) -> list[dict[str, Any]]:
        if damage == CLEAN:
            return self.clean(fold)
        return [damaged(batch, DAMAGE[damage]) for batch in self.clean(fold)]

    @functools.cached_property
    def answer_of_dense(self):
        return study.answerer(self.dense_model(self.size))

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def dense(self, fold: str, damage: str = CLEAN) -> np.ndarray:
        """The dense model's logits."""
        return self.answer_of_dense(self.images(fold, damage))

    # Measures

    def judged(self, cell, logits, damage=CLEAN) -> dict[str, Any]:
        """KL divergence from the dense model on the same images, and right answers."""
        return self.beside(self.dense(cell.fold, damage), logits, cell.fold)

    def beside(self, dense, logits, fold) -> dict[str, Any]:
        """KL divergence from a dense model's logits, and right answers."""
        right = logits.argmax(axis=1) == study.labels(self.clean(fold))
        return study.stored(study.divergence(dense, logits), right)

    def under_damage(self, cell, vit) -> dict[str, Any]:
        answer = study.answerer(vit)
        found = {}
        for damage in (CLEAN, *DAMAGE):
            logits = answer(self.images(cell.fold, damage))
            found[damage] = self.judged(cell, logits, damage)
        return found

    def in_bfloat16(self, cell, vit) -> dict[str, Any]:
        model = vit.model.clone(dtype=jnp.dtype("bfloat16"))
        vit = dataclasses.replace(vit, model=model)
        answer = study.answerer(vit)
        logits = answer(self.clean(cell.fold))
        return {CLEAN: self.judged(cell, logits)}

    def in_int8(self, cell, vit, runtime="onnxruntime") -> dict[str, Any]:
        """Calibrated by images that the fold learns from."""
        with tempfile.TemporaryDirectory() as name, signals.unfinished(name):
            folder = pathlib.Path(name)
            self.write_graphs(folder, vit, cell.fold, [runtime])
            path = folder / quantize.FILES[runtime, "int8"]
            program = quantize.RUNTIMES[runtime](path, study.THREADS)
            parts = []
            for batch in self.clean(cell.fold):
                images = batch["image"]
                there = batch["mask"].ravel() > 0
                pixels = images.reshape(-1, *images.shape[2:])[there]
                for image in normalized(vit, pixels):
                    outputs = program(image[None])
                    parts.append(outputs[0])
        logits = np.concatenate(parts)
        return {CLEAN: self.judged(cell, logits)}

    def write_graphs(self, folder, vit, fold, runtimes, batch_size=1):
        """The float32 graph, and the int8 ones that runtimes read."""
        graph = onnx_model(vit, batch_size=batch_size)
        write_onnx(folder / quantize.FILES[quantize.FLOAT], graph)
        learned = self.rows(fold, learned=True)
        pixels = []
        for place in evenly_spaced(len(learned), self.calibration):
            image, _ = self.photographs.read(int(learned[place]))
            pixels.append(image)
        images = normalized(vit, np.stack(pixels))
        count = -(-len(images) // batch_size)
        # The last batch is filled with the first images.
        batches = np.resize(images, (count, batch_size, *images.shape[1:]))
        for runtime in runtimes:
            quantize.QUANTIZERS[runtime](folder, batches)

    def on_imagenette(self, cell, vit) -> dict[str, Any]:
        """Right answers among 1,000 classes, without the images of the reverse.

        Beside them, which was not declared: right answers by class, how often the first
        class is the dense model's, and the mean KL divergence with its interval.
        """
        labels = self.imagenette.labels[self.judged_of_imagenette]
        dense = self.dense_on_imagenette
        logits = dense
        if cell.student != "dense":
            logits = self.logits_on_imagenette(vit)
        classes = logits.argmax(axis=1)
        right = classes == labels
        by_class = {}
        for label in np.unique(labels):
            own = right[labels == label]
            by_class[str(label)] = [int(own.sum()), len(own)]
        divergences = study.divergence(dense, logits)
        kl = statistics.mean_difference(divergences, np.zeros(len(divergences)))
        return {
            "imagenette": study.stored_right(right),
            "classes": by_class,
            "agreement": float(np.mean(classes == dense.argmax(axis=1))),
            "kl": list(kl),
        }

    @functools.cached_property
    def judged_of_imagenette(self) -> np.ndarray:
        """Places of the images that the reverse does not learn from."""
        count = len(self.imagenette)
        learned = evenly_spaced(count, LEARNED_OF_IMAGENETTE)
        return np.setdiff1d(np.arange(count), learned)

    @functools.cached_property
    def dense_on_imagenette(self) -> np.ndarray:
        return self.logits_on_imagenette(self.dense_model(self.size))

    def logits_on_imagenette(self, vit) -> np.ndarray:
        images = Subset(self.imagenette, self.judged_of_imagenette)
        side, _ = sides(vit.image_size)
        answer = study.answerer(vit)
        return answer(study.batches(images, study.enlarged(side)))

    def at_large_size(self, cell, vit) -> dict[str, Any]:
        """Beside the dense model on images that are enlarged as much."""
        answer = study.answerer(vit)
        logits = answer(self.clean(cell.fold))
        dense = self.dense_at_large_size(cell.fold)
        return {CLEAN: self.beside(dense, logits, cell.fold)}

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def dense_at_large_size(self, fold):
        answer = study.answerer(self.dense_model(self.large))
        return answer(self.clean(fold))

    def on_maps(self, cell, vit) -> dict[str, Any]:
        """Saliency maps and patch features beside the dense model's."""
        theirs, features = self.dense_maps(cell.fold)
        ours, own = self.maps_of(vit, cell.fold)
        cosines = maps.cosine(own, features).mean(axis=1)
        found = maps.figures(ours, theirs)
        found["cosine"] = [round(float(value), 5) for value in cosines]
        return found

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def dense_maps(self, fold):
        return self.maps_of(self.dense_model(self.size, "encoder"), fold)

    def maps_of(self, vit, fold):
        """(maps [images, H, W], patch features [images, patches, D])."""
        model = vit.model
        head = dense_head.read_head(self.decoder, model.embed_dim)
        norm = final_norm(model, vit.variables)
        size = sides(vit.image_size)
        grid = patch_grid(vit.image_size, model.patch_size, cut=True)

        def read(outputs, batch):
            patches = feature_map(outputs, grid, norm=norm)
            images, _, _, width = patches.shape
            return {
                "map": dense_head.decode(head, patches, size),
                "patches": patches.reshape(images, -1, width),
            }

        answer = study.reader(vit, read)
        found = answer(self.clean(fold))
        return found["map"], found["patches"]


MEASURES = {
    "damage": Study.under_damage,
    "bfloat16": Study.in_bfloat16,
    "int8": Study.in_int8,
    NNCF: functools.partial(Study.in_int8, runtime="OpenVINO"),
    "imagenette": Study.on_imagenette,
    "large": Study.at_large_size,
    "maps": Study.on_maps,
}


def decisions(vit) -> list[tuple]:
    """How many tokens leave each block, and what decides which."""
    found = []
    for layer in vit.model.plan:
        reducer = layer.step.reducer if layer.step else None
        found.append((layer.mlp_tokens, reducer))
    return found


def normalized(vit, pixels) -> np.ndarray:
    return np.asarray(normalize(pixels, vit.model.mean, vit.model.std))


# Times

BATCHES = (1, 8)
RULES = timer.Rules(warmup=5, repeats=15, seconds=1.0)
TIMED = {"dense": OFF, "three-0.5": RECOVERED_FORM}


def measure_times(whole: Study, rules=RULES, threads=study.THREADS) -> dict[str, Any]:
    """Seconds of a batch in turns: models, runtimes, and float32 beside int8."""
    rows = []
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as name, signals.unfinished(name):
            programs = timed_programs(whole, pathlib.Path(name), threads, batch)
            shape = (batch, whole.size, whole.size, 3)
            images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            jobs = {key: timed(program, images) for key, program in programs.items()}
            readings = timer.measure(jobs, rules, rest=lambda: time.sleep(0.1))
            for (student, runtime, weights), own in readings.items():
                base = readings["dense", runtime, "float32"]
                row = {
                    "student": student,
                    "runtime": runtime,
                    "weights": weights,
                    "batch_size": batch,
                    "seconds": timer.spread(own),
                    "ratio": timer.spread(timer.speedups(base, own)),
                }
                rows.append(row)
    return {"repeats": rules.repeats, "versions": study.versions(), "rows": rows}


def timed_programs(
    whole: Study, folder: pathlib.Path, threads: int, batch_size: int
) -> dict:
    """Programs by (student, runtime, weights), of the runtimes that are installed."""
    runtimes = ["onnxruntime"]
    quantizers = ["onnxruntime"]
    if importlib.util.find_spec("openvino"):
        runtimes.append("OpenVINO")
        if importlib.util.find_spec("nncf"):
            quantizers.append("OpenVINO")
    programs = {}
    for student, form in TIMED.items():
        own = folder / student
        own.mkdir()
        vit = whole.model(Cell("int8", student, form))
        whole.write_graphs(own, vit, "A", quantizers, batch_size)
        for (runtime, weights), file in quantize.FILES.items():
            installed = quantizers if weights == "int8" else runtimes
            if runtime in installed:
                program = quantize.RUNTIMES[runtime](own / file, threads)
                programs[student, runtime, weights] = program
    return programs


def timed(program, images) -> timer.TimedCall:
    return timer.TimedCall(lambda number: program(images))


# Results


class Results:
    """The lines of a folder of cells."""

    def __init__(self, folder):
        every = set(cells())
        for fold in FOLDS:
            every.update(rounded_cells(NNCF, fold))
        self.runs = study.read(every, folder)
        self.times = []
        times = pathlib.Path(folder, "times.json")
        if times.exists():
            self.times = read_json(times)["rows"]

    def field(self, cell: Cell, name: str) -> Any:
        """What a cell's line has by a name; None where it is not measured."""
        found = self.runs.get(cell, {})
        return found.get(name)

    def fold(self, cell: Cell, condition: str) -> Judged | None:
        """Figures of the rows that judge a fold.

        Without the images of fold B by which `experiments recover` chose its recipe.
        """
        found = self.field(cell, condition)
        if found is None:
            return None
        judged = study.unpacked(found)
        if cell.fold == "A" or cell.student in ("large-0.5", *ENCODERS):
            return judged
        count = len(judged.kl)
        choosing = evenly_spaced(count, count // 5)
        return Judged(*(np.delete(values, choosing) for values in judged))

    def crossfitted(self, cell: Cell, condition: str = CLEAN) -> Judged | None:
        """Figures of both folds."""
        found = []
        for fold in FOLDS:
            own = dataclasses.replace(cell, fold=fold)
            found.append(self.fold(own, condition))
        if None in found:
            return None
        return Judged(*map(np.concatenate, zip(*found, strict=True)))

    def imagenette(self, cell: Cell) -> np.ndarray | None:
        """Right answers."""
        found = self.field(cell, "imagenette")
        return None if found is None else study.unpacked_right(found)

    def map_values(self, student: str, form: str, name: str) -> np.ndarray | None:
        """IoU or cosine of every image; NaN where the dense map has no pixel."""
        found = self.field(Cell("maps", student, form), name)
        return None if found is None else np.array(found, float)


def primary(results: Results) -> list[study.Test]:
    """E1 to E8: figures of recovered models minus those off the shelf."""
    tests = []

    def add(name, unit, pair):
        off, own = pair
        name = f"E{len(tests) + 1} {name}"
        tests.append(recovery_test(name, unit, off, own))

    for damage in STRONG:
        pair = kl_pair(results, Cell("damage", "three-0.5"), damage)
        add(f"3 blocks, .5, {damage}", "KL", pair)
    for kind in ("bfloat16", "int8"):
        pair = kl_pair(results, Cell(kind, "three-0.5"))
        add(f"3 blocks, .5, {kind}", "KL", pair)
    pair = []
    for form in FORMS:
        found = results.fold(Cell("large", "large-0.5", form), CLEAN)
        pair.append(None if found is None else found.kl)
    add("3 blocks, .5, 384 pixels", "KL", pair)
    for student in ("tome-0.5", "attended-0.5"):
        pair = [results.map_values(student, form, "iou") for form in FORMS]
        add(f"DINOv2-S, {STUDENTS[student].text}", "IoU", pair)
    return tests


def same_time(results: Results) -> study.Test:
    """I1: three blocks and the smaller image of their time, of imagenette's images."""
    name = "I1 3 blocks, .5 - dense, 176 pixels, both from imagenette, acc1 there"
    pair = []
    for student in ("three-0.5", "small-176"):
        pair.append(results.imagenette(Cell("imagenette", student, REVERSE)))
    return study.accuracy_test(name, *pair, "different")


def recovery_test(name: str, unit: str, off, own) -> study.Test:
    """Whether recovery changed figures [images] and, in the claim, for the better.

    Images without a figure, NaN, are left out.
    """
    if off is None or own is None:
        return study.Test(name, unit, None)
    there = ~np.isnan(own - off)
    test = study.paired_test(name, unit, own[there], off[there])
    gain = test.change.value
    if unit == "KL":
        gain = -gain
    return test._replace(claim="holds" if gain > 0 else "worse")


def kl_pair(results, cell, condition=CLEAN) -> list[np.ndarray | None]:
    """KL off the shelf and recovered, crossfitted."""
    pair = []
    for form in FORMS:
        own = dataclasses.replace(cell, form=form)
        found = results.crossfitted(own, condition)
        pair.append(None if found is None else found.kl)
    return pair


# The page

INTRODUCTION = """\
Written by `python -m experiments recover_elsewhere --tables` from `runs.jsonl`.
[declared.md](declared.md) says what was declared before the cells were run. KL is the
mean divergence from the dense float32 model on the same images, damaged ones too, and
points are accuracy minus the dense model's there; brackets are 95 % intervals.
Photographs are judged by models that did not learn from them."""


def page(folder) -> str:
    """The tables of the cells that are there, as Markdown."""
    results = Results(folder)
    head = ("recovered - off the shelf", "unit", "difference")
    blocks = [
        "# Does recovery hold elsewhere?",
        INTRODUCTION,
        study.crops_text("photographs", "imagenette"),
        "## Tests",
        study.tests_table(primary(results), *head),
        "## Damaged photographs",
        damage_table(results),
        "## bfloat16 and int8",
        rounded_table(results),
        "## imagenette",
        imagenette_table(results),
        "A test of its own, declared later, before its runs:",
        study.tests_table([same_time(results)]),
        BY_CLASS,
        imagenette_classes(results),
        "## 384 pixels",
        large_table(results),
        "## Maps of DINOv2-S",
        maps_table(results),
        "## The fastest forms",
        times_table(results),
    ]
    return study.page(blocks, cells(), results.runs)


def figures(own: Judged | None, dense: Judged | None) -> str:
    """ "0.123 / -1.0 [-2.0, 0.0]", KL and points; blank where one is missing."""
    if own is None or dense is None:
        return ""
    change = statistics.paired_difference(own.right, dense.right)
    points = statistics.format_estimate(change, signs=True)
    return f"{own.kl.mean():.3f} / {points}"


def damage_table(results) -> str:
    """Students off the shelf and recovered, by damage; crossfitted."""
    conditions = (CLEAN, *DAMAGE)
    cell = Cell("damage", "dense")
    dense = {}
    dense_of_a = {}
    line = ["dense", ""]
    for condition in conditions:
        found = results.crossfitted(cell, condition)
        dense[condition] = found
        dense_of_a[condition] = results.fold(cell, condition)
        line.append("" if found is None else percent(found.right))
    lines = [line]
    for student in DAMAGED:
        for form in FORMS:
            cell = Cell("damage", student, form)
            line = [STUDENTS[student].text, form]
            for condition in conditions:
                own = results.crossfitted(cell, condition)
                line.append(figures(own, dense[condition]))
            lines.append(line)
    cell = Cell("damage", "three-0.5", REVERSE)
    line = [f"{STUDENTS['three-0.5'].text}, odd rows", REVERSE]
    for condition in conditions:
        own = results.fold(cell, condition)
        line.append(figures(own, dense_of_a[condition]))
    lines.append(line)
    return markdown_table(["KL / points", "weights", *conditions], lines)


def percent(right: np.ndarray) -> str:
    return f"{100 * right.mean():.1f} %"


def text_of(student: str) -> str:
    return student if student == "dense" else STUDENTS[student].text


def rounded_table(results) -> str:
    """bfloat16 and int8 beside float32, crossfitted."""
    kinds = {
        "damage": "float32",
        "bfloat16": "bfloat16",
        "int8": "int8, onnxruntime",
        NNCF: "int8, OpenVINO",
    }
    dense = results.crossfitted(Cell("damage", "dense"))
    models = [("dense", OFF)]
    models += [("three-0.5", form) for form in FORMS]
    lines = []
    for student, form in models:
        line = [text_of(student), form]
        for kind in kinds:
            own = results.crossfitted(Cell(kind, student, form))
            line.append(figures(own, dense))
        lines.append(line)
    head = ["KL / points, to dense float32", "weights", *kinds.values()]
    return markdown_table(head, lines)


def imagenette_table(results) -> str:
    """Accuracies without the 500 images that the reverse learned from."""
    forms = (*FORMS, REVERSE)
    lines = []
    for student in ("dense", *ON_IMAGENETTE):
        line = [text_of(student)]
        for form in forms:
            line.append(imagenette_figures(results, student, form))
        lines.append(line)
    return markdown_table(["acc1 (points to dense)", *forms], lines)


BY_CLASS = """\
Not declared: how near these answers are to the dense model's, and acc1 by class. What
is learned from photographs moves whole classes, so that the brackets above, which are
over images, say little about other classes than these ten."""


def imagenette_classes(results) -> str:
    """KL divergence from the dense model, agreement with it, and acc1 by class."""
    cells = [Cell("imagenette", "dense")]
    for form in (*FORMS, REVERSE):
        cells.append(Cell("imagenette", "three-0.5", form))
    measured = [cell for cell in cells if cell in results.runs]
    if not measured:
        return "Not measured yet."
    head = ["3 blocks, .5"]
    divergences = ["KL"]
    agreements = ["the dense model's first class, %"]
    for cell in measured:
        head.append("dense" if cell.student == "dense" else cell.form)
        divergences.append(study.interval(results.field(cell, "kl"), 3))
        agreements.append(f"{100 * results.field(cell, 'agreement'):.1f}")
    lines = [divergences, agreements]
    for label in results.field(measured[0], "classes"):
        name = imagenet_names()[int(label)]
        line = [f"{name}, %"]
        for cell in measured:
            right, images = results.field(cell, "classes")[label]
            line.append(f"{100 * right / images:.1f}")
        lines.append(line)
    return markdown_table(head, lines)


def imagenette_figures(results, student: str, form: str) -> str:
    """ "80.1 % (-1.0 [-2.0, 0.0])"; blank where a model is missing."""
    dense = results.imagenette(Cell("imagenette", "dense"))
    own = results.imagenette(Cell("imagenette", student, form))
    if own is None or dense is None:
        return ""
    if student == "dense":
        return percent(own)
    change = statistics.paired_difference(own, dense)
    return f"{percent(own)} ({statistics.format_estimate(change, signs=True)})"


def large_table(results) -> str:
    """384 pixels, odd rows."""
    dense = results.fold(Cell("large", "dense"), CLEAN)
    line = [STUDENTS["large-0.5"].text]
    for form in FORMS:
        own = results.fold(Cell("large", "large-0.5", form), CLEAN)
        line.append(figures(own, dense))
    return markdown_table(["KL / points, odd rows", *FORMS], [line])


def maps_table(results) -> str:
    """IoU of saliency maps and cosine of patch features with the dense ones."""
    lines = []
    for student in ENCODERS:
        line = [STUDENTS[student].text]
        for name in ("iou", "cosine"):
            off = results.map_values(student, OFF, name)
            own = results.map_values(student, RECOVERED_FORM, name)
            for values in (off, own):
                line.append("" if values is None else f"{np.nanmean(values):.3f}")
            test = recovery_test(name, "", off, own)
            line.append(statistics.format_difference(test.change, 3))
        lines.append(line)
    head = ["odd rows", "IoU, off", "IoU, recovered", "difference"]
    head += ["cosine, off", "cosine, recovered", "difference"]
    return markdown_table(head, lines)


INT8 = {"onnxruntime": "int8", "OpenVINO": NNCF}  # the kind of its cells


def fastest(results: Results) -> list[parts.Rounded]:
    """int8, dense and with three blocks at .5, beside dense float32; odd rows."""
    rows = []
    for student, text in (("dense", "dense"), ("three-0.5", THREE_BLOCKS)):
        for runtime, kind in INT8.items():
            ratios = {}
            for row in results.times:
                form = (row["student"], row["runtime"], row["weights"])
                if form == (student, runtime, "int8"):
                    ratios[runtime, row["batch_size"]] = row["ratio"]
            pair = []
            for form in FORMS:
                found = results.fold(Cell(kind, student, form), CLEAN)
                pair.append(None if found is None else found.right)
            if ratios:
                name = f"{text}, int8 in {runtime}"
                gmacs = results.field(Cell(kind, student), "gmacs")
                dense = results.field(Cell(kind, "dense"), "gmacs")
                rows.append(parts.Rounded(name, gmacs / dense, *pair, ratios))
    return rows


def times_table(results) -> str:
    """Times beside the dense float32 model of the same runtime."""
    if not results.times:
        return "Not measured yet."
    texts = {"dense": "dense", "three-0.5": "3 blocks, .5, recovered"}
    forms = itertools.product(texts, ("onnxruntime", "OpenVINO"), ("float32", "int8"))
    lines = []
    for form in forms:
        student, runtime, weights = form
        times = []
        for row in sorted(results.times, key=lambda row: row["batch_size"]):
            if (row["student"], row["runtime"], row["weights"]) == form:
                milliseconds = 1e3 * row["seconds"][0]
                ratio = study.spread(row["ratio"])
                times.append(f"{milliseconds:.1f} ({ratio})")
        if times:
            lines.append([texts[student], runtime, weights, *times])
    head = ["model", "runtime", "weights", *(f"ms, batch of {n}" for n in BATCHES)]
    note = (
        "In brackets: times as fast as the runtime's dense float32 model, in turns, "
        "with the lowest and the highest."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def main():
    folder = FLAGS.folder
    chosen = FLAGS.cells_to_run(cells(), page)
    if not chosen:
        return
    weights = cli.required(WEIGHTS)
    photographs = open_source(cli.required(DATA), "val", num_classes=1000)
    recovered = cli.required(RECOVERED)
    imagenette = None
    if IMAGENETTE.value:
        imagenette = Imagenette(IMAGENETTE.value)
    whole = Study(
        weights=weights,
        photographs=photographs,
        recovered=pathlib.Path(recovered),
        imagenette=imagenette,
        encoder=ENCODER.value,
        decoder=DECODER.value,
    )
    if TIME.value:
        found = measure_times(whole)
        make_folder("--out", folder)
        write_json(folder / "times.json", found)
        return
    waiting = {cell: whole.missing(cell) for cell in chosen}
    ready = [cell for cell in chosen if waiting[cell] is None]
    study.run(ready, folder, whole.digests, whole.measure)
    for cell, reason in waiting.items():
        if reason is not None:
            print(f"{cell.name} waits for {reason}")


if __name__ == "__main__":
    cli.run(main)
