"""The paper's tables and figures: one command each, published beside measured.

python -m experiments table1 --data folder:PATH --weights FILE_OR_RUN
python -m experiments table1 --data ... --runs FOLDER_OF_TRAINED_RUNS

With --weights one checkpoint stands for every row, off the shelf; --runs takes runs
trained with each reduction. OUT gets a page NAME.md, and a line of OUT/points.jsonl for
every result: the same command measures only results without a line.

NAME: table1, table2, hyperspeed, table3, masking, reassess, similarity, overlap,
lcb-similarity, combos, ablation; or all of them.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import Positional, arg

from experiments import analysis, controls, hyperspeed, masking, merges, paper_tables
from experiments import models as study_models
from experiments import study as studies
from imagepiece_jax import cli
from imagepiece_jax.benchmark.workloads import call_on_noise
from imagepiece_jax.common import device, timer, xla_options
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.common.timer import Timing
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.sources.registry import short_name
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import labeled_images
from imagepiece_jax.evaluation.result_cache import (
    MeasuredWeights,
    ResultCache,
    decode_bits,
)
from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.models.record import as_json
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from imagepiece_jax.weights.load import load
from imagepiece_jax.weights.location import RUN_KIND, locate_weights

TABLES = {
    "table1": functools.partial(paper_tables.write_table_page, name="table1"),
    "table2": functools.partial(paper_tables.write_table_page, name="table2"),
    "hyperspeed": hyperspeed.write_hyperspeed_page,
    "table3": functools.partial(paper_tables.write_table_page, name="table3"),
    "masking": masking.write_masking_page,
    "reassess": analysis.write_reassess_page,
    "similarity": analysis.write_similarity_page,
    "overlap": analysis.write_overlap_page,
    "lcb-similarity": analysis.write_lcb_page,
    "combos": functools.partial(paper_tables.write_table_page, name="combos"),
    "ablation": functools.partial(paper_tables.write_table_page, name="ablation"),
}
ALL = "all"
MOST_KEPT = 2**30  # bytes of pixels: smaller sets are read once and kept
LEGEND = (
    "Brackets are 95 % intervals. Published figures are for trained models on "
    "ImageNet's validation set. Read them; do not compare them with ours."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What tables are made of; comments are what --help prints."""

    # The table or figure, or all.
    table: Annotated[str, Positional, arg(metavar="NAME")]
    # A folder of images for each class, csv:FILE, hf:OWNER/NAME, imagenet2012 or
    # digits.
    data: str
    weights: str | None = None  # One checkpoint, off the shelf
    # What the model is, where the weights do not say it: timm's name of a public one,
    # or a folder with its config.json.
    config: str | None = None
    image_size: int | None = None  # Pixels a side
    # The center crop's side, as a share of the resized image's side.
    crop: float | None = None
    # Of the layers: bfloat16, and float32 on CPUs.
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    runs: str | None = None  # A folder of trained runs, one a model
    # The folder of pages and results.
    out: pathlib.Path = pathlib.Path("runs/experiments")
    limit: int | None = None  # How many images to take, evenly spaced over the set
    eval_batch_size: int = 100  # Images at once
    readers: int = 0  # Processes that read images
    no_speed: bool = False  # Measure no speeds
    speed_batch_size: int = 64  # Of speeds in tables
    warmup: int = Timing.warmup  # Calls of each program that are not timed, first
    repeats: int = Timing.repeats  # Rounds in which each is timed
    seconds: float = Timing.seconds  # That a program is timed in a round, at least


# What is measured


