"""Models of the paper's tables: one checkpoint, trained runs, or short fine-tunings.

Fine-tunings train every method on a small set by one config. Every seed first
fine-tunes --weights as a dense model. From its last weights every method, and the dense
model, trains for as many epochs again: all see the images equally often, and every
teacher exists. Each run is one of train.py's in its own folder: a stopped run resumes,
a finished run is only read.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.fit_to_cost import fit_to_cost
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.trainer import train_and_evaluate
from imagepiece_jax.weights.file_names import CONFIG_FILE
from imagepiece_jax.weights.load import load

# A model, and the reduction that it is measured with
Model = tuple[Pretrained, Mapping]


class Models:
    """Where the models of a table come from."""

    trains: bool  # whether they are trained here
    note: str  # a sentence on their origin
    weights: tuple[Pretrained, ...]  # as loaded; their classes must be the data's

    def find(self, reduction: Mapping, stem: str, by_stem: bool) -> list[Model]:
        """The models of one row, one a seed; none where there is no such model.

        by_stem: fine-tuned models have either stem, each at its own cost; False: the
            patch stem, all at equal GMACs
        """

    def sizes(self) -> set[tuple[int, int]]:
        """(classes, image size) of all models."""
        return {(vit.model.config.num_classes, vit.image_size) for vit in self.weights}

    @property
    def crop(self) -> dict[str, Any]:
        """How all models see images: fields of a Preprocessing except its size."""
        return crop_of(self.weights[0].preprocessing) if self.weights else {}

    @property
    def class_names(self):
        """Names of the first model's classes, by label; None where it has none."""
        return self.weights[0].class_names if self.weights else None


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
        has_stem = self.pretrained.model.config.stem == stem
        return [(self.pretrained, reduction)] if has_stem else []


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRuns(Models):
    """Runs, each matched with a row by its stem and all fields of its reduction."""

    weights: tuple[Pretrained, ...]
    trains = False
    note = "Trained models, each with the reduction it was trained with."

    def find(self, reduction, stem, by_stem):
        trained_with = Reduction.read(reduction)
        runs = []
        for run in self.weights:
            if run.reduction == trained_with and run.model.config.stem == stem:
                runs.append((run, run.reduction))
        return runs


def load_runs(folder: str | os.PathLike, dtype: str | None = None) -> list[Pretrained]:
    """All runs in a folder, by name. Raises InputError where there are none."""
    configs = sorted(pathlib.Path(folder).glob(f"*/{CONFIG_FILE}"))
    if not configs:
        problem = f"{folder} has no run"
        allowed = "a folder of runs"
        raise InputError(f"--runs {problem}; allowed: {allowed}")
    return [
        load(path.parent, checkpoint="latest").with_default_execution(dtype)
        for path in configs
    ]


# Fine-tuning

REFERENCE = Reduction.read("imagepiece")  # whose cost the others are matched to
# Published trainings freeze the backbone for longer than a small run lasts.
LEARNING = {"backbone_lr": 1.0, "frozen_epochs": 0.0}


def with_cost(reduction: Reduction, macs: float) -> Reduction:
    """The reduction at a cost; its schedule and fields that give a shape stay."""
    method = reduction.method
    changes = {"macs": macs}
    if not isinstance(method.counts, str):
        changes["counts"] = None
    if method.ratio_field is not None:
        field = method.ratio_field
        changes[field] = getattr(type(method), field)
    method = dataclasses.replace(method, **changes)
    return dataclasses.replace(reduction, method=method)


