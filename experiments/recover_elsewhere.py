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
fastest forms, into FOLDER/times.json. --tables writes README.md beside FOLDER.
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
from experiments import dense_head, maps, quantize, study
from experiments.damage import DAMAGE, damaged
from experiments.imagenette import Imagenette
from imagepiece_jax import cli
from imagepiece_jax.common import timer
from imagepiece_jax.common.files import make_folder, read_json
from imagepiece_jax.common.image_size import patch_grid, sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import DEIT_CROP, Preprocessing
from imagepiece_jax.data.registry import open_source
from imagepiece_jax.data.source import Subset, evenly_spaced
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.inference.features import feature_map, final_norm
from imagepiece_jax.inference.onnx_model import onnx_model, write_onnx
from imagepiece_jax.models.variables import digest

WEIGHTS = cli.weights()
DATA = cli.data()
RECOVERED = cli.text("recovered", None, "the folder of the recovered models")
IMAGENETTE = cli.text("imagenette", None, "imagenette in one .npz file")
ENCODER = cli.text("encoder", None, "weights of a DINOv2-S")
DECODER = cli.text("decoder", None, "a weights file: the maps' head")
FOLDER = "docs/tables/recover_elsewhere/runs"
OUT = cli.text("out", None, f"the cells' folder; default: {FOLDER}")
ONLY = cli.listed("only", None, "names of cells, or patterns; default: all")
LIST = cli.switch("list", False, "print the names of all cells, and whether they are")
TIME = cli.switch("time", False, "measure times instead")
TABLES = cli.switch("tables", False, "write the page of the cells that are there")


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
    # These are recovered here.
    "large-0.5": Student("3 blocks, .5, 384 pixels", attended(0.5), 384),
    "tome-0.6": Student("ToMe, .6", {"name": "tome", "macs": 0.6}, 224, "encoder"),
    "tome-0.5": Student("ToMe, .5", {"name": "tome", "macs": 0.5}, 224, "encoder"),
    "attended-0.6": Student("3 blocks, .6", attended(0.6), 224, "encoder"),
    "attended-0.5": Student("3 blocks, .5", attended(0.5), 224, "encoder"),
}
STORED = tuple(STUDENTS)[:4]  # recovered by `experiments recover`
ENCODERS = tuple(STUDENTS)[5:]
OFF = "off"
RECOVERED_FORM = "recovered"
REVERSE = "from imagenette"
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
        return f"{self.student}.chosen.{self.fold}{SEED}"


FORMS = (OFF, RECOVERED_FORM)


def cells() -> Iterator[Cell]:
    """All cells, in the order in which they run."""
    for fold in FOLDS:
        yield Cell("damage", "dense", OFF, fold)
        for student, form in itertools.product(STORED, FORMS):
            yield Cell("damage", student, form, fold)
        for kind in ("bfloat16", "int8"):
            yield Cell(kind, "dense", OFF, fold)
            for form in FORMS:
                yield Cell(kind, "three-0.5", form, fold)
    yield Cell("damage", "three-0.5", REVERSE)
    yield Cell("imagenette", "dense")
    for student, form in itertools.product(STORED[:3], FORMS):
        yield Cell("imagenette", student, form)
    yield Cell("imagenette", "three-0.5", REVERSE)
    yield Cell("large", "dense")
    for form in FORMS:
        yield Cell("large", "large-0.5", form)
    for student, form in itertools.product(ENCODERS, FORMS):
        yield Cell("maps", student, form)
    if importlib.util.find_spec("nncf"):
        for fold in FOLDS:
            yield from openvino_cells(fold)


