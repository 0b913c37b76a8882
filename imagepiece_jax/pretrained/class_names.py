"""Names of the classes: those of trained weights, compared with those of the data."""

import json
import os
import pathlib
from collections.abc import Sequence

from imagepiece_jax.errors import InputError
from imagepiece_jax.pretrained import hub, hub_configs, imagenet_classes
from imagepiece_jax.pretrained.hub import is_published
from imagepiece_jax.pretrained.runs import CLASSES, RUN_CONFIG, read_config

SAME_CLASSES = "allowed are the same classes in the same order"


def read(path: str | os.PathLike) -> tuple[str | None, ...] | None:
    """Names by label of a run, or of what `save` wrote, in the folder `path`.

    None for a class without a name, and instead of all for weights of other kinds and
    for a run that has no names: its data name no classes, or it was trained by a
    version that kept none.
    """
    folder = hub.local(path)
    if folder.is_dir() and hub_configs.is_own(folder):
        return hub_configs.read(folder).class_names
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

    path: of the weights, which know their classes as `read` says; names: of the classes
    of the data. Returns (label, name of the weights, name of the data); a class without
    a name is not compared, nor ImageNet's words with words that are not of ImageNet.
    """
    known = read(path) or ()
    words = known == imagenet_classes.names()
    for label, (ours, theirs) in enumerate(zip(known, names or (), strict=False)):
        if None in (ours, theirs) or _same(ours, theirs):
            continue
        if not words or imagenet_classes.labels_of(theirs, lemmas=True):
            return label, ours, theirs
    return None


def _same(one, other):
    """Whether two names are one class: equal, or of one synset of ImageNet's."""
    of = imagenet_classes.labels_of
    pairs = ((one, other), (other, one))
    return one == other or any(of(a) & of(b, lemmas=True) for a, b in pairs)


def labels_by_name(
    names: Sequence[str | None] | None, num_classes: int
) -> dict[str, int]:
    """Labels of a model by the names that data may have for its classes.

    names: of the model's classes; the name itself, and for a class of ImageNet's its
    WordNet ID, its lemmas and each of them. A model of 1,000 classes without names is
    taken for one of ImageNet's, in the usual order. A name of two classes is left out.
    """
    if names is None and num_classes == len(imagenet_classes.names()):
        names = imagenet_classes.names()
    rows = [*zip(imagenet_classes.synsets(), imagenet_classes.names(), strict=True)]
    found, twice = {}, set()
    for label, name in enumerate(names or ()):
        if name is None:
            continue
        forms, places = {name}, imagenet_classes.labels_of(name)
        if label in places:  # ImageNet's own order: two classes are called crane
            places = {label}
        if len(places) == 1:
            synset, words = rows[min(places)]
            forms |= {synset, words, *words.split(", ")}
        twice |= forms & found.keys()
        found |= dict.fromkeys(forms, label)
    for label, name in enumerate(names or ()):  # what a class is called is its own
        if name in twice and names.count(name) == 1:
            twice.remove(name)
            found[name] = label
    return {name: label for name, label in found.items() if name not in twice}


def mapped_classes(
    names: Sequence[str | None] | None,
    data: str,
    known: Sequence[str | None] | None,
) -> str | None:
    """The line on folders of `data` that have labels by their names, not their order.

    names: of the classes of the data, by label; known: of the model's. None where the
    order says the same.
    """
    found = {label: name for label, name in enumerate(names or ()) if name is not None}
    ordered = [*found.values()] == sorted(found.values())
    if not data.startswith("folder:") or (ordered and len(found) == len(names)):
        return None
    (label, name), *_ = found.items()
    words = (known or imagenet_classes.names())[label]
    example = f"{name} is {label}" + f" ({words})" * (words != name)
    order = "" if known else "; the weights name none, ImageNet's order is taken"
    return (
        f"the {len(found)} folders of {data} are mapped by name to the model's "
        f"{len(names)} classes: {example}{order}"
    )


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
