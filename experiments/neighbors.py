"""What does a cheaper encoder cost who searches? Neighbors, with controls.

python -m experiments neighbors --weights FOLDER --photographs FOLDER
    --imagenette FOLDER --vectors FOLDER --out FOLDER
python -m experiments neighbors --weights FOLDER --out FOLDER --time
python -m experiments neighbors --out FOLDER --tables

docs/results/neighbors/declared.md declares it. A cell is a set of images and a setting,
and writes a line of FOLDER/runs.jsonl; the same command goes on with the cells that
have none. --vectors keeps the vectors of each, and the recovered models, in a folder
for the encoder and its images. --time measures milliseconds an image, into
FOLDER/times.json. --tables writes FOLDER/README.md from the lines that are there.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import imagepiece_jax
from experiments import intervals, study, towers
from imagepiece_jax import cli
from imagepiece_jax.common.files import read_json, write_json
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.common.statistics import format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import Source
from imagepiece_jax.evaluation.result_cache import decode_bits, encode_bits
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.inference.compare_outputs import (
    NUM_NEIGHBORS,
    count_shared,
    nearest_images,
)
from imagepiece_jax.models.variables import variables_digest

FOLDER = pathlib.Path("docs/results/neighbors")

SIDE = 224
PHOTOGRAPHS = 1000  # evenly spaced: the even ones are measured, and odd ones recover
LEARNED = 400
STEPS = 400  # of a recovery


# Changes of an image, [H, W, 3] uint8: what the same photograph may look like


def mirrored(pixels):
    return pixels[:, ::-1]


def cropped(pixels):
    """Nine tenths of the sides, from the center, at the size that it had."""
    height, width = pixels.shape[:2]
    top, left = height // 20, width // 20
    image = Image.fromarray(pixels[top : height - top, left : width - left])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def shifted(pixels):
    """By four pixels down and to the right, around the edges."""
    return np.roll(pixels, (4, 4), (0, 1))


def compressed(pixels):
    """Through a JPEG file of quality 75."""
    return compare_outputs.compress_images(pixels[None])[0]


class Setting(NamedTuple):
    """A form of the encoder, or of its images.

    fields: for `load`
    change: of each image before anything else
    learned: the set of images from which the reduced model is recovered, if it is
    """

    fields: dict[str, Any] = {}
    change: Callable[[np.ndarray], np.ndarray] | None = None
    learned: str = ""


def reduced(reduction) -> Setting:
    return Setting({"reduction": reduction})


DENSE = "dense"
THREE = "counts=stages-3-6-9"
SIX = "counts=stages-0-2-4-6-8-10"
CONTROLS = {
    "JPEG 75": Setting(change=compressed),
    "shifted 4 pixels": Setting(change=shifted),
    "mirrored": Setting(change=mirrored),
    "cropped by a tenth": Setting(change=cropped),
}
CHEAPER = {  # what is typed
    "reduction=0.6": reduced(0.6),
    "image_size=182": Setting({"image_size": 182}),
    "reduction=0.5": reduced(0.5),
    "image_size=168": Setting({"image_size": 168}),
}
FEW_BLOCKS = (
    f"tome:macs=0.6:{SIX}",
    f"tome:macs=0.6:{THREE}",
    f"attended:macs=0.6:{THREE}",
)
# Chosen on photographs that judge nothing here.
FUSION = "mctf:macs=0.6:score=auto:attention=40"
FUSION_FEW = f"{FUSION}:blocks=(3,6,9)"
FUSION_HALF = FUSION.replace("0.6", "0.5")
FUSION_MOST = FUSION.replace("0.6", "0.75")
# Beside "reduction=0.6", which is ToMe in every block.
METHODS = {
    text: reduced(text)
    for text in (
        *FEW_BLOCKS,
        "evit:macs=0.6",
        FUSION,
        FUSION_FEW,
        FUSION_HALF,
        FUSION_MOST,
        "tome:macs=0.7",
    )
}
RECOVERED = {}
for text in ("reduction=0.6", FUSION, FUSION_FEW, "reduction=0.5"):
    setting = {**CHEAPER, **METHODS}[text]
    RECOVERED[f"recovered {text}"] = setting._replace(learned="learned")
# From images like those that are searched.
OWN = f"recovered from imagenette {FUSION}"
RECOVERED[OWN] = METHODS[FUSION]._replace(learned="labeled")
JUDGED = {DENSE: Setting(), **CONTROLS, **CHEAPER, **METHODS, **RECOVERED}
# Among which fusion was chosen: parts of ToMe, other methods, parts of MCTF.
CHOICES = {
    "tome": (
        "",
        "counts=late-1.5",
        "counts=proportional",
        "counts=proportional-1",
        "counts=constant-2",
        "inflection=-0.5",
        "inflection=0.5",
        "metric=token",
    ),
    "atc": ("",),
    "pitome": ("",),
    "tofu": ("",),
    "diffrate": ("",),
    "attended": ("counts=diffrate",),
    "mctf": (
        "",
        "score=received:attention=80",
        "score=auto",
        "score=auto:attention=10",
        "score=auto:attention=40",
        "score=auto:attention=80",
        "score=auto:attention=1e9",
        "score=auto:sizes=20",
        "score=auto:counts=diffrate",
        "score=auto:counts=stages-1-3-5-7-9-11",
        "score=auto:blocks=(0,1,2,3,4,5,6,7,8,9,10,11)",
        "score=auto:blocks=(1,3,5,7,9,11)",
        "score=auto:blocks=(2,4,6,8)",
        "score=auto:blocks=(2,5,8)",
        "score=auto:blocks=(3,6,9)",
        "score=auto:attention=40:blocks=(3,6,9)",
        "score=auto:attention=80:blocks=(3,6,9)",
    ),
}
CHOSEN_AMONG = []
for method, parts in CHOICES.items():
    for part in parts:
        CHOSEN_AMONG.append(f"{method}:macs=0.6:{part}".removesuffix(":"))
OF_MEAN = (
    "tome:macs=0.6",
    *FEW_BLOCKS[:2],
    FUSION.replace("auto", "received"),
    FUSION_FEW.replace("auto", "received"),
)
SETTINGS = {**JUDGED, **{text: reduced(text) for text in (*CHOSEN_AMONG, *OF_MEAN)}}
PAIRS = (
    ("reduction=0.6", "image_size=182"),
    ("reduction=0.5", "image_size=168"),
    ("reduction=0.6", "shifted 4 pixels"),
    (FUSION, "reduction=0.6"),
    (FUSION_FEW, "reduction=0.6"),
    (FUSION, "tome:macs=0.7"),
    (FUSION_FEW, FUSION),
    ("recovered reduction=0.6", "reduction=0.6"),
    (f"recovered {FUSION}", FUSION),
    (OWN, f"recovered {FUSION}"),
    (f"recovered {FUSION_FEW}", FUSION_FEW),
    (f"recovered {FUSION_FEW}", "image_size=182"),
    ("recovered reduction=0.5", "reduction=0.5"),
)
# The photographs, whose vectors are means of patches: a tower without a class token.
MEAN = "mean of patches"


class Cell(NamedTuple):
    """A set of images, and a setting."""

    images: str
    setting: str

    @property
    def name(self) -> str:
        return f"{self.images}, {self.setting}"


def cells() -> list[Cell]:
    """All cells, in the order in which they run."""
    order = [Cell("learned", name) for name in (DENSE, *CHOSEN_AMONG)]
    order += [Cell("photographs", name) for name in JUDGED if not is_recovered(name)]
    order += [Cell(MEAN, name) for name in (DENSE, *OF_MEAN)]
    searched = [DENSE, "shifted 4 pixels", *CHEAPER, *RECOVERED]
    searched += [FUSION, FUSION_FEW, FUSION_MOST, "tome:macs=0.7"]
    for name in searched:
        if is_recovered(name):
            order.append(Cell("photographs", name))
        order.append(Cell("imagenette", name))
    return order


def is_recovered(name: str) -> bool:
    return SETTINGS[name].learned != ""


# A cell


def vectors(vit, source: Source, change) -> np.ndarray:
    """Pooled vectors of images, [images, D] float32."""
    parts = []
    for start in with_progress_bar(range(0, len(source), study.BATCH), "batches"):
        images = []
        for index in range(start, min(start + study.BATCH, len(source))):
            pixels = source[index].pixels
            changed = pixels if change is None else change(pixels)
            images.append(vit.preprocessing(changed))
        pooled = imagepiece_jax.features(vit, np.stack(images)).pooled
        parts.append(np.asarray(pooled, np.float32))
    return np.concatenate(parts)


def unit(values: np.ndarray) -> np.ndarray:
    """Vectors of length 1, of those that `features` stores."""
    return compare_outputs.unit_rows(values.astype(np.float16))


def voted(queries, labeled, labels: np.ndarray) -> np.ndarray:
    """The class of each by its nearest labeled images, which vote by cosine. [n]."""
    cosines = unit(queries) @ unit(labeled).T
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :NUM_NEIGHBORS]
    votes = np.zeros((len(queries), labels.max() + 1))
    rows = np.arange(len(queries))
    for column in near.T:
        votes[rows, labels[column]] += cosines[rows, column]
    return votes.argmax(axis=1)


class Study:
    """The encoder, its images, and the vectors of its settings."""

    def __init__(self, weights: str, folder: pathlib.Path, images: dict[str, Source]):
        self.weights = weights
        self.images = images
        dense = imagepiece_jax.load(weights, image_size=SIDE)
        self.identity = {"weights": variables_digest(dense.variables)[:16]}
        names = [names_digest(source) for source in images.values()]
        self.folder = folder / text_digest([*self.identity.values(), *names])

    def model(self, setting: str):
        """The encoder of a setting; images of its size are not cropped."""
        path = self.folder / setting
        fields = {"image_size": SIDE, "dtype": "float32", **SETTINGS[setting].fields}
        if not is_recovered(setting):
            return imagepiece_jax.load(self.weights, crop=1.0, **fields)
        if not path.exists():
            vit = imagepiece_jax.load(self.weights, crop=1.0, **fields)
            images = self.images[SETTINGS[setting].learned]
            vit = imagepiece_jax.recover(vit, images, steps=STEPS)
            imagepiece_jax.save(vit, path)
        return imagepiece_jax.load(path)

    def vectors(self, images: str, setting: str) -> np.ndarray:
        """The vectors of a set, from their file where it is there."""
        path = self.folder / f"{images}, {setting}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            vit = self.model(setting)
            if images == MEAN:
                vit = study.mean_pooled(vit)
            values = vectors(vit, self.images[images], SETTINGS[setting].change)
            part = self.folder / "part.npy"
            np.save(part, values)
            part.replace(path)
        return np.load(path)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Neighbors of each image, and cosines to the dense model's vectors."""
        source = self.images[cell.images]
        values = self.vectors(cell.images, cell.setting)
        own = unit(values)
        dense = unit(self.vectors(cell.images, DENSE))
        cosines = np.sum(dense * own, axis=1)
        wanted = nearest_images(dense, dense)
        near = nearest_images(own, own)
        line = {
            "gmacs": self.model(cell.setting).gmacs,
            "images": len(source),
            "names": names_digest(source),
            "shared": listed(count_shared(near, wanted)),
            "mixed": listed(count_shared(nearest_images(own, dense), wanted)),
            "cosine": [round(float(cosines.mean()), 5), round(float(cosines.min()), 5)],
        }
        if cell.images == "imagenette":
            labels = labels_of(source)
            labeled = self.vectors("labeled", cell.setting)
            found = voted(values, labeled, labels_of(self.images["labeled"]))
            same = labels[near] == labels[:, None]
            line["same_class"] = listed(same.sum(axis=1))
            line["right"] = encode_bits(found == labels)
        return line


