"""Read a run's folder: its config as a WeightsInfo, and its checkpoints."""

import os
import pathlib
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import checksums
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import read_run_config
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights.config_json import WeightsInfo, guarded
from imagepiece_jax.weights.file_names import (
    INDEX,
    OPEN_CLIP,
    PREPROCESSOR,
    PROCESSOR,
    WEIGHTS,
)
from imagepiece_jax.weights.location import Location
from imagepiece_jax.weights.run_files import (
    CHECKPOINTS,
    CLASSES,
    CONFIG,
    KINDS,
    check_format,
    read_class_names,
)

FIELDS = {"image_size", "num_classes", "model", "reduction"}  # of a run's config
OTHERS = ("run.json", "metrics.jsonl")  # files that only a run writes
COLLECTIONS = ("params", "batch_stats")
AVERAGES = "ema"  # where a run's state keeps COLLECTIONS averaged over steps


def read(source: Location) -> WeightsInfo:
    """Read the facts about a run's weights."""
    run = source.config
    if not FIELDS <= {*run}:
        raise InputError(
            f"{source.config_file} describes neither a run nor published weights"
        )
    config, reduction, dtype = guarded(source.config_file, _parts, run)
    names = read_class_names(source.path, run["num_classes"])
    return WeightsInfo(config, names, reduction=reduction, dtype=dtype)


def _parts(run):
    """Return (ViTConfig, Reduction, dtype) from a run's config."""
    check_format(run)
    return read_run_config(run), Reduction.read(run["reduction"]), run["model"]["dtype"]


def read_checkpoint(
    folder: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a run's newest "best" or "latest" checkpoint.

    averaged: read the weights' averages (config.ema_decay) instead of the weights
    Returns ({timm's name: array}, the checkpoint's other facts: fields of a
        RunProgress).
    """
    folder = pathlib.Path(folder).resolve()
    start = f"{AVERAGES}/" if averaged else ""

    def choose(_, table):
        prefixes = tuple(f"{start}{name}/" for name in COLLECTIONS)
        names = [name for name in table if name.startswith(prefixes)]
        if names or not averaged:
            return names
        raise InputError(
            f"run {folder} has no averaged weights, as its ema_decay was 0"
        )

    checkpoints = folder / CHECKPOINTS
    written = [kind for kind in KINDS if checksums.complete_steps(checkpoints / kind)]
    if written and checkpoint not in written:
        raise InputError(
            f"run {folder} has no {checkpoint!r} checkpoint yet, but {written[0]!r}"
        )
    arrays, facts, _ = checksums.read_newest(checkpoints / checkpoint, choose)
    arrays = {name.removeprefix(start): array for name, array in arrays.items()}
    tensors = timm_tensors.to_timm(traverse_util.unflatten_dict(arrays, sep="/"))
    return tensors, facts


def own_files(*words):
    """List the files of a command's inputs, which its outputs may not overwrite.

    words: paths of weights, and names of data such as csv:FILE; files that belong to
        them are listed whether they exist or not
    """
    names = (CONFIG, CLASSES, *OTHERS, OPEN_CLIP, PREPROCESSOR, PROCESSOR)
    names += tuple(name for name in WEIGHTS if name.endswith(INDEX))
    files = []
    for word in words:
        word = os.fspath(word)
        if registry.name_form(word).endswith(":FILE"):
            word = word.partition(":")[2]
        path = pathlib.Path(word).expanduser()
        beside = path.with_name(f"{path.name}.json")  # describes an .onnx file
        files += [path, beside, *(path / name for name in names)]
    return files
