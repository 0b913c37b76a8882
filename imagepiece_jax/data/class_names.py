"""Names of classes: those of ImageNet, and whether weights and data have the same."""

import collections
import functools
import pathlib
import re
import unicodedata
from collections.abc import Sequence

from imagepiece_jax.errors import InputError

# Synset and lemmas of each class, by label; the first lines state the source.
TABLE = pathlib.Path(__file__).with_name("imagenet_classes.txt")
# {synset: name} of classes whose first lemma is also that of another class
DISTINCT = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n02113186": "Cardigan Welsh corgi",  # 474 is the garment
    "n03710721": "tank suit",  # 638 is "maillot"
}
Names = Sequence[str | None]
DIGITS = re.compile("([0-9]+)")  # not those of other scripts, which are names
MAX_DIGITS = 9


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet-1k's classes by label: a different lemma for each."""
    rows = imagenet_rows()
    return tuple(DISTINCT.get(synset, words.split(", ")[0]) for synset, words in rows)


@functools.cache
def imagenet_lemmas() -> tuple[str, ...]:
    """All lemmas of ImageNet-1k's classes by label: "tench, Tinca tinca"."""
    return tuple(words for _, words in imagenet_rows())


@functools.cache
def imagenet_rows() -> list[tuple[str, str]]:
    """The WordNet ID and all lemmas of each class of ImageNet-1k, by label."""
    lines = TABLE.read_text("utf-8").strip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines if line[0] != "#"]


@functools.cache
def imagenet_labels() -> dict[str, set[int]]:
    """Labels of ImageNet-1k by WordNet ID, by the lemmas as one text, and by name.

    The lemmas of a class are one text, such as "tench, Tinca tinca"; those of both
    cranes, the bird and the machine, are "crane".
    """
    labels = collections.defaultdict(set)
    for label in range(len(imagenet_rows())):
        for name in _names_of(label):
            labels[name].add(label)
    return dict(labels)


def _names_of(label):
    """The WordNet ID, all lemmas and the name of a class of ImageNet-1k."""
    return (*imagenet_rows()[label], imagenet_names()[label])


@functools.cache
def _names_of_ids():
    """The names of ImageNet-1k's classes by WordNet ID."""
    synsets = [synset for synset, _ in imagenet_rows()]
    return dict(zip(synsets, imagenet_names(), strict=True))


def described(name: str) -> str:
    """A name of a class for people: "n01440764 (tench)" of a WordNet ID."""
    known = _names_of_ids().get(name)
    return f"{name} ({known})" if known else name


def shortened(names: Names | None) -> Names | None:
    """The names of a label map, `imagenet_names` where it is one of ImageNet-1k.

    Each class then has its WordNet ID, its name or some of its lemmas for a name.
    """
    if names is None or len(names) != len(imagenet_names()):
        return names
    for label, name in enumerate(names):
        synset, words = imagenet_rows()[label]
        known = {synset, words, imagenet_names()[label], *words.split(", ")}
        if known.isdisjoint((name, *str(name).split(", "))):
            return names
    return imagenet_names()


