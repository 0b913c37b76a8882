"""The files of a run's folder that others read, too."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.errors import InputError

CONFIG = "config.json"  # the full config
FORMAT = 1  # of CONFIG: a run of another one is not read
CLASSES = "classes.json"  # the names of the classes by label, if there are any
CHECKPOINTS = "checkpoints"  # the folder with the weights
KINDS = ("latest", "best")  # of checkpoints


def check_format(config: Mapping[str, Any]) -> None:
    """Raise InputError for the config of a run of another version."""
    if config.get("format") != FORMAT:
        raise InputError(
            f"a run of format {config.get('format')} is not read; this version reads "
            f"format {FORMAT}"
        )


def read_class_names(folder: pathlib.Path, classes: int) -> tuple | None:
    """Read the class names of the run in `folder`, by label; None: it has none.

    classes: how many names there are to be
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
    """Refuse a run whose config says another mean or std than its training.

    values: "mean" and "std" by the config
    facts: in a checkpoint, beside its arrays; {}: unknown
    """
    for field, trained in (facts.get("normalization") or {}).items():
        now = [*values[field]]
        if now != trained:
            raise InputError(
                f"{pathlib.Path(folder) / CONFIG}: model.{field} is {now}, but the run "
                f"was trained with {trained}"
            )
