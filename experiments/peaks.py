"""Is a selector of attended and unlike tokens better? Cells, controls and contrasts.

python -m experiments.peaks --assets FOLDER --imagenette FOLDER [--only WORD ..]

docs/results/peaks/declared.md declares it. A cell is a model, a set of images and a
setting, and writes a line of docs/results/peaks/runs.jsonl; cells with a line are not
measured again. --imagenette names the folder val. --only takes cells whose names have
one of the words. `python -m experiments.results` writes the tables of the page.

A line has a value per image, as float16 or bits in base64, so every difference is
paired. `recover` is measured by experiments.recovery.
"""

import base64
import dataclasses
import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import imagepiece_jax
from experiments import controls, intervals, study
from imagepiece_jax.common import statistics
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.statistics import Estimate, format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.data.class_names import imagenet_rows
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.pictures import as_source, read_images
from imagepiece_jax.data.source import evenly_spaced_indices
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.result_cache import decode_bits, encode_bits
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.inference.compare_outputs import nearest_images, unit_rows
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.kernels.ranking import rank_tokens
from imagepiece_jax.kernels.similarity import all_cosines
from imagepiece_jax.reduction.methods.peaks import KeepPeaks, Peaks, peak_values
from imagepiece_jax.reduction.reducers import join_kept
from imagepiece_jax.reduction.state import Assignment

FOLDER = pathlib.Path("docs/results/peaks")
SHARES = (0.75, 0.6, 0.5, 0.4, 0.3)
SCHEDULES = {"three": "stages-3-6-9", "five": "stages-2-4-6-8-10"}
SCHEDULES["all"] = "proportional-1"
OWN = ("tome", "mctf", "diffrate", "pitome", "tofu", "evit", "imagepiece", "random")
IN_ALL = ("tome", "mctf", "pitome")
SIZES = (208, 192, 176, 160, 144, 128)
FUSION = "mctf:score=auto:attention=40"  # of the search study
SCORES = ("class", "mean", "class_and_mean")
BATCH = 50
# WordNet's synsets by ImageNet's labels; imagenette's folders have their names.
SYNSETS = [wordnet_id for wordnet_id, _ in imagenet_rows()]


# Controls: peaks with one of its parts exchanged


@dataclasses.dataclass(frozen=True)
class KeepParts(KeepPeaks):
    """KeepPeaks with another choice of tokens or other means."""

    keep: str = "peaks"  # "peaks", "highest" score, or "random"
    merge: str = "score"  # "score", its "square", "plain", by "patches", or "none"
    ordered: bool = True  # False: all scores are equal

    @property
    def needed_inputs(self):
        return super().needed_inputs | ({"rng"} if self.keep == "random" else set())

    def __call__(self, inputs, counts, train=False):
        score = jax.lax.stop_gradient(self.token_scores(inputs, counts))
        if not self.ordered:
            score = jnp.ones_like(score)
        alike = all_cosines(inputs.x, inputs.all_x)
        worth = score
        if self.keep == "peaks":
            worth = peak_values(score, alike)
        if self.keep == "random":
            draw = jax.vmap(lambda key: jax.random.uniform(key, (counts.n_in,)))
            worth = draw(inputs.rng)
        order = rank_tokens(worth)
        slot, to_kept = join_kept(alike, order, counts.n_out)
        if self.merge == "none":
            slot = jnp.where(order < counts.n_out, slot, DROPPED)
        powers = {"score": 1.0, "square": 2.0, "plain": 0.0}
        weight = None
        if self.merge in powers:
            tiny = jnp.finfo(jnp.float32).tiny
            weight = jnp.maximum(score ** powers[self.merge], tiny)
        size = inputs.attn_size * to_kept
        return Assignment(slot, weight=weight, attn_size=size, n_out=counts.n_out)


@dataclasses.dataclass(frozen=True)
class PeaksOfParts(Peaks):
    """Peaks with exchanged parts, see `KeepParts`."""

    keep: str = "peaks"
    merge: str = "score"
    ordered: bool = True

    def steps(self, model):
        parts = {name: getattr(self, name) for name in ("keep", "merge", "ordered")}
        return self.stage_steps(model, KeepParts(score=self.score_for(model), **parts))