def normalized(name: str) -> str:
    """A name in Unicode's composed form: é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


def number(name: str) -> int | None:
    """The whole number that a name is, such as 7 for "07"; None for other names."""
    if not DIGITS.fullmatch(name) or len(name) > MAX_DIGITS:
        return None
    return int(name)


def two_orders(names: Sequence[str]) -> tuple[int, str, str] | None:
    """The first place where names sorted as text are not those sorted by numbers.

    torchvision sorts class folders as text, timm by the numbers in them, so that
    class_10 is before class_2 or behind it.

    Returns (label, name as text, name by numbers), or None where both orders agree.
    """
    as_text = sorted(names)
    by_number = sorted(names, key=_by_number)
    for label, (text, numbered) in enumerate(zip(as_text, by_number, strict=True)):
        if text != numbered:
            return label, text, numbered
    return None


def _by_number(name):
    """A key that sorts names by the numbers in them."""
    parts = DIGITS.split(name)  # every other one is a number
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def labels_by_name(names: Names | None, num_classes: int) -> dict[str, int]:
    """Labels of a model by the names that data may have for its classes.

    These are the model's names, and of a class of ImageNet its WordNet ID, its lemmas
    as one text, and its entry of `imagenet_names`. A model of 1,000 classes without
    names is taken for one of ImageNet's, in the usual order. A name of two classes is
    left out.

    names: of the model's classes
    """
    if names is None and num_classes == len(imagenet_names()):
        names = imagenet_names()
    by_own_name = collections.defaultdict(set)
    by_other_name = collections.defaultdict(set)
    for label, name in enumerate(names or ()):
        if name is None:
            continue
        by_own_name[normalized(name)].add(label)
        imagenet = imagenet_labels().get(name, set())
        if label in imagenet:  # ImageNet's own order: two classes are called crane
            imagenet = {label}
        if len(imagenet) == 1:
            for other in _names_of(*imagenet):
                by_other_name[other].add(label)
    # A name of the model's goes before the same name in ImageNet.
    by_name = by_other_name | by_own_name
    return {name: min(labels) for name, labels in by_name.items() if len(labels) == 1}


def mapped_classes(
    names: Names | None, data: str, model_names: Names | None
) -> str | None:
    """A note on how folders of `data` get labels; None where all names agree.

    names: of the classes of the data, by label
    model_names: of the model's
    """
    if names is None or not data.startswith("folder:"):
        return None
    named = {label: name for label, name in enumerate(names) if name is not None}
    complete = len(named) == len(names)
    in_order = complete and [*named.values()] == sorted(named.values())
    if in_order and are_labels(names):
        return None
    expected = model_names
    if expected is None and len(names) == len(imagenet_names()):
        expected = imagenet_names()
    label = next(iter(named))  # of the class that the note has as its example
    remark = ""
    if are_labels(names):
        way = "number"
    elif not in_order:
        way = "name"
        if model_names is None:
            remark = "; the weights name none, ImageNet's order is taken"
    else:
        way = "the order of their names"
        if expected is not None:
            others = [i for i, name in named.items() if not _agree(name, expected[i])]
            if not others:
                return None
            label = others[0]
        if model_names is not None:
            raise InputError(
                f"{data} has class {names[label]!r}, which is no name of the model's "
                f"classes: by the order of all it would be class {label}, "
                f"{model_names[label]!r}"
            )
    name = described(named[label])
    example = f"{name} is {label}"
    name_in_model = expected and expected[label]
    if name_in_model not in (None, named[label]) and f"({name_in_model})" not in name:
        example += f" ({name_in_model})"
    folders = f"{len(named)} folders of {data} are"
    if len(named) == 1:
        folders = f"one folder of {data} is"
    return (
        f"the {folders} mapped by {way} to the model's {len(names)} classes: "
        f"{example}{remark}"
    )


def kept_order(names: Names | None, data: str) -> str | None:
    """A note on the order of a run's classes; None where it can be no other.

    Names with numbers can be sorted as text or by their numbers.

    names: of the classes, by label
    data: where they are from, as `config.data.name` has it
    """
    if names is None or None in names or not data.startswith("folder:"):
        return None
    as_text = sorted(names)
    by_number = sorted(names, key=_by_number)
    orders = zip(names, as_text, by_number, strict=True)
    differing = [label for label, found in enumerate(orders) if len({*found}) > 1]
    if not differing:
        return None
    label = differing[0]
    way = "as the weights have them"
    if [*names] == as_text:
        way = "as text, not by their numbers"
    elif [*names] == by_number:
        way = "by their numbers, not as text"
    return (
        f"classes of {data} are sorted {way}: class {label} is {names[label]!r}; the "
        "run keeps this order"
    )


def are_labels(names: Names) -> bool:
    """Whether every class that has a name is named by its label, such as "7"."""
    named = [(label, name) for label, name in enumerate(names) if name is not None]
    return all(number(name) == label for label, name in named)


def other_class(weights: Names | None, data: Names | None):
    """The first class with different names in weights and data.

    A class without a name is not compared, nor ImageNet's names with words that are not
    of ImageNet, nor words with the numbers of the labels.

    weights, data: names by label; None where there are none
    Returns (label, name of the weights, name of the data), or None.
    """
    if weights is None or data is None:
        return None
    numbers = [name for name in weights if name and number(name) is not None]
    if are_labels(data) and not numbers:
        return None
    of_imagenet = tuple(weights) in (imagenet_names(), imagenet_lemmas())
    for label, (name, other) in enumerate(zip(weights, data, strict=False)):
        if _agree(name, other):
            continue
        if not of_imagenet or other in imagenet_labels():
            return label, name, other
    return None


def _agree(name, other):
    """Whether two names may be of one class: one is None, or they mean the same.

    They are equal, or of one class of ImageNet's.
    """
    if name is None or other is None or normalized(name) == normalized(other):
        return True
    labels = imagenet_labels().get(name, set())
    return not labels.isdisjoint(imagenet_labels().get(other, set()))


def checked_names(names, classes):
    """Names by label as a tuple, of which there must be `classes`.

    names: a sequence of strings, and of None for classes without a name
    """
    if isinstance(names, str):
        raise InputError(f"class_names is {names!r}; it must be a list of names")
    names = tuple(names)
    for name in names:
        if not isinstance(name, str | None):
            raise InputError(f"class_names has {name!r}, which is no text")
    if len(names) != classes:
        raise InputError(f"class_names has {len(names)} names for {classes} classes")
    return names


def check_classes(
    weights: Names | None, place: str, names: Names | None, data: str
) -> str | None:
    """Compare the classes of weights with those of data, by name.

    weights, names: of both by label; None where there are none
    place, data: what both are: a path, or a field and its value
    Returns the line on what cannot be compared, None where both have names.
    """
    if other := other_class(weights, names):
        label, name, ours = other
        raise InputError(f"{place}: class {label} is {name!r}, but {ours!r} in {data}")
    if None not in (weights, names):
        return None
    unnamed = data if names is None else place
    return f"classes are compared by number alone: {unnamed} does not name them"