class Finetuner(Models):
    """Short runs in a folder, trained when they are needed.

    config: how they are trained
    pretrained: the weights that they start from
    data: a set with a train split
    seeds: of the runs, one run each
    """

    trains = True
    weights = ()
    class_names = None

    def __init__(self, config, pretrained, data, folder, seeds):
        self.config = config
        self.pretrained = pretrained
        self.data = data
        self.folder = folder
        self.seeds = seeds
        source = open_source(data, "train")
        self.num_classes = source.num_classes
        self.class_names = source.class_names

    @property
    def note(self):
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"Fine-tuned here: {self.config.epochs} epochs dense, then as many with "
            f"each reduction, seeds {seeds}."
        )

    def find(self, reduction, stem, by_stem):
        """As in Models, at REFERENCE's GMACs; none for a method that misses them."""
        if stem != "patch" and not by_stem:
            return []
        reduction = Reduction.read(reduction)
        if not by_stem and reduction not in (DENSE_REDUCTION, REFERENCE):
            try:
                reduction = self.match_cost(reduction)
            except InputError as error:
                print(
                    f"left out: {reduction_label(reduction)}",
                    error,
                    sep="\n",
                    flush=True,
                )
                return []
        runs = [self._train_reduced(reduction, stem, seed) for seed in self.seeds]
        return [(run, run.reduction) for run in runs]

    @property
    def crop(self):
        """The weights' crop, with the config's values where it has some."""
        run = RunConfig.from_config(self.config)
        vit = self.pretrained
        return crop_of(run.fill_preprocessing(vit.config).vit_config.preprocessing)

    def sizes(self):
        return {(self.num_classes, self.config.image_size)}

    def match_cost(self, reduction):
        """`reduction` at the ratio whose GMACs are nearest to the reference's."""
        reference = build_model(self._dense.config, REFERENCE)
        share = model_macs(reference) / model_macs(self._dense)
        requested = with_cost(reduction, share)
        return fit_to_cost(requested, self._dense, tolerance=0.1)

    @functools.cached_property
    def _dense(self):
        """The dense model that is trained, with the stem of --weights."""
        config = self.pretrained.config.at_size(self.config.image_size)
        config = dataclasses.replace(config, num_classes=self.num_classes)
        return build_model(config)

    def _train_reduced(self, reduction, stem, seed):
        """The run of a reduction, which starts from the dense run of its seed."""
        start = self._train_dense(stem, seed)
        config = self._prepare_config(reduction, stem, seed)
        model = RunConfig.from_config(config).create_model()
        names = variable_shapes(model)["params"]
        config.init.weights = str(start)
        if any(name.startswith("reducer") for name in names):
            config.init.fresh = ("reducer",)
        if reduction.method.needs_teacher:
            config.teacher.weights = str(start)
        return self._train_in_folder(
            config, f"{reduction_label(reduction)}_{stem}_seed{seed}"
        )

    def _has_classes_of(self, vit):
        if self.num_classes != vit.config.num_classes:
            return False
        try:
            check_classes(vit.class_names, "weights", self.class_names, "data")
        except InputError:
            return False
        return True

    def _train_dense(self, stem, seed):
        """Folder of the dense run from which the seed's other runs start."""
        config = self._prepare_config(DENSE_REDUCTION, stem, seed)
        pretrained = self.pretrained
        fresh = () if stem == pretrained.model.config.stem else ("patch_embed",)
        if not self._has_classes_of(pretrained):
            fresh += ("head",)
        config.init.weights = str(pretrained.origin.path)
        config.init.fresh = fresh
        return self._train_in_folder(config, f"start_{stem}_seed{seed}").origin.path

    def _prepare_config(self, reduction, stem, seed):
        """The config of a run, without its initial weights."""
        config = self.config.copy_and_resolve_references()
        config.reduction = str(trained_reduction(reduction, LEARNING))
        config.seed = seed
        config.num_classes = self.num_classes
        config.model.stem = stem
        config.data.name = self.data
        # One evaluation, at the end: no checkpoint is chosen on the test images.
        config.eval_every_epochs = config.epochs
        config.progress = False
        return config

    def _train_in_folder(self, config, name):
        print(f"training {name}", flush=True)
        return train_run(config, self.folder / name)


def crop_of(images: Preprocessing) -> dict[str, Any]:
    """The fields of a Preprocessing except its size."""
    return {name: value for name, value in vars(images).items() if name != "image_size"}


def trained_reduction(reduction: Reduction, learning: Mapping) -> Reduction:
    """A reduction with the fields of `learning` that its method has."""
    method = reduction.method
    names = {field.name for field in dataclasses.fields(method)}
    fields = {name: value for name, value in learning.items() if name in names}
    return dataclasses.replace(reduction, method=dataclasses.replace(method, **fields))


def train_run(config: ConfigDict, workdir: pathlib.Path) -> Pretrained:
    """Train a run to its end, or resume it: its last weights."""
    run = RunConfig.from_config(config)
    train_and_evaluate(run, workdir)
    jax.clear_caches()  # its programs would stay, and no other run uses them
    return load(workdir, checkpoint="latest").with_default_execution(config.model.dtype)


def take_from_weights(config: ConfigDict, pretrained: Pretrained):
    """Set the fields of a Finetuner's config that the weights decide."""
    trained = pretrained.config
    config.model.stem = trained.stem
    config.model.arch.class_token = trained.arch.class_token
    config.model.mean = trained.mean
    config.model.std = trained.std


def reduction_label(reduction) -> str:
    """A reduction as the name of a folder: "evit_keep_rate=0.5"."""
    text = str(Reduction.read(reduction))
    return text.translate(str.maketrans(":", "_", "()"))