def openvino_cells(fold: str) -> Iterator[Cell]:
    """int8 by NNCF in OpenVINO, where it is installed."""
    yield Cell("int8-openvino", "dense", OFF, fold)
    for form in FORMS:
        yield Cell("int8-openvino", "three-0.5", form, fold)


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
        found = {"reduction": dict(vit.reduction), "gmacs": vit.gmacs}
        if vit.recovery is not None:
            found["recovery"] = dataclasses.asdict(vit.recovery)
        return found | MEASURES[cell.kind](self, cell, vit)

    # Models

    def missing(self, cell: Cell) -> str | None:
        """What a cell waits for."""
        if cell.kind == "imagenette" and self.imagenette is None:
            return "--imagenette"
        if cell.kind == "maps" and not (self.encoder and self.decoder):
            return "--encoder and --decoder"
        stored = cell.student in STORED and cell.folder is not None
        if stored and not pathlib.Path(self.recovered, cell.folder).exists():
            return f"{self.recovered}/{cell.folder}"
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
            raise InputError(problem, place=folder, allowed=allowed)
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
        images = Subset(self.photographs, self.rows(cell.fold, learned=True))
        # Images of the photographs' size as they are; larger ones are enlarged.
        crop = Preprocessing(off.image_size, crop=1.0)
        vit = dataclasses.replace(off, preprocessing=crop)
        return imagepiece_jax.recover(vit, images, steps=self.steps, seed=SEED)

    # Images

    def rows(self, fold: str, learned: bool = False) -> np.ndarray:
        """Places of the photographs that judge a fold, or that it learns from."""
        others = {"A": "B", "B": "A"}[fold]
        return np.arange(len(self.photographs))[FOLDS[others if learned else fold]]

    @functools.lru_cache(maxsize=2)  # noqa: B019 a study lives as long as its process
    def clean(self, fold: str) -> list[dict[str, Any]]:
        """Batches of the rows that judge."""
        images = Subset(self.photographs, self.rows(fold))
        return list(study.batches(images, Preprocessing(self.size, resize="none")))

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
        right = logits.argmax(axis=1) == study.labels(self.clean(cell.fold))
        kl = study.divergence(self.dense(cell.fold, damage), logits)
        return study.stored(kl, right)

    def under_damage(self, cell, vit) -> dict[str, Any]:
        answer = study.answerer(vit)
        found = {}
        for damage in (CLEAN, *DAMAGE):
            logits = answer(self.images(cell.fold, damage))
            found[damage] = self.judged(cell, logits, damage)
        return found

    def in_bfloat16(self, cell, vit) -> dict[str, Any]:
        model = vit.model.clone(dtype=jnp.dtype("bfloat16"))
        answer = study.answerer(dataclasses.replace(vit, model=model))
        return {CLEAN: self.judged(cell, answer(self.clean(cell.fold)))}

    def in_int8(self, cell, vit, runtime="onnxruntime") -> dict[str, Any]:
        """Calibrated by images that the fold learns from."""
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            self.write_graphs(folder, vit, cell.fold, [runtime])
            program = quantize.RUNTIMES[runtime](
                folder / quantize.FILES[runtime, "int8"], study.THREADS
            )
            parts = []
            for batch in self.clean(cell.fold):
                images = batch["image"].reshape(-1, *batch["image"].shape[2:])
                images = images[batch["mask"].ravel() > 0]
                parts.append(program(normalized(vit, images))[0])
        return {CLEAN: self.judged(cell, np.concatenate(parts))}

    def write_graphs(self, folder, vit, fold, runtimes):
        """The float32 graph, and the int8 ones that runtimes read."""
        write_onnx(folder / quantize.FILES[quantize.FLOAT], onnx_model(vit))
        learned = self.rows(fold, learned=True)
        places = learned[evenly_spaced(len(learned), self.calibration)]
        pixels = np.stack([self.photographs.read(int(place))[0] for place in places])
        for runtime in runtimes:
            quantize.QUANTIZERS[runtime](folder, normalized(vit, pixels))

    def on_imagenette(self, cell, vit) -> dict[str, Any]:
        """Right answers among 1,000 classes, without the images of the reverse."""
        count = len(self.imagenette)
        learned = evenly_spaced(count, LEARNED_OF_IMAGENETTE)
        places = np.setdiff1d(np.arange(count), learned)
        images = Subset(self.imagenette, places)
        crop = Preprocessing(sides(vit.image_size)[0], crop=DEIT_CROP)
        logits = study.answerer(vit)(study.batches(images, crop))
        right = logits.argmax(axis=1) == self.imagenette.labels[places]
        return {"imagenette": study.stored_right(right)}

    def at_large_size(self, cell, vit) -> dict[str, Any]:
        """Beside the dense model on images that are enlarged as much."""
        answer = study.answerer(vit)
        logits = answer(self.clean(cell.fold))
        right = logits.argmax(axis=1) == study.labels(self.clean(cell.fold))
        kl = study.divergence(self.dense_at_large_size(cell.fold), logits)
        return {CLEAN: study.stored(kl, right)}

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def dense_at_large_size(self, fold):
        return study.answerer(self.dense_model(self.large))(self.clean(fold))

    def on_maps(self, cell, vit) -> dict[str, Any]:
        """Saliency maps and patch features beside the dense model's."""
        theirs, features = self.dense_maps(cell.fold)
        ours, own = self.maps_of(vit, cell.fold)
        near = maps.cosine(own, features).mean(axis=1)
        found = maps.figures(ours, theirs)
        return found | {"cosine": [round(float(value), 5) for value in near]}

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def dense_maps(self, fold):
        return self.maps_of(self.dense_model(self.size, "encoder"), fold)

    def maps_of(self, vit, fold):
        """(maps [images, H, W], patch features [images, patches, D])."""
        head = dense_head.read_head(self.decoder, vit.model.embed_dim)
        norm = final_norm(vit.model, vit.variables)
        size = sides(vit.image_size)
        grid = patch_grid(vit.image_size, vit.model.patch_size, cut=True)

        def read(outputs, batch):
            patches = feature_map(outputs, grid, norm=norm)
            flat = patches.reshape(len(patches), -1, patches.shape[3])
            return {"map": dense_head.decode(head, patches, size), "patches": flat}

        found = study.reader(vit, read)(self.clean(fold))
        return found["map"], found["patches"]