def names_digest(source: Source) -> str:
    return text_digest(
        pathlib.Path(source.image_name(i)).name for i in range(len(source))
    )


def text_digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def labels_of(source: Source) -> np.ndarray:
    """The classes of images, by the names of their folders. [n]."""
    folders = [
        pathlib.Path(source.image_name(i)).parent.name for i in range(len(source))
    ]
    return np.unique(folders, return_inverse=True)[1]


def listed(counts: np.ndarray) -> str:
    return " ".join(map(str, counts.tolist()))


def sets(photographs: str, imagenette: str) -> dict[str, Source]:
    """The images that are measured, those with labels, and those that recover."""
    spaced = as_source(photographs).evenly_spaced(PHOTOGRAPHS)
    even = spaced.subset(range(0, len(spaced), 2))
    odd = spaced.subset(range(1, len(spaced), 2))
    return {
        "photographs": even,
        MEAN: even,
        "learned": odd.evenly_spaced(LEARNED),
        "imagenette": as_source(f"{imagenette}/val"),
        "labeled": as_source(f"{imagenette}/train"),
    }


# The page

INTRODUCTION = """\
Written by `python -m experiments neighbors --tables` from `runs.jsonl`.
[declared.md](declared.md) is the declaration from before the runs. The model is a
DINOv2-S at 224 pixels; brackets are 95 % intervals over images."""
KEPT = """\
## Neighbors that are kept

*Kept* is the share of the dense model's ten nearest neighbors among a setting's ten.
All vectors come from the setting; for *mixed* only the queries do, and the index is
dense. The first rows are the dense model itself, on changed photographs."""
FOUND = """\
## What a search finds

Imagenette images. *Of its class* is the share of the ten nearest with the image's
class. *Voted right* says how often the ten nearest of 800 labeled images vote for this
class. Points compare with the dense model."""
WITHOUT_CLASS_TOKEN = """\
## Without a class token

The same photographs for a tower without a class token: its vector is the mean of the
patches, and its score the attention received by a token."""
CHOICE = """\
## How fusion was chosen

Settings at .6 on 400 odd photographs, which judge nothing above."""
TIMES = """\
## Milliseconds an image

One image a call, two threads, float32, the file of `export --layout immich`: median,
lowest and highest of the turns. Brackets are times as fast as the dense model."""


