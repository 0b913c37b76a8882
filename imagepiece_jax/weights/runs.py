"""Files of a run's folder: its config as fields of a model, and its checkpoints."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import checksums
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import fields_of_run
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.spec import ModelSpec, size_of
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights.file_names import CHECKPOINTS, CLASSES, CONFIG, RUN_FORMAT
from imagepiece_jax.weights.hub_configs import guarded
from imagepiece_jax.weights.location import Location

KINDS = ("latest", "best")  # of checkpoints
FIELDS = {"image_size", "num_classes", "model", "reduction"}  # of a run's config
OTHERS = ("run.json", "metrics.jsonl")  # that only a run writes
COLLECTIONS = ("params", "batch_stats")
AVERAGES = "ema"  # the collections, averaged over steps, in the state of a run
IMAGENET = {"mean": MEAN, "std": STD}


def read(found: Location) -> dict[str, Any]:
    """Fields of a WeightsSource by the files of a run."""
    run = found.config
    if not FIELDS <= {*run}:
        raise InputError(
            f"{found.config_file} is neither that of a run nor of published weights"
        )
    model, reduction, crop = guarded(found.config_file, _parts, run)
    spec = model.completed_by(size_of(model.name))
    class_names = read_class_names(found.path, run["num_classes"])
    parts = {"arch": model.architecture, "stem": model.stem or "patch"}
    parts["prop_attn"] = None  # which is the reduction's
    return {
        "spec": dataclasses.replace(spec, **parts),
        "reduction": reduction,
        "crop": crop,
        "class_names": class_names,
        "run": run,
        "seed": run.get("seed", 0),
    }


def _parts(run):
    """ModelSpec, Reduction and crop that the config of a run has."""
    check_format(run)
    return ModelSpec.of_run(run), Reduction.of_run(run), fields_of_run(run)


def check_format(config: Mapping[str, Any]) -> None:
    """Raise InputError for the config of a run of another version."""
    if config.get("format") != RUN_FORMAT:
        raise InputError(
            f"a run of format {config.get('format')} is not read; this version reads "
            f"format {RUN_FORMAT}"
        )


def read_checkpoint(
    folder: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state dict, by timm's names, of a run's newest "best" or "latest".

    averaged: the averages of its weights (config.ema_decay), not the weights
    Returns it and the checkpoint's other facts, the fields of a Progress.
    """
    check_choice("checkpoint", checkpoint, KINDS)
    folder = pathlib.Path(folder).resolve()
    start = f"{AVERAGES}/" if averaged else ""

    def choose(_, table):
        names = tuple(f"{start}{name}/" for name in COLLECTIONS)
        wanted = [name for name in table if name.startswith(names)]
        if wanted or not averaged:
            return wanted
        raise InputError(
            f"run {folder} has no averaged weights, as its ema_decay was 0"
        )

    written = _written(folder)
    if written and checkpoint not in written:
        raise InputError(
            f"run {folder} has no {checkpoint!r} checkpoint yet, but {written[0]!r}"
        )
    arrays, facts, _ = checksums.read_newest(folder / CHECKPOINTS / checkpoint, choose)
    arrays = {name.removeprefix(start): array for name, array in arrays.items()}
    tensors = timm_tensors.to_timm(traverse_util.unflatten_dict(arrays, sep="/"))
    return tensors, facts


def _written(folder):
    """The kinds of checkpoints that a run has."""
    return [kind for kind in KINDS if checksums.steps(folder / CHECKPOINTS / kind)]


def check_normalization(
    folder: str | os.PathLike, values: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Refuse a run whose config says another mean or std than its training.

    values: "mean" and "std" by the config; one that lacks them has ImageNet's
    facts: in a checkpoint, beside its arrays; {}: unknown
    """
    for field, trained in (facts.get("normalization") or {}).items():
        now = [*values.get(field, IMAGENET[field])]
        if now != trained:
            raise InputError(
                f"{pathlib.Path(folder) / CONFIG}: model.{field} is {now}, but the run "
                f"was trained with {trained}"
            )


def own_files(path):
    """Files that must not be overwritten: the weights file, or a run's own files."""
    path = pathlib.Path(path)
    names = (CONFIG, CLASSES, *OTHERS)
    return [path, *(path / name for name in names)]


def read_class_names(folder: pathlib.Path, classes: int) -> tuple | None:
    """Read the class names of the run in `folder`, by label; None: it has none.

    classes: how many names there are to be
    """
    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        return checked_names(json.loads(path.read_text("utf-8")), classes)
    except ValueError as error:  # InputError, too
        raise InputError(f"{path}: {error}") from error
