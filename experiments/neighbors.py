"""Are an image's nearest neighbors still found? A reduced encoder, and smaller images.

python -m experiments neighbors --weights FOLDER --photographs FOLDER
    --imagenette FOLDER --vectors FOLDER --out FOLDER [--only NAMES]
python -m experiments neighbors --list
python -m experiments neighbors --weights FOLDER --out FOLDER --time
python -m experiments neighbors --out FOLDER --tables

docs/tables/neighbors/declared.md declares it. A cell is a set of images and a setting,
and writes a line of FOLDER/runs.jsonl; the same command goes on with the cells that
have none. --vectors keeps the vectors of each, so that the dense model's are computed
once. --time measures images a second, into FOLDER/times.json. --tables writes
FOLDER/README.md from the lines that are there.
"""

import hashlib
import itertools
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

import imagepiece_jax
from experiments import intervals, study
from imagepiece_jax import cli
from imagepiece_jax.common import timer
from imagepiece_jax.common.files import read_json, write_json
from imagepiece_jax.common.progress import counted
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.common.timing_rules import Rules
from imagepiece_jax.data import decode
from imagepiece_jax.data.source import evenly_spaced
from imagepiece_jax.deploy import pictures
from imagepiece_jax.evaluate.statistics import Estimate, format_estimate
from imagepiece_jax.models.variables import digest

SETS = ("photographs", "imagenette")
FOLDER = pathlib.Path("docs/tables/neighbors")
OPTIONS = study.Options(FOLDER)

SIDE = 224
DENSE = "dense"
SETTINGS = {  # what is typed, for `load`
    DENSE: {},
    "reduction=0.6": {"reduction": 0.6},
    "image_size=182": {"image_size": 182},
    "reduction=0.5": {"reduction": 0.5},
    "image_size=168": {"image_size": 168},
}
PAIRS = (("reduction=0.6", "image_size=182"), ("reduction=0.5", "image_size=168"))
SPACED = 1000  # images, of which every second is taken
NEIGHBORS = 10
RULES = Rules(warmup=2, repeats=5, seconds=0.0)
BATCH_TIMED = 4


class Cell(NamedTuple):
    """A set of images, and a setting other than the dense model's."""

    images: str
    setting: str

    @property
    def name(self) -> str:
        return f"{self.images}.{self.setting.replace('=', '-')}"


def cells() -> list[Cell]:
    """All cells, in the order in which they run."""
    reduced = [name for name in SETTINGS if name != DENSE]
    return [Cell(*pair) for pair in itertools.product(SETS, reduced)]


# A cell


def loaded(weights, setting: str):
    """The encoder of a setting; images of its size are not cropped."""
    fields = {"image_size": SIDE, "dtype": "float32", **SETTINGS[setting]}
    return imagepiece_jax.load(weights, crop=1.0, **fields)


def image_paths(folder: str) -> list[str]:
    """The paths of the images of a set."""
    files = pictures.find_images([folder])
    return [files[i] for i in evenly_spaced(len(files), SPACED)][::2]


def vectors(vit, files: list[str]) -> np.ndarray:
    """Pooled vectors of image files, [images, D] float32."""
    found = []
    batches = range(0, len(files), study.BATCH)
    for start in counted(batches, "batches"):
        images = []
        for file in files[start : start + study.BATCH]:
            images.append(vit.preprocessing(decode.decode(file, file, upright=True)))
        pooled = imagepiece_jax.features(vit, np.stack(images)).pooled
        found.append(np.asarray(pooled, np.float32))
    return np.concatenate(found)


def neighbors(found: np.ndarray) -> np.ndarray:
    """The nearest other images of each, by cosine. [n, D] -> [n, NEIGHBORS]."""
    stored = found.astype(np.float16).astype(np.float32)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBORS]