def percents(results, cell: Cell, field: str) -> np.ndarray | None:
    """Percent of each image's ten, by a field; None: not measured."""
    if cell not in results or field not in results[cell]:
        return None
    return 100 * np.array(results[cell][field].split(), float) / NUM_NEIGHBORS


def rights(results, cell: Cell) -> np.ndarray | None:
    """Percent, 0 or 100, of each image whose class was voted for."""
    if cell not in results or "right" not in results[cell]:
        return None
    found = results[cell]
    return 100.0 * decode_bits(found["right"], found["images"])


def text_of(values: np.ndarray | None) -> str:
    return "" if values is None else format_estimate(intervals.mean(values))


def change_text(values, base) -> str:
    if values is None or base is None:
        return ""
    return format_estimate(intervals.mean(values - base), signs=True)


def best_first(results, images: str, settings) -> str:
    """What settings keep of the neighbors of a set; the best comes first."""
    found = {}
    for setting in settings:
        cell = Cell(images, setting)
        if cell in results:
            found[setting] = percents(results, cell, "shared")
    lines = []
    for setting in sorted(found, key=lambda name: -found[name].mean()):
        mixed = percents(results, Cell(images, setting), "mixed")
        lines.append([f"`{setting}`", text_of(found[setting]), text_of(mixed)])
    return markdown_table(["setting", "kept, %", "mixed, %"], lines)


