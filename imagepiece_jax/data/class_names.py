"""ImageNet's class names, and whether weights and data have the same classes."""

import functools
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from typing import Any

from imagepiece_jax.errors import InputError

# WordNet ID and lemmas of every class, by label; the first lines state the source.
CLASS_NAME_TABLE = pathlib.Path(__file__).with_name("imagenet_classes.txt")
# {WordNet ID: name} for classes whose first lemma is another class's, too
DISTINCT_NAMES = {
    "n02012849": "crane (bird)",
    "n03126707": "crane (machine)",
    "n02113186": "Cardigan Welsh corgi",  # 474 is the garment
    "n03710721": "tank suit",  # 638 is "maillot"
}
# The Hugging Face hub's data set renamed duplicate names.
HUB_NAMES = {"crane2": "crane"}
ClassNames = Sequence[str | None]
DIGIT_RUN = re.compile("[0-9]+")  # not \d: digits of other scripts count as letters


@functools.cache
def imagenet_rows() -> list[tuple[str, ...]]:
    """(WordNet ID, all lemmas) of ImageNet-1k's classes, by label."""
    lines = CLASS_NAME_TABLE.read_text("utf-8").strip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines if line[0] != "#"]


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet-1k's class names by label, all different."""
    return tuple(
        DISTINCT_NAMES.get(wordnet_id, lemmas.split(", ")[0])
        for wordnet_id, lemmas in imagenet_rows()
    )


@functools.cache
def _name_of_wordnet_id():
    """{WordNet ID: class name} of ImageNet-1k."""
    wordnet_ids, _ = zip(*imagenet_rows(), strict=True)
    return dict(zip(wordnet_ids, imagenet_names(), strict=True))


def describe_class(name: str) -> str:
    """Class name for people: "n01440764 (tench)" for a WordNet ID."""
    class_name = _name_of_wordnet_id().get(name)
    return f"{name} ({class_name})" if class_name else name


def shorten_imagenet_names(names: ClassNames | None) -> ClassNames | None:
    """Replace ImageNet-1k's label map by `imagenet_names`; keep any other names."""
    if names is None or len(names) != len(imagenet_names()):
        return names
    short_names = imagenet_names()
    for name, short_name, (wordnet_id, lemmas) in zip(
        names, short_names, imagenet_rows(), strict=True
    ):
        # In ImageNet's map a class has its WordNet ID, its name, or some lemmas.
        synonyms = {wordnet_id, short_name, *lemmas.split(", ")}
        # None, a class without a name, is no synonym: it becomes "None".
        map_name = HUB_NAMES.get(str(name), str(name))
        if synonyms.isdisjoint([map_name, *map_name.split(", ")]):
            return names
    return short_names


def composed_name(name: str) -> str:
    """Name in Unicode's composed form: é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


def canonical_name(class_name: str) -> str:
    """ImageNet's name for a WordNet ID; any other name in Unicode's composed form."""
    return _name_of_wordnet_id().get(class_name, composed_name(class_name))


def labels_by_name(names: ClassNames) -> dict[str, int | None]:
    """{canonical name: label}; None for a name of several classes."""
    label_of_name = {}
    for label, name in enumerate(names):
        if name is not None:
            class_name = canonical_name(name)
            label_of_name[class_name] = None if class_name in label_of_name else label
    return label_of_name


def check_text_order(names: Sequence[str], title: str) -> None:
    """Refuse names (class_10, class_2) whose text order contradicts their numbers."""
    # torchvision sorts class folders as text, which puts class_10 before class_2; timm
    # sorts them by number.
    last_names = {}  # {text around numbers: last name with this text}
    for name in sorted(names):
        surrounding_text = DIGIT_RUN.sub("0", name)
        previous_name = last_names.get(surrounding_text, name)
        if _numbers_in(previous_name) > _numbers_in(name):
            order = f"class {previous_name!r} before {name!r} as text"
            raise InputError(f"{title} has {order}; pad numbers, or give class_names")
        last_names[surrounding_text] = name


def _numbers_in(name):
    return [int(digits) for digits in DIGIT_RUN.findall(name)]


def check_classes(
    weights_names: ClassNames | None,
    weights_title: str,
    data_names: ClassNames | None,
    data_title: str,
) -> None:
    """Compare the named classes of weights and data; titles are for the error."""
    # None: no names to compare. Their counts are compared elsewhere, as num_classes.
    name_pairs = zip(weights_names or (), data_names or (), strict=False)
    for label, (weights_name, data_name) in enumerate(name_pairs):
        if weights_name is None or data_name is None:
            continue
        if canonical_name(weights_name) != canonical_name(data_name):
            way_out = "; drop its column 'class'" if "csv:" in data_title else ""
            raise InputError(
                f"{weights_title}: class {label} is {weights_name!r}, but "
                f"{data_name!r} in {data_title}{way_out}"
            )


def checked_names(names: Any, num_classes: int, field: str = "class_names") -> tuple:
    """Check names by label, as text or None; there are `num_classes`."""
    # These types have a length, but no names in an order.
    if isinstance(names, str | bytes | Mapping | Set) or len(names) != num_classes:
        raise InputError(f"{field} must be a list of {num_classes} names")
    return tuple(name if name is None else str(name) for name in names)
