"""Names of the classes: those of trained weights, compared with those of the data."""

import json
import os
import pathlib

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.hub import is_published
from imagepiece_jax.models.run_files import CLASSES, RUN_CONFIG, read_config

SAME_CLASSES = "allowed are the same classes in the same order"


def read(path: str | os.PathLike) -> tuple[str | None, ...] | None:
    """Names by label of the run in the folder `path`; None for a class without one.

    None for a weights file, and for a run that has no names: its data name no classes,
    or it was trained by a version that kept none.
    """
    folder = pathlib.Path(path)
    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(names, list) or not all(
        name is None or isinstance(name, str) for name in names
    ):
        raise InputError(f"{path} is no list of names, one for each class")
    classes = read_config(folder)["num_classes"]
    if len(names) != classes:
        raise InputError(
            f"{path} has {len(names)} names, but the run has {classes} classes: "
            "allowed is one for each, or no such file"
        )
    return tuple(names)


def other_class(path, names):
    """The first class with different names in weights and data, or None.

    path: of the weights, which know their classes where they are a run's folder; names:
    of the classes of the data. Returns (label, name of the run, name of the data); a
    class without a name is not compared.
    """
    pairs = zip(read(path) or (), names or (), strict=False)
    for label, (ours, theirs) in enumerate(pairs):
        if None not in (ours, theirs) and ours != theirs:
            return label, ours, theirs
    return None


def check_classes(path, names, data, allowed=SAME_CLASSES, field=""):
    """InputError where weights at `path` and `data` have another class, by `names`.

    data: the data in the sentence; allowed: its end; field: what named `path`.
    """
    other = other_class(path, names)
    if other is not None:
        label, ours, theirs = other
        raise InputError(
            f"class {label} is {ours!r} in {field}{path}, but {theirs!r} in {data}: "
            f"{allowed}"
        )


def unnamed_classes(path, names, data):
    """The line on names that cannot be compared; None where they can, or for a file.

    As `check_classes`. Weights files have no names, and those of published models
    are words of another kind than those of the data: neither are compared.
    """
    run = pathlib.Path(path, RUN_CONFIG).is_file() and not is_published(path)
    if not run or None not in (read(path), names):
        return None
    unnamed = data if names is None else path
    return f"classes are compared by number alone: {unnamed} does not name them"