def kept_table(results) -> str:
    """Every setting: what it costs, and the neighbors that it keeps."""
    lines = []
    for setting in JUDGED:
        cell = Cell("photographs", setting)
        other = Cell("imagenette", setting)
        if setting == DENSE or cell not in results:
            continue
        line = [f"`{setting}`", f"{results[cell]['gmacs']:.2f}"]
        line.append(text_of(percents(results, cell, "shared")))
        line.append(text_of(percents(results, cell, "mixed")))
        line.append(f"{results[cell]['cosine'][0]:.3f}")
        line.append(text_of(percents(results, other, "shared")))
        lines.append(line)
    head = ["setting", "GMACs", "kept, %, photographs", "mixed, %", "cosine"]
    return markdown_table([*head, "kept, %, imagenette"], lines)


def found_table(results) -> str:
    """Every setting on imagenette: classes of the neighbors, and by vote."""
    lines = []
    dense = Cell("imagenette", DENSE)
    for setting in JUDGED:
        cell = Cell("imagenette", setting)
        if cell not in results:
            continue
        line = [f"`{setting}`"]
        for values, base in (
            (
                percents(results, cell, "same_class"),
                percents(results, dense, "same_class"),
            ),
            (rights(results, cell), rights(results, dense)),
        ):
            line.append(text_of(values))
            line.append("" if setting == DENSE else change_text(values, base))
        lines.append(line)
    head = ["setting", "of its class, %", "points", "voted right, %", "points of votes"]
    return markdown_table(head, lines)


