"""Files of a run's folder: its config as fields of a model, and its checkpoints."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import checksums
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import fields_of_run
from imagepiece_jax.errors import InputError, inside, one_of
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.spec import ModelSpec, size_of
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights.file_names import CHECKPOINTS, CLASSES, CONFIG
from imagepiece_jax.weights.location import ALLOWED, Location

KINDS = ("latest", "best")  # of checkpoints
# Fields that the config of a run has, and their types.
TYPES = {"image_size": int, "num_classes": int, "model": dict, "reduction": str}
OTHERS = ("run.json", "metrics.jsonl")  # that only a run writes
COLLECTIONS = ("params", "batch_stats")
AVERAGES = "ema"  # the collections, averaged over steps, in the state of a run
IMAGENET = {"mean": MEAN, "std": STD}


def read(found: Location) -> dict[str, Any]:
    """Fields of a WeightsSource by the files of a run.

    Raises InputError for a config.json that is not that of a run.
    """
    run = found.config
    with inside(place=found.config_file):
        _check_config(run)
        model = ModelSpec.of_run(run)
        spec = model.completed_by(size_of(model.name))
        reduction = Reduction.of_run(run)
        crop = fields_of_run(run)
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


def _check_config(config):
    """Raise InputError for a config that is not that of a run."""
    if not config:
        raise InputError(allowed=ALLOWED, problem="is empty")
    if fault := _fault(config):
        problem = f"is neither that of a run ({fault}) nor of published weights"
        raise InputError(allowed=ALLOWED, problem=problem)


def _fault(config):
    """Why a config is not that of a run, in words; None where it is."""
    for field, kind in TYPES.items():
        if field not in config:
            return f"it has no {field}"
        if not isinstance(config[field], kind):
            return f"its {field} is {config[field]!r}"
    name = config["model"].get("name")
    if not isinstance(name, str | None):
        return f"its model.name is {name!r}"
    data = config.get("data", {})
    if not isinstance(data, dict):
        return f"its data is {data!r}"
    return None


def read_checkpoint(
    folder: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state dict, by timm's names, of a run's newest "best" or "latest".

    averaged: the averages of its weights (config.ema_decay), not the weights
    Returns it and the checkpoint's other facts, the fields of a Progress.
    Raises InputError where it has none, and for another `checkpoint`.
    """
    one_of("checkpoint", checkpoint, KINDS)
    folder = pathlib.Path(folder).resolve()
    start = f"{AVERAGES}/" if averaged else ""

    def choose(_, table):
        names = tuple(f"{start}{name}/" for name in COLLECTIONS)
        wanted = [name for name in table if name.startswith(names)]
        if wanted or not averaged:
            return wanted
        raise InputError.at(
            f"run {folder}",
            "has no averaged weights, as its ema_decay was 0",
            "runs with averages, or its weights as they are",
        )

    written = _written(folder)
    if written and checkpoint not in written:
        hint = "its first evaluation saves the best" if checkpoint == "best" else ""
        problem = f"has no {checkpoint!r} checkpoint yet"
        allowed = f"{written[0]!r}"
        raise InputError.at(f"run {folder}", problem, allowed, hint, checkpoint)
    arrays, facts, _ = checksums.read_newest(folder / CHECKPOINTS / checkpoint, choose)
    arrays = {name.removeprefix(start): array for name, array in arrays.items()}
    tensors = timm_tensors.to_timm(traverse_util.unflatten_dict(arrays, sep="/"))
    return tensors, facts


def read_shapes(
    folder: pathlib.Path, checkpoint: str
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Any]] | None:
    """What `read_checkpoint` returns, with shapes in place of arrays.

    No array is read. A run that has the other kind of checkpoint alone has the same
    shapes there; None: it has neither.
    """
    folder = folder.resolve()
    written = _written(folder)
    if not written:
        return None
    kind = checkpoint if checkpoint in written else written[0]
    shapes = {}

    def note(_, table):
        shapes.clear()  # of a damaged step
        for name, (dtype, shape, _) in table.items():
            if name.partition("/")[0] in COLLECTIONS:
                shapes[name] = jax.ShapeDtypeStruct(shape, dtype)
        return []

    _, facts, _ = checksums.read_newest(folder / CHECKPOINTS / kind, note)
    variables = traverse_util.unflatten_dict(shapes, sep="/")
    tensors = {}
    for name, shape in timm_tensors.timm_shapes(variables).items():
        tensors[name] = jax.ShapeDtypeStruct(shape, np.float32)
    return tensors, facts


def _written(folder):
    """The kinds of checkpoints that a run has."""
    return [kind for kind in KINDS if checksums.steps(folder / CHECKPOINTS / kind)]


def check_normalization(
    folder: str | os.PathLike, values: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Raise InputError where a run's config says another mean or std than its training.

    values: "mean" and "std" by the config; one that lacks them has ImageNet's
    facts: in a checkpoint, beside its arrays; {}: unknown
    """
    for field, trained in (facts.get("normalization") or {}).items():
        now = [*values.get(field, IMAGENET[field])]
        if now != trained:
            problem = f"is {now}, but the run was trained with another"
            place = pathlib.Path(folder) / CONFIG
            allowed = str(trained)
            field = f"model.{field}"
            raise InputError(field, now, allowed, problem=problem, place=place)


def own_files(path):
    """Files that must not be overwritten: the weights file, or a run's own files."""
    path = pathlib.Path(path)
    names = (CONFIG, CLASSES, *OTHERS)
    return [path, *(path / name for name in names)]


def read_class_names(folder: pathlib.Path, classes: int) -> tuple | None:
    """Read the class names of the run in `folder`, by label; None: it has none.

    classes: how many names there are to be
    Raises InputError for a file that is no list of so many names.
    """
    path = folder / CLASSES
    if not path.exists():
        return None
    with inside(place=path):
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(problem=f"cannot be read ({error})") from error
        return checked_names(names, classes)