CONTROLS = {
    "kept by peaks, plain means": "merge=plain",
    "kept by peaks, means by patches": "merge=patches",
    "kept by peaks, nothing merged": "merge=none",
    "highest scores kept, means by score": "keep=highest",
    "highest scores kept, plain means": "keep=highest:merge=plain",
    "random tokens kept, means by score": "keep=random",
    "class attention": "score=class",
    "mean query": "score=mean",
    "attention received": "score=received",
}
FURTHER = {"weights squared": "merge=square"}
ENCODER_FURTHER = {
    "all scores equal, means by patches": "ordered=False:merge=patches",
    "attention received, means by patches": "score=received:merge=patches",
    "mean query": "score=mean",
    "means by patches": "merge=patches",
}


class Cell(NamedTuple):
    """A model, a set of images and a setting: fields for `load`."""

    model: str  # "deit", "dinov2", or "mean": its vector is the mean of the patches
    images: str  # "photographs", "imagenette" or "even"
    setting: str
    fields: Any = ()  # pairs

    @property
    def name(self):
        return f"{self.model}, {self.images}, {self.setting}"


def reduced_cell(model, images, method, share, schedule=None, title=None):
    """A cell of a method at a share.

    schedule: a name in SCHEDULES, or a schedule's text; None: the method's own
    """
    text = f"{method}:macs={share}"
    where = "own schedule"
    if schedule:
        text += f":counts={SCHEDULES.get(schedule, schedule)}"
        where = f"{schedule} blocks"
    name, _, rest = (title or method).partition(":")
    setting = f"{name}{' ' + rest if rest else ''}, {where}, {share}"
    return Cell(model, images, setting, (("reduction", text),))


SCORED = []
for name, score in itertools.product(("imagepiece", "evit"), SCORES):
    SCORED.append(f"{name}:score={score}")
# (model, images, methods, schedules, shares): a cell of each combination
GRIDS = (
    ("deit", "photographs", ("peaks", "attended"), (*SCHEDULES,), SHARES),
    ("deit", "photographs", OWN, (None,), SHARES),
    ("deit", "photographs", IN_ALL, ("all",), SHARES),
    ("deit", "photographs", SCORED, (None,), (0.6, 0.5)),
    ("deit", "imagenette", ("peaks", "attended"), ("three", "all"), SHARES[1:]),
    ("deit", "imagenette", ("tome", "mctf", "diffrate"), (None,), SHARES[1:4]),
    ("dinov2", "even", ("peaks",), ("three",), SHARES[:4]),
    ("dinov2", "even", ("tome",), (None,), SHARES[:4]),
    ("dinov2", "even", ("attended",), ("three",), SHARES[:4]),
    ("dinov2", "even", (FUSION,), (None,), SHARES[:4]),
    ("dinov2", "even", ("peaks",), ("all",), SHARES[:4]),
    ("dinov2", "even", ("peaks",), ("five",), (0.6, 0.5)),
    ("dinov2", "even", ("pitome", "random"), (None,), (0.6, 0.5)),
    ("mean", "even", ("peaks:score=mean",), ("three",), (0.6, 0.5)),
    ("mean", "even", ("tome",), (None,), (0.6, 0.5)),
    ("mean", "even", ("attended",), ("three",), (0.6, 0.5)),
)
# (model, images, controls, shares)
PARTS = (
    ("deit", "photographs", CONTROLS | FURTHER, SHARES[1:4]),
    ("deit", "imagenette", CONTROLS, (0.5,)),
    ("dinov2", "even", ENCODER_FURTHER, (0.6, 0.5)),
)


def list_cells():
    """All cells."""
    places = dict.fromkeys((model, images) for model, images, *_ in GRIDS)
    cells = [Cell(model, images, "dense") for model, images in places]
    for size in SIZES:
        title = f"dense on {size} pixels"
        cells.append(Cell("deit", "photographs", title, (("image_size", size),)))
    for model, images, *choices in GRIDS:
        for method, schedule, share in itertools.product(*choices):
            title = "mctf" if method == FUSION else None
            cells.append(reduced_cell(model, images, method, share, schedule, title))
    for model, images, parts, shares in PARTS:
        for (title, fields), share in itertools.product(parts.items(), shares):
            method = f"parts:{fields}"
            cells.append(reduced_cell(model, images, method, share, "three", title))
    return cells