def contrasts_table(results) -> str:
    """Pairs of settings: neighbors kept on both sets, and classes."""
    columns = {
        "kept, photographs": ("photographs", "shared"),
        "kept, imagenette": ("imagenette", "shared"),
        "of its class": ("imagenette", "same_class"),
    }
    lines = []
    for ours, theirs in PAIRS:
        line = [f"`{ours}` - `{theirs}`"]
        for images, field in columns.values():
            values = percents(results, Cell(images, ours), field)
            base = percents(results, Cell(images, theirs), field)
            line.append(change_text(values, base))
        lines.append(line)
    return markdown_table(["points", *columns], lines)


def page(folder) -> str:
    """The tables of the cells that are there, as Markdown."""
    results = study.read(cells(), folder)
    blocks = ["# Nearest neighbors of a cheaper encoder", INTRODUCTION]
    blocks += [KEPT, kept_table(results), "Paired by image:", contrasts_table(results)]
    if any(cell.images == "imagenette" for cell in results):
        blocks += [FOUND, found_table(results)]
    for images, text, settings in (
        (MEAN, WITHOUT_CLASS_TOKEN, OF_MEAN),
        ("learned", CHOICE, CHOSEN_AMONG),
    ):
        if any(cell.images == images for cell in results):
            blocks += [text, best_first(results, images, settings)]
    times = pathlib.Path(folder, "times.json")
    if times.exists():
        blocks += [TIMES, towers.table(read_json(times)["rows"])]
    return study.page(blocks, cells(), results)


def main(
    *,
    out: pathlib.Path = FOLDER,
    weights: str = "",
    photographs: str = "",
    imagenette: str = "",
    vectors: pathlib.Path = pathlib.Path(),
    time: bool = False,
    tables: bool = False,
):
    """Measure how many neighbors a cheaper encoder keeps, and what it finds.

    Args:
        out: The folder of the lines of cells, and of the page.
        weights: Of the encoder.
        photographs: A folder of images.
        imagenette: A folder with train and val, each of which has a folder a class.
        vectors: Of .npy files and recovered models, which are read again.
        time: Measure times instead.
        tables: Write the page of the cells that are there instead.
    """
    if tables:
        study.write_page(out, page(out))
        return
    if time:
        encoder = Study(weights, vectors, {})
        forms = {name: encoder.model(name) for name in (DENSE, *CHEAPER, *METHODS)}
        rows = towers.measure(forms)
        write_json(out / "times.json", {"rows": rows, "versions": study.versions()})
        return
    encoder = Study(weights, vectors, sets(photographs, imagenette))
    study.run(cells(), out, encoder.identity, encoder.measure)


if __name__ == "__main__":
    cli.run_command(main)
