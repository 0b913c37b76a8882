"""Comparison of the classes of weights with those of the data, by name."""

import pathlib

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.run_files import class_names

SAME_CLASSES = "allowed are the same classes in the same order"


def other_class(path, names):
    """The first class with different names in weights and data, or None.

    path: of the weights, which know their classes where they are a run's folder; names:
    of the classes of the data. Returns (label, name of the run, name of the data); a
    class without a name is not compared.
    """
    pairs = zip(class_names(path) or (), names or (), strict=False)
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

    As `check_classes`: a weights file never has names.
    """
    if not pathlib.Path(path).is_dir() or None not in (class_names(path), names):
        return None
    unnamed = data if names is None else path
    return f"classes are compared by number alone: {unnamed} does not name them"