# Measuring


def encode_values(values):
    """Values of images as float16 in base64."""
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def decode_values(text):
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float64)


def judging_photographs():
    """Rising indices of the photographs that chose no method and no recipe."""
    is_judging = np.ones(1000, bool)
    is_judging[1:600:2] = False  # chose the method
    # these 100 chose the recipe of recovery
    is_judging[2 * evenly_spaced_indices(500, 100)] = False
    return np.flatnonzero(is_judging)


def choosing_photographs(count):
    """Indices of `count` photographs that chose the method, evenly spaced."""
    return np.arange(1, 600, 2)[evenly_spaced_indices(300, count)]


class Study:
    """The models and the images.

    assets: folder with weights and data
    imagenette: its folder val at 224 pixels
    """

    def __init__(self, assets, imagenette):
        self.paths = {
            "deit": assets / "weights/deit_tiny_patch16_224.npz",
            "dinov2": assets / "weights/dinov2_small",
            "mean": assets / "weights/dinov2_small",
        }
        table = assets / "data/nips2017_224_jpg/labels.csv"
        photographs = open_source(f"csv:{table}", "val")
        tests = as_source(imagenette)
        judging = judging_photographs()
        indices = {
            "photographs": judging,
            "photographs, even": judging[judging % 2 == 0],
            "learned": np.arange(1, 1000, 2)[evenly_spaced_indices(500, 400)],
            "even": np.arange(0, 1000, 2),
            "choosing": choosing_photographs(200),
            "choosing 100": choosing_photographs(100),
        }
        self.images = {name: photographs.subset(indices[name]) for name in indices}
        self.labels = {name: photographs.labels[indices[name]] for name in indices}
        for name, count in (("imagenette", 2000), ("imagenette 500", 500)):
            images = tests.evenly_spaced(count)
            folders = [pathlib.Path(images.image_name(n)).parent for n in range(count)]
            self.images[name] = images
            labels = [SYNSETS.index(path.name) for path in folders]
            self.labels[name] = np.array(labels)
        self.pixels = {}
        self.dense = {}

    def read(self, images):
        if images not in self.pixels:
            self.pixels[images], _ = read_images(self.images[images], np.asarray)
        return self.pixels[images]

    def load(self, cell):
        fields = {"crop": 1.0, "dtype": "float32", **dict(cell.fields)}
        steps = fields.pop("recovery_steps", None)
        if steps:
            vit = self.load(cell._replace(fields=cell.fields[:-1]))
            return imagepiece_jax.recover(vit, self.images["learned"], steps=steps)
        if cell.model != "deit":
            fields.setdefault("image_size", 224)
        vit = imagepiece_jax.load(str(self.paths[cell.model]), **fields)
        return study.mean_pooled(vit) if cell.model == "mean" else vit

    def outputs(self, vit, cell):
        """Logits of a cell's classifier; vectors and patch features of an encoder."""
        pixels = self.read(cell.images)
        if cell.model == "deit":
            return {"logits": compute_logits(vit, pixels)}
        vectors = []
        maps = []  # unit features of patches, [images, patches, features]
        for start in range(0, len(pixels), BATCH):
            part = imagepiece_jax.features(vit, pixels[start : start + BATCH])
            vectors.append(np.asarray(part.pooled))
            patches = np.asarray(part.patches)
            rows = unit_rows(patches.reshape(-1, patches.shape[-1])).astype(np.float32)
            maps.append(rows.reshape(len(patches), -1, rows.shape[-1]))
        return {"vectors": np.concatenate(vectors), "maps": np.concatenate(maps)}

    def measure(self, cell):
        key = cell.model, cell.images
        if key not in self.dense:
            dense_cell = Cell(*key, "dense")
            self.dense[key] = self.outputs(self.load(dense_cell), dense_cell)
        dense = self.dense[key]
        try:
            vit = self.load(cell)
            outputs = dense if cell.setting == "dense" else self.outputs(vit, cell)
        except InputError as error:
            return {"refused": str(error)}
        counts = [layer.mlp_tokens for layer in vit.model.plan]
        line = {"gmacs": vit.gmacs, "tokens": counts}
        if cell.model == "deit":
            labels = self.labels[cell.images]
            return line | compare_logits(outputs["logits"], dense["logits"], labels)
        return line | compare_features(outputs, dense)


