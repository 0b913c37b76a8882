"""Context of an experiment: its models and images, and how they are measured."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from experiments.images import Images
from experiments.settings import TableSettings
from imagepiece_jax import cli
from imagepiece_jax.benchmark import device, workloads
from imagepiece_jax.benchmark.cache import ResultCache
from imagepiece_jax.benchmark.compare import decode_bits, encode_bits, plan_facts
from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy, statistics
from imagepiece_jax.pretrained.load import Weights
from imagepiece_jax.pretrained.runs import RUN_CONFIG
from imagepiece_jax.reduction import settings as reductions
from imagepiece_jax.training.weights_config import for_analysis

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MAX_PROGRAMS = 64  # compiled evaluation steps that are kept


class Models(Protocol):
    """Where the models of a table's rows come from.

    OffTheShelf: one checkpoint for all; TrainedRuns: a folder of runs;
    finetune.Finetuner: short runs that are made when they are needed.
    """

    trains: bool  # whether models are made here
    note: str  # a sentence on how the models came to be

    def find(
        self, reduction: Mapping, stem: str, matched: bool, stems: tuple[str, ...]
    ) -> list[tuple[Weights, Mapping]]:
        """(weights, reduction) pairs of one row, one a seed; [] where there is none.

        matched, stems: for models that are made here, whether at equal GMACs, and with
        which stems.
        """

    def names(self) -> list[str]:
        """What there is, for an error sentence; empty where that says nothing."""

    def sizes(self) -> set[tuple[int, int]]:
        """(classes, image size) of all models."""

    def paths(self) -> list[pathlib.Path]:
        """Weights whose classes must be those of the images."""


@dataclasses.dataclass(frozen=True, eq=False)
class OffTheShelf:
    """One checkpoint, which every reduction is applied to without training."""

    pretrained: Weights
    trains = False
    note = (
        "One checkpoint for all rows, off the shelf: but for the reduction that it was "
        "trained with, no row is a measure of a method as published."
    )

    def find(self, reduction, stem, matched, stems):
        same = self.pretrained.stem == stem
        return [(self.pretrained, reduction)] if same else []

    def names(self):
        return []

    def sizes(self):
        return {(self.pretrained.config.num_classes, self.pretrained.image_size)}

    def paths(self):
        return [self.pretrained.path]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRuns:
    """Runs, each matched with a row by its stem and all fields of its reduction."""

    runs: tuple[Weights, ...]
    trains = False
    note = "Trained models, each with the reduction it was trained with."

    def find(self, reduction, stem, matched, stems):
        wanted = reductions.completed(reduction)
        return [
            (run, run.reduction)
            for run in self.runs
            if run.stem == stem and run.reduction == wanted
        ]

    def names(self):
        return [f"{r.path.name} ({r.reduction['name']}, {r.stem})" for r in self.runs]

    def sizes(self):
        return {(run.config.num_classes, run.image_size) for run in self.runs}

    def paths(self):
        return [run.path for run in self.runs]


def runs_in(folder: str | os.PathLike, dtype: str | None = None) -> list[Weights]:
    """All runs in `folder`, by name; InputError if there are none."""
    found = sorted(pathlib.Path(folder).glob(f"*/{RUN_CONFIG}"))
    if not found:
        raise InputError(
            f"--runs {folder} holds no run; allowed is a folder whose folders are runs "
            "of train.py"
        )
    return [for_analysis(path.parent, dtype=dtype) for path in found]


def package_config(name: str) -> "ConfigDict":
    """One of the package's configs, by its file name."""
    return cli.load_config(f"{cli.CONFIGS}/{name}")


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """Everything that an experiment is given.

    models, images: None for experiments that need neither; config: of --config.
    """

    cache: ResultCache
    settings: TableSettings
    models: Models | None = None
    images: Images | None = None
    config: "ConfigDict | None" = None
    programs: dict = dataclasses.field(default_factory=dict)

    @property
    def out(self) -> pathlib.Path:
        return pathlib.Path(self.settings.out)

    @property
    def pretrained(self) -> Weights:
        """The one checkpoint of an experiment that needs one; InputError without."""
        if not isinstance(self.models, OffTheShelf):
            raise InputError("--weights is missing: a weights file or a run's folder")
        return self.models.pretrained

    def evaluate(self, pretrained, reduction, images: Images | None = None):
        """Result of `pretrained` with `reduction` on all images, or on these."""
        return self._evaluate(pretrained, reduction, images or self.images)

    def evaluate_altered(self, pretrained, reduction, alteration, alter, prepare):
        """`evaluate` on images changed by `alter` (see accuracy.eval_step).

        alteration: what it does, as part of the setting; prepare(batch): the batch with
        what `alter` reads. The same `alter` is compiled once for a model.
        """
        return self._evaluate(
            pretrained, reduction, self.images, alteration, alter, prepare
        )

    def _evaluate(
        self, pretrained, reduction, images, alteration=None, alter=None, prepare=None
    ):
        setting = self._setting("accuracy", pretrained, reduction, images)
        setting |= alteration or {}

        def measure():
            model = pretrained.model(reduction)
            variables, untrained = pretrained.variables(model)
            batches = images.batches()
            batches = map(prepare, batches) if prepare else batches
            step = self._step(pretrained, reduction, alter)
            found = accuracy.evaluate(step, parallel.replicate(variables), batches)
            return {
                "acc1": found.acc1,
                "acc5": found.acc5,
                "loss": found.loss,
                "images": found.images,
                "untrained_selectors": untrained,
                **plan_facts(model, pretrained.image_size),
                "right": encode_bits(found.each["right"]),
            }

        what = f"{reductions.label(reduction)}, {len(images)} images"
        return Result(self.cache.result(setting, measure, what))

    def _step(self, pretrained, reduction, alter):
        """A compiled step, kept for other seeds and images of the same model."""
        key = pretrained.config, str(reductions.completed(reduction)), alter
        if key not in self.programs:
            while len(self.programs) >= MAX_PROGRAMS:
                self.programs.pop(next(iter(self.programs)))
            model = pretrained.model(reduction)
            self.programs[key] = accuracy.model_step(model, alter=alter)
        return self.programs[key]

    def analyze(self, kind, pretrained, reduction, measure, model, summarize) -> dict:
        """Figures inside of `model`: summarize({name: [images, ...]}), JSON values.

        kind: the name of the analysis in the setting; measure(outputs, batch): {name:
        [m, ...]} of the images of a batch.
        """
        setting = self._setting(kind, pretrained, reduction, self.images)

        def found():
            variables, _ = pretrained.variables(pretrained.model(reduction))
            step = accuracy.model_step(model, measure=measure)
            batches = self.images.batches()
            arrays = accuracy.evaluate(
                step, parallel.replicate(variables), batches
            ).each
            return summarize(arrays) | {"images": len(arrays["index"])}

        what = f"inside {reductions.label(reduction)}, {len(self.images)} images"
        return self.cache.result(setting, found, what)

    def speed(self, pretrained, reduction) -> dict | None:
        """Speed relative to the dense model of the same weights, timed in turns.

        As `workloads.speed` gives it; None where nothing is timed.
        """
        if not self.settings.speed:
            return None
        setting = {
            "kind": "speed",
            "fields": dict(pretrained.fields),
            "reduction": reductions.completed(reduction),
            "batch_size": self.settings.speed_batch_size,
            "device": device.name(),
            **dataclasses.asdict(self.settings.rules),
        }
        return self.cache.result(
            setting,
            lambda: workloads.speed(
                pretrained,
                reduction,
                self.settings.speed_batch_size,
                self.settings.rules,
            ),
            f"the speed of {reductions.label(reduction)}",
        )

    def _setting(self, kind, pretrained, reduction, images):
        return {
            "kind": kind,
            "weights": pretrained.digest,
            "fields": dict(pretrained.fields),
            "reduction": reductions.completed(reduction),
            "use": pretrained.use(reduction),
            "trained_as": dict(pretrained.reduction),
            "seed": pretrained.seed,
            **images.setting,
        }


class Result:
    """A cached evaluation: figures, and `right`, bool [images] in the set's order."""

    def __init__(self, figures: dict):
        self.figures = figures
        try:
            self.right = decode_bits(figures["right"], figures["images"])
        except ValueError as error:
            raise InputError(
                f"a line of points.jsonl has {error} in result.right, but "
                f"{figures['images']} images; remove the line, and it is measured again"
            ) from error

    def __getitem__(self, name):
        return self.figures[name]

    @property
    def accuracy(self) -> statistics.Estimate:
        return statistics.accuracy(self.right)
