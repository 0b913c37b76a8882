"""Files in a run's folder that training writes and `load` reads."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.file_names import CONFIG

FORMAT = 1  # of CONFIG; other formats are refused
CLASSES = "classes.json"  # class names by label, if the data have names
CHECKPOINTS = "checkpoints"  # the folder of weights
KINDS = ("latest", "best")  # kinds of checkpoints


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