def compute_logits(vit, pixels):
    """Logits [images, classes] of uint8 images, resized on the device if need be."""
    height, width = image_sides(vit.image_size)
    config = vit.config

    @jax.jit
    def program(variables, images, keys):
        images = normalize(images, config.mean, config.std)
        if images.shape[1:3] != (height, width):
            shape = (len(images), height, width, 3)
            images = jax.image.resize(images, shape, "cubic")
        return vit.model.apply(variables, images, keys={"reducer": keys}).logits

    answers = []
    for start in range(0, len(pixels), BATCH):
        part = pixels[start : start + BATCH]
        keys = jax.vmap(jax.random.key)(np.arange(start, start + len(part)))
        answers.append(np.asarray(program(vit.variables, part, keys)))
    return np.concatenate(answers)


def compare_logits(logits, dense_logits, labels):
    log_probs = special.log_softmax(logits.astype(np.float64), axis=1)
    dense_log_probs = special.log_softmax(dense_logits.astype(np.float64), axis=1)
    kl = np.sum(np.exp(dense_log_probs) * (dense_log_probs - log_probs), axis=1)
    first = logits.argmax(axis=1)
    return {
        "kl": encode_values(kl),
        "same": encode_bits(first == dense_logits.argmax(axis=1)),
        "right": encode_bits(first == labels),
    }


def compare_features(outputs, dense):
    vectors = unit_rows(outputs["vectors"])
    dense_vectors = unit_rows(dense["vectors"])
    neighbors = nearest_images(vectors), nearest_images(dense_vectors)
    kept = compare_outputs.count_shared(*neighbors)
    cosines = np.sum(vectors * dense_vectors, axis=1)
    of_maps = np.mean(np.sum(outputs["maps"] * dense["maps"], axis=-1), axis=1)
    return {
        "vector": encode_values(1 - cosines),
        "maps": encode_values(1 - of_maps),
        "kept": encode_values(np.asarray(kept) / compare_outputs.NUM_NEIGHBORS),
    }


# Tables of docs/results/peaks.md


class Lines:
    """The measured lines, by name of their cell, and values per image."""

    def __init__(self, folder=FOLDER):
        self.lines = study.read_runs(folder)

    def has(self, cell):
        return cell.name in self.lines and "refused" not in self.lines[cell.name]

    def values(self, cell, field):
        """A value per image: floats, or bools of "right" and "same"."""
        text = self.lines[cell.name][field]
        if field in ("right", "same"):
            return decode_bits(text, COUNTS[cell.images])
        return decode_values(text)

    def mean(self, cell, field):
        return float(self.values(cell, field).mean())

    def points(self, cell, base):
        """Points of top-1 above `base`."""
        own = self.values(cell, "right")
        return statistics.paired_difference(own, self.values(base, "right"))

    def change(self, cell, base, field):
        """How far a measure exceeds that of `base`, a mean over images."""
        own = self.values(cell, field)
        return statistics.mean_difference(own, self.values(base, field))


def shares_table(lines):
    """KL from the dense model, and points of top-1 lost, by method and share."""
    dense = Cell("deit", "photographs", "dense")
    head = ["method", "leaves in", *(f"{share:g}: KL, points lost" for share in SHARES)]
    rows = []
    for method, schedule in methods_of_table():
        row = [f"`{method}`", WHERE[schedule]]
        for share in SHARES:
            cell = reduced_cell("deit", "photographs", method, share, schedule)
            row.append(kl_and_points(lines, cell, dense))
        rows.append(row)
    return markdown_table(head, rows)


def methods_of_table():
    """(method, name of its schedule) of the rows."""
    for method in ("peaks", "attended"):
        for schedule in SCHEDULES:
            yield method, schedule
    for method in OWN:
        yield method, None
        if method in IN_ALL:
            yield method, "all"