def shared(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How many neighbors two lists have in common. [n, k] twice -> [n]."""
    return (ours[:, :, None] == theirs[:, None, :]).any(axis=2).sum(axis=1)


class Study:
    """The encoder, and the vectors of its settings."""

    def __init__(self, weights, folder, paths):
        self._paths = paths
        self._weights = weights
        self._folder = pathlib.Path(folder)
        os.makedirs(folder, exist_ok=True)
        self._kept = {}

    def vectors(self, images: str, setting: str, files: list[str]) -> np.ndarray:
        """The vectors of a set, from their file where it is there."""
        path = self._folder / f"{images}.{setting.replace('=', '-')}.npy"
        if not path.exists():
            np.save(path, vectors(loaded(self._weights, setting), files))
        return np.load(path)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """How many of its dense neighbors each image keeps, and cosines."""
        files = image_paths(self._paths[cell.images])
        names = "\n".join([pathlib.Path(file).name for file in files])
        dense = self.vectors(cell.images, DENSE, files)
        own = self.vectors(cell.images, cell.setting, files)
        lengths = np.linalg.norm(dense, axis=1) * np.linalg.norm(own, axis=1)
        cosines = np.sum(dense * own, axis=1) / lengths
        kept = shared(neighbors(own), neighbors(dense))
        return {
            "gmacs": loaded(self._weights, cell.setting).gmacs,
            "images": len(files),
            "names": hashlib.sha256(names.encode()).hexdigest()[:16],
            "shared": " ".join(map(str, kept.tolist())),
            "cosine": [round(float(cosines.mean()), 5), round(float(cosines.min()), 5)],
        }


def measure_times(weights) -> dict[str, Any]:
    """Seconds of a batch of each setting, in turns."""
    jobs = {}
    for setting in SETTINGS:
        program = imagepiece_jax.optimize(
            loaded(weights, setting), BATCH_TIMED, dtype="float32", pixels=True
        )
        images = np.zeros(program.images.shape, np.uint8)
        jobs[setting] = timer.TimedCall(lambda _, p=program, x=images: p(x))
    readings = timer.measure(jobs, RULES)
    ratios = {}
    for setting, seconds in readings.items():
        ratios[setting] = timer.spread(timer.speedups(readings[DENSE], seconds))
    return {
        "batch_size": BATCH_TIMED,
        "versions": study.versions(),
        "ratios": ratios,
    }


# The page

INTRODUCTION = """\
Written by `python -m experiments neighbors --tables` from `runs.jsonl`.
[declared.md](declared.md) says what was declared before. DINOv2-S at 224 pixels; recall
is the share of the dense model's ten nearest neighbors among those of the setting, of
500 images each; brackets are 95 % intervals over images."""


def recalls(results, cell: Cell) -> np.ndarray | None:
    """Percent of its dense neighbors that each image keeps; None: not measured."""
    if cell not in results:
        return None
    kept = np.array(results[cell]["shared"].split(), float)
    return 100 * kept / NEIGHBORS


def recall_table(results, times) -> str:
    """Every setting: its cost, its speed, and its recall on each set."""
    lines = []
    for setting in SETTINGS:
        if setting == DENSE:
            continue
        found = [results.get(Cell(images, setting)) for images in SETS]
        measured = [run for run in found if run]
        gmacs = f"{measured[0]['gmacs']:.2f}" if measured else ""
        speed = study.spread(times["ratios"][setting]) if times else ""
        line = [f"`{setting}`", gmacs, speed]
        for images, run in zip(SETS, found, strict=True):
            recall = recalls(results, Cell(images, setting))
            line.append("" if run is None else format_estimate(intervals.mean(recall)))
            line.append("" if run is None else f"{run['cosine'][0]:.3f}")
        lines.append(line)
    head = ["typed", "GMACs", "times as fast"]
    for images in SETS:
        head += [f"recall, %, {images}", f"cosine, {images}"]
    return markdown_table(head, lines)


def contrast(results, images: str, ours: str, theirs: str) -> Estimate | None:
    """Points of recall that one setting has more than another, paired by image."""
    pair = [recalls(results, Cell(images, name)) for name in (ours, theirs)]
    if pair[0] is None or pair[1] is None:
        return None
    return intervals.mean(pair[0] - pair[1])


def contrasts_table(results) -> str:
    """A reduction minus the smaller image of the next larger cost."""
    lines = []
    for ours, theirs in PAIRS:
        line = [f"`{ours}` - `{theirs}`"]
        for images in SETS:
            change = contrast(results, images, ours, theirs)
            line.append("" if change is None else format_estimate(change, signs=True))
        lines.append(line)
    return markdown_table(["points of recall", *SETS], lines)


def read_times(folder) -> dict[str, Any] | None:
    path = pathlib.Path(folder, "times.json")
    return read_json(path) if path.exists() else None


def page(folder) -> str:
    """The tables of the cells that are there, as Markdown."""
    results = study.read(cells(), folder)
    blocks = [
        "# Nearest neighbors of a reduced encoder",
        INTRODUCTION,
        recall_table(results, read_times(folder)),
        "Paired by image:",
        contrasts_table(results),
    ]
    return study.page(blocks, cells(), results)


def main(
    options: study.Options = OPTIONS,
    *,
    weights: str = "",
    photographs: str = "",
    imagenette: str = "",
    vectors: str = "",
    time: bool = False,
):
    """Measure how many neighbors a reduced encoder keeps.

    Args:
        weights: Of the encoder.
        photographs: A folder of images.
        imagenette: A folder of images.
        vectors: A folder of .npy files, which are read again.
        time: Measure times instead.
    """
    waiting = options.cells_to_run(cells(), page)
    if time:
        path = options.out / "times.json"
        os.makedirs(options.out, exist_ok=True)
        write_json(path, measure_times(weights))
        return
    if not waiting:
        return
    paths = {"photographs": photographs, "imagenette": imagenette}
    encoder = Study(weights, vectors, paths)
    identity = {"weights": digest(loaded(weights, DENSE).variables)[:16]}
    study.run(waiting, options.out, identity, encoder.measure)


if __name__ == "__main__":
    cli.run(main)
