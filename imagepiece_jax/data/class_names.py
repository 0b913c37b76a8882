"""ImageNet's class names, and whether weights and data have the same classes."""

import functools
import numbers
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set

from imagepiece_jax.errors import InputError

# Synset and lemmas of each class, by label; the first lines state the source.
TABLE = pathlib.Path(__file__).with_name("imagenet_classes.txt")
# {synset: name} of classes that share their first lemma with another class
DISTINCT = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n02113186": "Cardigan Welsh corgi",  # 474 is the garment
    "n03710721": "tank suit",  # 638 is "maillot"
}
# The Hugging Face hub's data set renamed what would be there twice.
HUB_NAMES = {"crane2": "crane"}
Names = Sequence[str | None]
DIGITS = re.compile("[0-9]+")  # digits of other scripts are letters here


@functools.cache
def imagenet_rows() -> list[tuple[str, str]]:
    """The WordNet ID and all lemmas of each class of ImageNet-1k, by label."""
    lines = TABLE.read_text("utf-8").strip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines if line[0] != "#"]


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The names of ImageNet-1k's classes by label: a different lemma for each."""
    rows = imagenet_rows()
    return tuple(DISTINCT.get(synset, words.split(", ")[0]) for synset, words in rows)


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
    """The names of a label map; `imagenet_names` for that of ImageNet-1k.

    In the latter every class is called by its WordNet ID, its name or some lemmas.
    """
    if names is None or len(names) != len(imagenet_names()):
        return names
    short = imagenet_names()
    for name, known, (synset, words) in zip(names, short, imagenet_rows(), strict=True):
        same = {synset, known, *words.split(", ")}
        name = HUB_NAMES.get(name, name)
        if same.isdisjoint([name, *str(name).split(", ")]):
            return names
    return short


def normalized(name: str) -> str:
    """A name in Unicode's composed form: é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


def canonical(name: str) -> str:
    """ImageNet's name of a WordNet ID; any other name in Unicode's composed form."""
    return _names_of_ids().get(name, normalized(name))


def labels_by_name(names: Names) -> dict[str, int | None]:
    """{canonical name: label} of a model's classes; None for a name of several."""
    labels = {}
    for label, name in enumerate(names):
        if name is not None:
            key = canonical(name)
            labels[key] = None if key in labels else label
    return labels


def two_orders(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names whose order as text is not that of the numbers in them.

    torchvision sorts class folders as text, which puts class_10 before class_2; timm
    sorts them by number. Returns (class_10, class_2), or None.
    """
    last = {}  # {text around numbers: the last name with it}
    for name in sorted(names):
        before = last.get(DIGITS.sub("0", name), name)
        if _numbers(before) > _numbers(name):
            return before, name
        last[DIGITS.sub("0", name)] = name
    return None


def _numbers(name):
    return [int(digits) for digits in DIGITS.findall(name)]


def check_classes(weights: Names | None, place: str, names: Names | None, data: str):
    """Compare the classes of weights with those of data, by name.

    Classes without a name are skipped.

    weights, names: names by label of each; None if it has none
    place, data: what each is: a path, or a field and its value
    """
    pairs = zip(weights or (), names or (), strict=False)
    for label, (name, ours) in enumerate(pairs):
        if None not in (name, ours) and canonical(name) != canonical(ours):
            raise InputError(
                f"{place}: class {label} is {name!r}, but {ours!r} in {data}"
            )


def checked_names(names, classes, field="class_names"):
    """Names by label as a tuple of length `classes`.

    names: strings, whole numbers, and None for classes without a name
    """
    if isinstance(names, str | bytes | Mapping | Set):
        raise InputError(f"{field} is {names!r}; it must be a list of names")
    names = tuple(names)
    if len(names) != classes:
        raise InputError(f"{field} has {len(names)} names for {classes} classes")
    for name in names:
        if not isinstance(name, str | numbers.Integral | None):
            raise InputError(f"{field} has the name {name!r}; it must be a string")
    return tuple(name if name is None else str(name) for name in names)