def kl_and_points(lines, cell, dense):
    if not lines.has(cell):
        return ""
    points = lines.points(dense, cell)
    return f"{lines.mean(cell, 'kl'):.4f}, {format_estimate(points)}"


def sizes_table(lines):
    """The dense model on smaller images."""
    dense = Cell("deit", "photographs", "dense")
    rows = []
    for size in SIZES:
        cell = Cell("deit", "photographs", f"dense on {size} pixels")
        if not lines.has(cell):
            continue
        share = lines.lines[cell.name]["gmacs"] / lines.lines[dense.name]["gmacs"]
        row = [f"{size} pixels", f"{share:.2f}", f"{lines.mean(cell, 'kl'):.4f}"]
        rows.append([*row, format_estimate(lines.points(dense, cell))])
    head = ["dense model on", "share of the multiply-adds", "KL", "points lost"]
    return markdown_table(head, rows)


def contrasts_table(lines, images, others, shares, own_schedule="three"):
    """Peaks minus other methods at equal cost, paired by image."""
    rows = []
    for share in shares:
        peaks_cell = reduced_cell("deit", images, "peaks", share, own_schedule)
        for method, schedule in others:
            cell = reduced_cell("deit", images, method, share, schedule)
            if not lines.has(peaks_cell) or not lines.has(cell):
                continue
            kl = lines.change(peaks_cell, cell, "kl")
            points = lines.points(peaks_cell, cell)
            pair = [lines.values(each, "same") for each in (peaks_cell, cell)]
            same = statistics.paired_difference(*pair)
            row = [f"{share:g}", f"`{method}`, {WHERE[schedule]}"]
            row.append(format_estimate(kl, 4, signs=True))
            row.append(format_estimate(points, signs=True))
            rows.append([*row, format_estimate(same, signs=True)])
    head = ["share", f"peaks in blocks {WHERE[own_schedule]} minus", "KL", "points"]
    head.append("dense class, points")
    return markdown_table(head, rows)


def controls_table(lines, shares):
    """KL of the controls, and its change from peaks."""
    head = ["kept, merged"]
    for share in shares:
        head += [f"{share:g}: KL", "minus peaks", "points minus peaks"]
    rows = []
    for title in (*CONTROLS, *FURTHER):
        row = [title]
        for share in shares:
            peaks_cell = reduced_cell("deit", "photographs", "peaks", share, "three")
            cell = reduced_cell("deit", "photographs", "parts", share, "three", title)
            if not lines.has(peaks_cell) or not lines.has(cell):
                row += ["", "", ""]
                continue
            row.append(f"{lines.mean(cell, 'kl'):.4f}")
            kl = lines.change(cell, peaks_cell, "kl")
            row.append(format_estimate(kl, 4, signs=True))
            row.append(format_estimate(lines.points(cell, peaks_cell), signs=True))
        if any(row[1:]):
            rows.append(row)
    return markdown_table(head, rows)


def scores_table(lines):
    """EViT and ImagePiece by scores, off the shelf."""
    dense = Cell("deit", "photographs", "dense")
    head = ["method", "score", "0.6: KL, points lost", "0.5: KL, points lost"]
    rows = []
    for method in ("evit", "imagepiece"):
        for score in SCORES:
            row = [f"`{method}`", f"`{score}`"]
            for share in (0.6, 0.5):
                text = f"{method}:score={score}"
                cell = reduced_cell("deit", "photographs", text, share)
                row.append(kl_and_points(lines, cell, dense))
            rows.append(row)
    return markdown_table(head, rows)


def encoder_table(lines, model):
    """Distances of an encoder's vectors and maps, and neighbors kept."""
    head = ["share", "method", "vector, 1 - cosine", "worst image"]
    head += ["maps, 1 - cosine", "ten nearest kept, %"]
    rows = []
    for cell in sorted(list_cells(), key=cell_share, reverse=True):
        if cell.model != model or not lines.has(cell) or cell.setting == "dense":
            continue
        title, _, share = cell.setting.rpartition(", ")
        kept = intervals.estimate_mean(100 * lines.values(cell, "kept"))
        vector = lines.values(cell, "vector")
        row = [share, title, f"{vector.mean():.4f}", f"{vector.max():.3f}"]
        row.append(f"{lines.mean(cell, 'maps'):.4f}")
        rows.append([*row, format_estimate(kept)])
    return markdown_table(head, rows)