MEASURES = {
    "damage": Study.under_damage,
    "bfloat16": Study.in_bfloat16,
    "int8": Study.in_int8,
    "int8-openvino": functools.partial(Study.in_int8, runtime="OpenVINO"),
    "imagenette": Study.on_imagenette,
    "large": Study.at_large_size,
    "maps": Study.on_maps,
}


def decisions(vit) -> list[tuple]:
    """How many tokens leave each block, and what decides which."""
    plan = vit.model.plan
    return [(layer.mlp_tokens, layer.step and layer.step.reducer) for layer in plan]


def normalized(vit, pixels) -> np.ndarray:
    return np.asarray(normalize(pixels, vit.model.mean, vit.model.std))


# Times

BATCHES = (1, 8)
RULES = timer.Rules(warmup=5, repeats=15, seconds=1.0)
TIMED = {"dense": OFF, "three-0.5": RECOVERED_FORM}


def measure_times(whole: Study, rules=RULES, threads=study.THREADS) -> dict[str, Any]:
    """Seconds of a batch in turns: models, runtimes, and float32 beside int8."""
    runtimes = ["onnxruntime", "OpenVINO"]
    if not importlib.util.find_spec("openvino"):
        runtimes.remove("OpenVINO")
    quantizers = [name for name in runtimes if name != "OpenVINO"]
    if "OpenVINO" in runtimes and importlib.util.find_spec("nncf"):
        quantizers.append("OpenVINO")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        programs = {}
        for student, form in TIMED.items():
            folder = pathlib.Path(name, student)
            folder.mkdir()
            vit = whole.model(Cell("int8", student, form))
            whole.write_graphs(folder, vit, "A", quantizers)
            for runtime, weights in quantize.FILES:
                if weights == "int8" and runtime not in quantizers:
                    continue
                if runtime in runtimes:
                    path = folder / quantize.FILES[runtime, weights]
                    key = student, runtime, weights
                    programs[key] = quantize.RUNTIMES[runtime](path, threads)
        for batch in BATCHES:
            shape = batch, whole.size, whole.size, 3
            images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            jobs = {key: timed(program, images) for key, program in programs.items()}
            readings = timer.measure(jobs, rules, rest=lambda: time.sleep(0.1))
            for (student, runtime, weights), own in readings.items():
                base = readings["dense", runtime, "float32"]
                row = {"student": student, "runtime": runtime, "weights": weights}
                row |= {"batch_size": batch, "seconds": timer.spread(own)}
                rows.append(row | {"ratio": timer.spread(timer.speedups(base, own))})
    return {"repeats": rules.repeats, "versions": study.versions(), "rows": rows}


