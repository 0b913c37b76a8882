"""Files in a run's folder that training writes and `load` reads, and their names."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.file_names import (
    CONFIG,
    INDEX,
    OPEN_CLIP,
    PREPROCESSOR,
    PROCESSOR,
    WEIGHTS,
)

FORMAT = 1  # of CONFIG; other formats are refused
CLASSES = "classes.json"  # class names by label, if the data have names
CHECKPOINTS = "checkpoints"  # the folder of weights
KINDS = ("latest", "best")  # kinds of checkpoints
OTHERS = ("run.json", "metrics.jsonl")  # files that only a run writes


def read_config(file: pathlib.Path) -> dict[str, Any]:
    """Read the config of a run, in this version's format."""
    config = read_json(file)
    check_format(config)
    return config


def check_format(config: Mapping[str, Any]) -> None:
    """Refuse a run's config in another format."""
    if config.get("format") != FORMAT:
        raise InputError(
            f"the run has format {config.get('format')}; this version reads format "
            f"{FORMAT}"
        )


def read_class_names(folder: pathlib.Path, classes: int) -> tuple | None:
    """Read a run's class names by label; None if the run has no names.

    classes: the expected number of names
    """
    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        return checked_names(json.loads(path.read_text("utf-8")), classes)
    except (ValueError, TypeError) as error:  # InputError, too
        raise InputError(f"{path}: {error}") from error


def check_normalization(
    folder: pathlib.Path, values: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Refuse a run whose config was edited to a mean or std unlike its training's.

    values: "mean" and "std" from the config
    facts: stored beside a checkpoint's arrays; {}: unknown
    """
    for field, trained in (facts.get("normalization") or {}).items():
        value = [*values[field]]
        if value != trained:
            raise InputError(
                f"{pathlib.Path(folder) / CONFIG}: model.{field} is {value}, but the "
                f"run was trained with {trained}"
            )


def own_files(*words: str | os.PathLike) -> list[pathlib.Path]:
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
