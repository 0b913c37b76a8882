"""Context of an experiment: its models and images, and how they are measured."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from experiments import merges
from experiments.images import Images
from imagepiece_jax.benchmark.workloads import Clock
from imagepiece_jax.common import parallel
from imagepiece_jax.common.timer import Rules
from imagepiece_jax.config import files as config_files
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.evaluate.cache import (
    MeasuredWeights,
    ResultCache,
    Split,
    decode_bits,
)
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.pretrained.load import load
from imagepiece_jax.pretrained.runs import RUN_CONFIG
from imagepiece_jax.reduction import settings as reductions


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how: the flags of the command."""

    weights: str | None = None
    runs: str | None = None  # a folder of trained runs, one a model
    small: bool = False  # whether models are fine-tuned here
    seeds: tuple[int, ...] = (0, 1, 2)  # of these
    data: str | None = None
    resize: str | None = None
    limit: int | None = None
    out: str = "runs/experiments"
    again: bool = False
    eval_batch_size: int = 100
    readers: int = 0
    dtype: str | None = None
    speed: bool = True
    speed_batch_size: int = 64
    rules: Rules = Rules()  # of speeds


class Models:
    """Where models of a table come from: OffTheShelf, TrainedRuns, a Finetuner."""

    trains: bool  # whether models are made here
    note: str  # a sentence on how the models came to be
    weights: tuple[Pretrained, ...]  # that are there: their classes must be the data's

    def find(
        self, reduction: Mapping, stem: str, by_stem: bool
    ) -> list[tuple[Pretrained, Mapping]]:
        """(weights, reduction) pairs of one row, one a seed; [] where there is none.

        by_stem: models that are made here have either stem, each at its own cost; else
            the patch stem, all at equal GMACs
        """

    def sizes(self) -> set[tuple[int, int]]:
        """(classes, image size) of all models."""
        return {(each.model.num_classes, each.image_size) for each in self.weights}


@dataclasses.dataclass(frozen=True, eq=False)
class OffTheShelf(Models):
    """One checkpoint, which every reduction is applied to without training."""

    pretrained: Pretrained
    trains = False
    note = (
        "One checkpoint for all rows, off the shelf: but for the reduction that it was "
        "trained with, no row is a measure of a method as published."
    )

    @property
    def weights(self):
        return (self.pretrained,)

    def find(self, reduction, stem, by_stem):
        same = self.pretrained.model.stem == stem
        return [(self.pretrained, reduction)] if same else []


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRuns(Models):
    """Runs, each matched with a row by its stem and all fields of its reduction."""

    weights: tuple[Pretrained, ...]
    trains = False
    note = "Trained models, each with the reduction it was trained with."

    def find(self, reduction, stem, by_stem):
        wanted = reductions.with_defaults(reduction)
        return [
            (run, run.reduction)
            for run in self.weights
            if run.model.stem == stem
            and reductions.with_defaults(run.reduction) == wanted
        ]


def runs_in(folder: str | os.PathLike, dtype: str | None = None) -> list[Pretrained]:
    """All runs in `folder`, by name; InputError if there are none."""
    configs = sorted(pathlib.Path(folder).glob(f"*/{RUN_CONFIG}"))
    if not configs:
        problem = f"{folder} has no run"
        allowed = "a folder of runs"
        raise InputError(problem, field="--runs", value=folder, allowed=allowed)
    return [load(path.parent, checkpoint="latest").analyzed(dtype) for path in configs]


def package_config(name: str) -> ConfigDict:
    """One of the package's configs, by its file name."""
    return config_files.load_config(f"{config_files.CONFIGS}/{name}")


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The models, images and results of an experiment."""

    cache: ResultCache
    settings: Settings
    models: Models | None = None
    images: Images | None = None
    programs: dict = dataclasses.field(default_factory=dict)

    @property
    def out(self) -> pathlib.Path:
        return pathlib.Path(self.settings.out)

    @property
    def pretrained(self) -> Pretrained:
        """The one checkpoint of an experiment that needs one; InputError without."""
        if not isinstance(self.models, OffTheShelf):
            allowed = "a weights file or a run's folder"
            raise InputError("is missing", field="--weights", allowed=allowed)
        return self.models.pretrained

    def checkpoint(self, pretrained, images: Split | None = None) -> MeasuredWeights:
        """Measurements of `pretrained` on all images, or on these."""
        return MeasuredWeights(
            pretrained,
            images or self.images,
            self.cache,
            Clock(self.settings.speed_batch_size, self.settings.rules),
            seed=0,  # of reducers that draw: one program for all trainings of a row
            programs=self.programs,
        )

    def evaluate(self, pretrained, reduction, images: Split | None = None) -> "Answers":
        """Answers of `pretrained` with `reduction` on all images, or on these."""
        return Answers(self.checkpoint(pretrained, images).evaluate(reduction))

    def analyze(self, kind, pretrained, reduction, measure, summarize) -> dict:
        """Figures inside of a model: summarize({name: [images, ...]}), JSON values.

        kind: the name of the analysis in the setting
        measure: (outputs of the `merges.observed` model, batch) -> {name: [m, ...]}
        """

        def analyzed():
            vit = pretrained.with_reduction(reduction, pretrained.source.seed)
            model = merges.observed(vit.model)
            return summarize(self.measure(model, vit.variables, measure))

        setting = self.checkpoint(pretrained).setting(kind, reduction)
        what = f"inside {reductions.label(reduction)}, {len(self.images)} images"
        found = self.cache.result(setting, analyzed, what)
        return {name: figure for name, figure in found.items() if name != "images"}

    def measure(self, model, variables, measure, images: Images | None = None) -> dict:
        """measure(outputs, batch) on all images, or on these: {name: [images, ..]}.

        Products are of float32 on GPUs, too, where the model is.
        """
        step = accuracy.model_step(model, precision="highest", measure=measure)
        batches = (images or self.images).batches()
        return accuracy.evaluate(step, parallel.replicate(variables), batches).each

    def speed(self, pretrained, reduction) -> dict | None:
        """Speed relative to the dense model of the same weights, timed in turns.

        As `workloads.Clock` gives it; None where nothing is timed.
        """
        timed = self.settings.speed
        return self.checkpoint(pretrained).speed(reduction) if timed else None


class Answers:
    """A cached evaluation: figures, and `right`, bool [images] in the set's order."""

    def __init__(self, figures: dict):
        self.figures = figures
        try:
            self.right = decode_bits(figures["right"], figures["images"])
        except ValueError as error:
            raise InputError(
                f"has {error}, but {figures['images']} images",
                place="a line of points.jsonl",
                field="result.right",
                hint="remove the line, and it is measured again",
            ) from error

    def __getitem__(self, name):
        return self.figures[name]