def timed(program, images) -> timer.TimedCall:
    return timer.TimedCall(lambda number: program(images), lambda result: result)


# Results


class Results:
    """The files of a folder of cells."""

    def __init__(self, folder):
        every = {*cells(), *openvino_cells("A"), *openvino_cells("B")}
        self.files = study.read(every, folder)
        times = pathlib.Path(folder, "times.json")
        self.times = read_json(times)["rows"] if times.exists() else []

    def fold(self, cell: Cell, condition: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(KL, right) of the rows that judge a fold.

        Without the images of fold B by which `experiments recover` chose its recipe.
        """
        found = self.files.get(cell, {}).get(condition)
        if found is None:
            return None
        kl, right = study.unpacked(found)
        if cell.fold == "A" or cell.student in ("large-0.5", *ENCODERS):
            return kl, right
        choosing = evenly_spaced(len(kl), len(kl) // 5)
        return np.delete(kl, choosing), np.delete(right, choosing)

    def crossfitted(self, cell: Cell, condition: str = CLEAN):
        """(KL, right) of both folds."""
        both = [dataclasses.replace(cell, fold=fold) for fold in FOLDS]
        found = [self.fold(each, condition) for each in both]
        if None in found:
            return None
        return tuple(map(np.concatenate, zip(*found, strict=True)))

    def imagenette(self, cell: Cell) -> np.ndarray | None:
        found = self.files.get(cell, {}).get("imagenette")
        return None if found is None else study.unpacked_right(found)

    def map_values(self, student: str, form: str, name: str) -> np.ndarray | None:
        """IoU or cosine of every image; NaN where the dense map has no pixel."""
        found = self.files.get(Cell("maps", student, form))
        return None if found is None else np.array(found[name], float)


def primary(results: Results) -> list[study.Test]:
    """E1 to E8: figures of recovered models minus those off the shelf."""
    pairs = {}
    for damage in STRONG:
        pair = kl_pair(results, Cell("damage", "three-0.5"), damage)
        pairs[f"3 blocks, .5, {damage}"] = pair
    for kind in ("bfloat16", "int8"):
        pair = kl_pair(results, Cell(kind, "three-0.5"))
        pairs[f"3 blocks, .5, {kind}"] = pair
    both = [results.fold(Cell("large", "large-0.5", form), CLEAN) for form in FORMS]
    pairs["3 blocks, .5, 384 pixels"] = [found and found[0] for found in both]
    tests = []
    for name, (off, own) in pairs.items():
        name = f"E{len(tests) + 1} {name}"
        tests.append(recovery_test(name, "KL", off, own))
    for student in ("tome-0.5", "attended-0.5"):
        both = [results.map_values(student, form, "iou") for form in FORMS]
        name = f"E{len(tests) + 1} DINOv2-S, {STUDENTS[student].text}"
        tests.append(recovery_test(name, "IoU", *both))
    return tests


def recovery_test(name: str, unit: str, off, own) -> study.Test:
    """Whether recovery changed figures [images] and, in the claim, for the better.

    Images without a figure, NaN, are left out.
    """
    if off is None or own is None:
        return study.Test(name, unit, None)
    there = ~np.isnan(own - off)
    test = study.paired_test(name, unit, own[there], off[there])
    gain = test.change.value if unit == "IoU" else -test.change.value
    return test._replace(claim="holds" if gain > 0 else "worse")


def kl_pair(results, cell, condition=CLEAN) -> list[np.ndarray | None]:
    """KL off the shelf and recovered, crossfitted."""
    found = []
    for form in FORMS:
        each = results.crossfitted(dataclasses.replace(cell, form=form), condition)
        found.append(None if each is None else each[0])
    return found


# The page

INTRODUCTION = """\
Written by `python -m experiments recover_elsewhere --tables` from the files in `runs`.
[declared.md](declared.md) says what was declared before the cells were run. KL is the
mean divergence from the dense float32 model on the same images, damaged ones too, and
points are accuracy minus the dense model's there; brackets are 95 % intervals.
Photographs are judged by models that did not learn from them."""


def page(folder) -> str:
    """The tables of the cells that are there, as Markdown."""
    results = Results(folder)
    blocks = ["# Does recovery hold elsewhere?", INTRODUCTION]
    head = ("recovered - off the shelf", "unit", "difference")
    blocks += ["## Tests", study.tests_table(primary(results), *head)]
    blocks += ["## Damaged photographs", damage_table(results)]
    blocks += ["## bfloat16 and int8", rounded_table(results)]
    blocks += ["## imagenette", imagenette_table(results)]
    blocks += ["## 384 pixels", large_table(results)]
    blocks += ["## Maps of DINOv2-S", maps_table(results)]
    blocks += ["## The fastest forms", times_table(results)]
    return study.page(blocks, cells(), results.files)


def figures(own, dense) -> str:
    """ "0.123 / -1.0 [-2.0, 0.0]" of (KL, right) pairs; blank where one is missing."""
    if own is None or dense is None:
        return ""
    change = statistics.paired_difference(own[1], dense[1])
    points = statistics.format_estimate(change, signs=True)
    return f"{own[0].mean():.3f} / {points}"


def damage_table(results) -> str:
    """Students off the shelf and recovered, by damage; crossfitted."""
    conditions = (CLEAN, *DAMAGE)
    dense = {}
    for condition in conditions:
        dense[condition] = results.crossfitted(Cell("damage", "dense"), condition)
    accuracies = []
    for condition in conditions:
        found = dense[condition]
        accuracies.append("" if found is None else f"{100 * found[1].mean():.1f} %")
    lines = [["dense", "", *accuracies]]
    for student, form in itertools.product(STORED, FORMS):
        cell = Cell("damage", student, form)
        row = [figures(results.crossfitted(cell, d), dense[d]) for d in conditions]
        lines.append([STUDENTS[student].text, form, *row])
    dense_of_a = {d: results.fold(Cell("damage", "dense"), d) for d in conditions}
    cell = Cell("damage", "three-0.5", REVERSE)
    row = [figures(results.fold(cell, d), dense_of_a[d]) for d in conditions]
    lines.append([f"{STUDENTS['three-0.5'].text}, odd rows", REVERSE, *row])
    return markdown_table(["KL / points", "weights", *conditions], lines)


def rounded_table(results) -> str:
    """bfloat16 and int8 beside float32, crossfitted."""
    dense = results.crossfitted(Cell("damage", "dense"))
    kinds = {
        "damage": "float32",
        "bfloat16": "bfloat16",
        "int8": "int8, onnxruntime",
        "int8-openvino": "int8, OpenVINO",
    }
    lines = []
    for student, form in (("dense", OFF), *(("three-0.5", form) for form in FORMS)):
        text = "dense" if student == "dense" else STUDENTS[student].text
        row = [results.crossfitted(Cell(kind, student, form)) for kind in kinds]
        lines.append([text, form, *(figures(own, dense) for own in row)])
    head = ["KL / points, to dense float32", "weights", *kinds.values()]
    return markdown_table(head, lines)


def imagenette_table(results) -> str:
    """Accuracies without the 500 images that the reverse learned from."""
    dense = results.imagenette(Cell("imagenette", "dense"))
    forms = (*FORMS, REVERSE)
    lines = []
    for student in ("dense", *STORED[:3]):
        text = "dense" if student == "dense" else STUDENTS[student].text
        row = []
        for form in forms:
            own = results.imagenette(Cell("imagenette", student, form))
            words = ""
            if own is not None and dense is not None:
                words = f"{100 * own.mean():.1f} %"
            if words and student != "dense":
                change = statistics.paired_difference(own, dense)
                words += f" ({statistics.format_estimate(change, signs=True)})"
            row.append(words)
        lines.append([text, *row])
    return markdown_table(["acc1 (points to dense)", *forms], lines)


def large_table(results) -> str:
    """384 pixels, odd rows."""
    dense = results.fold(Cell("large", "dense"), CLEAN)
    line = [STUDENTS["large-0.5"].text]
    for form in FORMS:
        line.append(
            figures(results.fold(Cell("large", "large-0.5", form), CLEAN), dense)
        )
    return markdown_table(["KL / points, odd rows", *FORMS], [line])


def maps_table(results) -> str:
    """IoU of saliency maps and cosine of patch features with the dense ones."""
    lines = []
    for student in ENCODERS:
        line = [STUDENTS[student].text]
        for name in ("iou", "cosine"):
            found = [results.map_values(student, form, name) for form in FORMS]
            for values in found:
                mean = "" if values is None else f"{np.nanmean(values):.3f}"
                line.append(mean)
            change = ""
            if None not in [None if v is None else 0 for v in found]:
                there = ~np.isnan(found[1] - found[0])
                change = statistics.mean_difference(found[1][there], found[0][there])
                change = statistics.format_difference(change, 3)
            line.append(change)
        lines.append(line)
    head = ["odd rows", "IoU, off", "IoU, recovered", "difference"]
    head += ["cosine, off", "cosine, recovered", "difference"]
    return markdown_table(head, lines)


def times_table(results) -> str:
    """Times beside the dense float32 model of the same runtime."""
    if not results.times:
        return "Not measured yet."
    names = {"dense": "dense", "three-0.5": "3 blocks, .5, recovered"}
    lines = []
    for (student, text), runtime in itertools.product(
        names.items(), ("onnxruntime", "OpenVINO")
    ):
        for weights in ("float32", "int8"):
            key = student, runtime, weights
            rows = [
                row
                for row in results.times
                if (row["student"], row["runtime"], row["weights"]) == key
            ]
            cells_of = []
            for row in sorted(rows, key=lambda row: row["batch_size"]):
                milliseconds = 1e3 * row["seconds"][0]
                ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
                cells_of.append(f"{milliseconds:.1f} ({ratio})")
            if cells_of:
                lines.append([text, runtime, weights, *cells_of])
    head = ["model", "runtime", "weights", *(f"ms, batch of {n}" for n in BATCHES)]
    note = "In brackets: times as fast as the runtime's dense float32 model, in turns, "
    note += "with the lowest and the highest."
    return f"{markdown_table(head, lines)}\n\n{note}"


def main():
    folder = pathlib.Path(OUT.value or FOLDER)
    chosen = study.selected(cells(), ONLY.value)
    if LIST.value:
        study.print_list(chosen, folder)
        return
    if TABLES.value:
        study.write_page(folder, page(folder))
        return
    weights = cli.required(WEIGHTS)
    photographs = open_source(cli.required(DATA), "val", num_classes=1000)
    whole = Study(
        weights=weights,
        photographs=photographs,
        recovered=pathlib.Path(cli.required(RECOVERED)),
        imagenette=Imagenette(IMAGENETTE.value) if IMAGENETTE.value else None,
        encoder=ENCODER.value,
        decoder=DECODER.value,
    )
    if TIME.value:
        found = measure_times(whole)
        make_folder("--out", folder)
        study.write(folder / "times.json", found)
        return
    waiting = {cell: whole.missing(cell) for cell in chosen}
    ready = [cell for cell in chosen if waiting[cell] is None]
    study.run(ready, folder, whole.digests, whole.measure)
    for cell, reason in waiting.items():
        if reason is not None:
            print(f"{cell.name} waits for {reason}")


if __name__ == "__main__":
    cli.run(main)