def cell_share(cell):
    """The share of a reduced cell; 0 for a dense one."""
    share = cell.setting.rpartition(", ")[2]
    return 0.0 if share.startswith("dense") else float(share)


def encoder_contrasts(lines):
    """Peaks minus ToMe and attended, paired by image."""
    rows = []
    for model, method in (("dinov2", "peaks"), ("mean", "peaks:score=mean")):
        for share in (0.75, 0.6, 0.5, 0.4):
            peaks_cell = reduced_cell(model, "even", method, share, "three")
            for name, schedule in (("tome", None), ("attended", "three")):
                cell = reduced_cell(model, "even", name, share, schedule)
                if not lines.has(peaks_cell) or not lines.has(cell):
                    continue
                row = [ENCODERS[model], f"{share:g}", f"`{name}`, {WHERE[schedule]}"]
                for field in ("vector", "maps"):
                    change = lines.change(peaks_cell, cell, field)
                    row.append(format_estimate(change, 4, signs=True))
                kept = lines.change(peaks_cell, cell, "kept")
                points = Estimate(*(100 * value for value in kept))
                rows.append([*row, format_estimate(points, signs=True)])
    head = ["vector", "share", "peaks in three blocks minus"]
    head += ["vector, 1 - cosine", "maps, 1 - cosine", "ten nearest kept, points"]
    return markdown_table(head, rows)


OTHERS = [("attended", "three"), ("attended", "all"), ("tome", None), ("mctf", None)]
OTHERS += [("mctf", "all"), ("diffrate", None), ("pitome", None), ("peaks", "all")]
BELOW = [("attended", "all"), ("attended", "three"), ("mctf", "all")]
BELOW += [("tome", "all"), ("peaks", "five")]
ON_IMAGENETTE = [("attended", "three"), ("tome", None), ("mctf", None)]
ON_IMAGENETTE += [("diffrate", None), ("attended", "all"), ("peaks", "all")]
COUNTS = {"photographs": 600, "imagenette": 2000, "even": 500, "imagenette 500": 500}
COUNTS |= {"choosing": 200, "choosing 100": 100, "photographs, even": 400}
WHERE = {None: "its own blocks", "three": "3, 6, 9", "five": "2, 4, .., 10"}
WHERE["all"] = "1 to 11"
ENCODERS = {"dinov2": "class token", "mean": "mean of patches"}


def page_tables(folder=FOLDER):
    """The tables of docs/results/peaks.md, by the names in their marks."""
    lines = Lines(folder)
    shares = (0.6, 0.5, 0.4)
    on_imagenette = "imagenette", ON_IMAGENETTE, (*shares, 0.3)
    return {
        "peaks-shares": shares_table(lines),
        "peaks-sizes": sizes_table(lines),
        "peaks-contrasts": contrasts_table(lines, "photographs", OTHERS, shares),
        "peaks-imagenette": contrasts_table(lines, *on_imagenette),
        "peaks-below": contrasts_table(lines, "photographs", BELOW, (0.4, 0.3), "all"),
        "peaks-controls": controls_table(lines, shares),
        "peaks-scores": scores_table(lines),
        "peaks-encoder": encoder_table(lines, "dinov2"),
        "peaks-mean": encoder_table(lines, "mean"),
        "peaks-encoder-contrasts": encoder_contrasts(lines),
    }


def main(doc=__doc__, cells=None):
    """Measure cells of a study, by default of this one."""
    parser = study.folders_parser(doc)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER)
    args = parser.parse_args()
    named = []
    for cell in cells or list_cells():
        if any(word in cell.name for word in args.only):
            named.append(cell)
    with controls.register_methods({"parts": PeaksOfParts}):
        measure = Study(args.assets, args.imagenette).measure
        study.measure_cells(named, args.out, {}, measure)


if __name__ == "__main__":
    main()