@dataclasses.dataclass(frozen=True)
class Clock:
    """Measures the speed of a model with a reduction, in turns with the dense model."""

    batch_size: int = 64
    rules: Timing = Timing()

    @property
    def setting(self):
        """What decides a speed besides the model, as JSON values."""
        setting = {"device": device.device_name(), "batch_size": self.batch_size}
        return setting | dataclasses.asdict(self.rules)

    def __call__(self, vit, reduction):
        """`timer.speed_metrics` relative to the dense model; "dense_ms" is its time."""
        jobs = {}
        for name, setting in (("dense", DENSE_REDUCTION), ("reduced", reduction)):
            variant = vit.with_reduction(setting, seed=0)
            dtype = vit.model.execution.dtype.name
            program = optimize(variant, batch_size=self.batch_size, dtype=dtype)
            jobs[name] = timer.TimedCall(call_on_noise(program))
        times = timer.time_in_turns(jobs, self.rules)
        figures = timer.speed_metrics(times["dense"], times["reduced"], self.batch_size)
        return figures | {"dense_ms": 1e3 * timer.find_spread(times["dense"]).median}


class StudyImages(labeled_images.LabeledImages):
    """Images that models are compared on; a small set is read once and kept."""

    def __len__(self):
        return len(self.source)

    @property
    def text(self):
        """How many images of which set in which crop, for a page."""
        spaced = ", evenly spaced" if self.source.subset_record else ""
        crop = self.preprocessing.description
        return f"{len(self)} images of {short_name(self.name)}{spaced} ({crop})"

    def read_batches(self):
        sides = image_sides(self.preprocessing.image_size)
        if len(self) * math.prod(sides) * 3 > MOST_KEPT:
            return super().read_batches()
        return self._kept

    @functools.cached_property
    def _kept(self):
        return list(super().read_batches())


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Figures of an evaluation by name, and which images were right, bool [images]."""

    figures: Mapping[str, Any]
    right: np.ndarray

    def __getitem__(self, name):
        return self.figures[name]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """Models and images that tables compare; every measurement is made once.

    out: the folder of the pages
    cache: keeps measurements
    clock: measures speeds; None: nothing is timed
    """

    models: study_models.Models
    images: StudyImages
    out: pathlib.Path
    cache: ResultCache
    clock: Clock | None = None
    programs: dict = dataclasses.field(default_factory=dict)

    @property
    def pretrained(self):
        """The one checkpoint of a table that needs one. Raises InputError without."""
        if not isinstance(self.models, study_models.OffTheShelf):
            allowed = "a weights file or a run's folder"
            raise InputError(f"--weights is missing; allowed: {allowed}")
        return self.models.pretrained

    def weights(self, vit, images=None):
        """Measurements of a model on all images, or on these."""
        return MeasuredWeights(
            vit,
            images or self.images,
            self.cache,
            seed=0,  # of reducers that draw: one program for all trainings of a row
            compiled_steps=self.programs,
        )

    def evaluate(self, vit, reduction, images=None):
        """Answers of a model with a reduction on all images, or on these."""
        weights = self.weights(vit, images)
        figures = weights.measure_reduction(Reduction.read(reduction))
        return Answers(figures, decode_bits(figures["right"], figures["images"]))

    def speed(self, vit, reduction):
        """Speed in turns with the dense model, as a Clock gives it."""
        if self.clock is None:
            return None
        reduction = Reduction.read(reduction)
        model = vit.reduced_model(reduction)
        setting = {
            "kind": "speed",
            "model": as_json(model),
            "reduction": str(dataclasses.replace(reduction, prop_attn=model.prop_attn)),
            **self.clock.setting,
        }
        measure = functools.partial(self.clock, vit, reduction)
        return self.cache.measure_once(setting, measure, f"the speed of {reduction}")

    def inside(self, kind, vit, reduction, read, summarize):
        """Figures from inside a model with a reduction, as JSON values by name.

        kind: the name of the figures in the setting of their file
        read: from (outputs of an observed model, batch) to arrays [m, ...]
        summarize: from all images' arrays, [images, ...], to the figures
        """

        def measure():
            reduced = vit.with_reduction(reduction, vit.origin.seed)
            observed = merges.observe_reducers(reduced.model)
            answer = studies.model_reader(reduced, read, observed)
            return summarize(answer(self.images.read_batches()))

        weights = self.weights(vit)
        reduction = Reduction.read(reduction)
        task = f"inside {reduction}, {len(self.images)} images"
        key = weights.make_result_key(kind, reduction)
        return self.cache.measure_once(key, measure, task)

    # The pages

    def facts(self, more=None):
        """Table of the images and models of a page; more: further rows, by name."""
        rows = {
            "images": self.images.text,
            "pixels a side": self.images.preprocessing.image_size,
            "models": self.models.note,
        }
        if self.clock:
            rules = self.clock.rules
            rows["speeds"] = (
                f"{device.device_name()}, batches of {self.clock.batch_size}, in turns "
                f"with the dense model, {rules.repeats} repeats of {rules.seconds:g} s"
            )
        rows |= dict(more or {})
        return f"{LEGEND}\n\n{markdown_table(['', ''], rows.items())}"

    def write_page(self, name, title, *blocks):
        """Write OUT/name.md from blocks of Markdown, and print it."""
        text = "\n\n".join([f"## `{name}`: {title}", *filter(None, blocks)]) + "\n"
        replace_file(self.out / f"{name}.md", text)
        print(text, flush=True)


# The command


def open_models(options):
    """Trained runs, or one checkpoint off the shelf."""
    dtype = options.dtype or xla_options.fast_dtype()
    if options.runs:
        runs = study_models.load_runs(options.runs, dtype)
        return study_models.TrainedRuns(tuple(runs))
    # A run's best was chosen on the images of the figures.
    location = locate_weights(options.weights)
    checkpoint = "latest" if location.origin.kind == RUN_KIND else None
    given = {name: getattr(options, name) for name in ("config", "image_size", "crop")}
    vit = load(options.weights, dtype=dtype, checkpoint=checkpoint, **given)
    return study_models.OffTheShelf(vit)


def open_images(models, options):
    """The images that all models are compared on. Prints notes on their classes.

    Raises InputError where models or images have other classes than the first.
    """
    first, *others = models.weights
    if len({(vit.config.num_classes, vit.image_size) for vit in models.weights}) > 1:
        problem = "runs has models of several numbers of classes or image sizes"
        raise InputError(f"{problem}; they must be of one data set")
    reading = {"limit": options.limit, "batch_size": options.eval_batch_size}
    reading |= {"workers": options.readers, "threads": 2 if options.readers else 0}
    images = labeled_images.open_labeled_images(first, options.data, **reading)
    names = images.source.class_names
    for vit in others:
        path = str(vit.origin.path)
        if line := check_classes(vit.class_names, path, names, options.data):
            print(f"note: {line}", flush=True)
    return StudyImages(**vars(images))


def make_tables(names, study):
    """Make tables; among several, a table with a mistake is left out and named."""
    with controls.register_methods():
        for name in names:
            try:
                TABLES[name](study)
            except InputError as error:
                if len(names) == 1:
                    raise
                print(f"left out: {name}", error, "", sep="\n", flush=True)


def main(options: Options):
    """Make the paper's tables and figures: published beside measured.

    With weights one checkpoint stands for every row, off the shelf.
    """
    check_choice("NAME", options.table, (*TABLES, ALL))
    names = [*TABLES] if options.table == ALL else [options.table]
    if bool(options.runs) == bool(options.weights):
        raise InputError("give either weights or runs")
    models = open_models(options)
    images = open_images(models, options)
    clock = None
    if not options.no_speed:
        rules = Timing(options.warmup, options.repeats, options.seconds)
        clock = Clock(options.speed_batch_size, rules)
    out = options.out
    cache = ResultCache(out, versions=studies.code_versions())
    study = Study(models=models, images=images, out=out, cache=cache, clock=clock)
    make_tables(names, study)


if __name__ == "__main__":
    cli.run_command(main)
