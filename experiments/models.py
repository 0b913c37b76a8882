"""Models of the paper's tables: one checkpoint, or trained runs."""

import dataclasses
import pathlib
from typing import Protocol

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights.folder_files import CONFIG_FILE
from imagepiece_jax.weights.load import load


class Models(Protocol):
    """Where the models of a table come from."""

    note: str  # a sentence on their origin
    weights: tuple[Pretrained, ...]  # as loaded; their classes must be the data's

    def find(self, reduction, stem):
        """[(Pretrained, reduction)] of one row, one a seed; [] without such a model."""


@dataclasses.dataclass(frozen=True, eq=False)
class OffTheShelf:
    """One checkpoint, which every reduction is applied to without training."""

    pretrained: Pretrained
    note = (
        "One checkpoint for all rows, off the shelf: but for the reduction that it was "
        "trained with, no row is a measure of a method as published."
    )

    @property
    def weights(self):
        return (self.pretrained,)

    def find(self, reduction, stem):
        has_stem = self.pretrained.model.config.stem == stem
        return [(self.pretrained, reduction)] if has_stem else []


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRuns:
    """Runs, each matched with a row by its stem and all fields of its reduction."""

    weights: tuple[Pretrained, ...]
    note = "Trained models, each with the reduction it was trained with."

    def find(self, reduction, stem):
        trained_with = Reduction.read(reduction)
        runs = []
        for run in self.weights:
            if run.reduction == trained_with and run.model.config.stem == stem:
                runs.append((run, run.reduction))
        return runs


def load_runs(folder, dtype=None):
    """All runs in a folder, by name. Raises InputError where there are none."""
    configs = sorted(pathlib.Path(folder).glob(f"*/{CONFIG_FILE}"))
    if not configs:
        raise InputError(f"--runs {folder} has no run; allowed: a folder of runs")
    runs = [load(path.parent, checkpoint="latest") for path in configs]
    return [run.with_default_execution(dtype) for run in runs]
