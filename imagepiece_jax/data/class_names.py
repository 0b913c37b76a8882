"""ImageNet's class names, and whether weights and data have the same classes."""

import functools
import numbers
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set

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
def imagenet_rows() -> list[tuple[str, str]]:
    """(WordNet ID, all lemmas) of ImageNet-1k's classes, by label."""
    lines = CLASS_NAME_TABLE.read_text("utf-8").strip("\n").split("\n")
    return [tuple(line.split("\t")) for line in lines if line[0] != "#"]


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet-1k's class names by label, all different."""
    rows = imagenet_rows()
    return tuple(
        DISTINCT_NAMES.get(synset, words.split(", ")[0]) for synset, words in rows
    )


@functools.cache
def _name_of_wordnet_id():
    """{WordNet ID: class name} of ImageNet-1k."""
    synsets = [synset for synset, _ in imagenet_rows()]
    return dict(zip(synsets, imagenet_names(), strict=True))


def describe_class(name: str) -> str:
    """Class name for people: "n01440764 (tench)" for a WordNet ID."""
    class_name = _name_of_wordnet_id().get(name)
    return f"{name} ({class_name})" if class_name else name


def shorten_names(names: ClassNames | None) -> ClassNames | None:
    """Replace ImageNet-1k's label map by `imagenet_names`; keep any other names."""
    if names is None or len(names) != len(imagenet_names()):
        return names
    short = imagenet_names()
    for name, short_name, (synset, words) in zip(
        names, short, imagenet_rows(), strict=True
    ):
        # In ImageNet's map a class has its WordNet ID, its name, or some lemmas.
        synonyms = {synset, short_name, *words.split(", ")}
        name = HUB_NAMES.get(name, name)
        if synonyms.isdisjoint([name, *str(name).split(", ")]):
            return names
    return short


def composed_name(name: str) -> str:
    """Name in Unicode's composed form: é is one character, not e and an accent."""
    return unicodedata.normalize("NFC", name)


def canonical_name(name: str) -> str:
    """ImageNet's name for a WordNet ID; any other name in Unicode's composed form."""
    return _name_of_wordnet_id().get(name, composed_name(name))


def labels_by_name(names: ClassNames) -> dict[str, int | None]:
    """{canonical name: label}; None for a name of several classes."""
    labels = {}
    for label, name in enumerate(names):
        if name is not None:
            key = canonical_name(name)
            labels[key] = None if key in labels else label
    return labels


def misordered_pair(names: Sequence[str]) -> tuple[str, str] | None:
    """Find names (class_10, class_2) whose text order contradicts their numbers."""
    # torchvision sorts class folders as text, which puts class_10 before class_2; timm
    # sorts them by number.
    last = {}  # {text around numbers: last name with this text}
    for name in sorted(names):
        before = last.get(DIGIT_RUN.sub("0", name), name)
        if _numbers_in(before) > _numbers_in(name):
            return before, name
        last[DIGIT_RUN.sub("0", name)] = name
    return None


def _numbers_in(name):
    return [int(digits) for digits in DIGIT_RUN.findall(name)]


def check_classes(
    weights: ClassNames | None, weights_name: str, names: ClassNames | None, data: str
):
    """Compare the classes of weights and data by name; unnamed classes are skipped.

    weights, names: names by label, or None
    weights_name, data: for messages, a path, or a field and its value
    """
    pairs = zip(weights or (), names or (), strict=False)
    for label, (name, data_name) in enumerate(pairs):
        if None not in (name, data_name) and canonical_name(name) != canonical_name(
            data_name
        ):
            way_out = "; drop its column 'class'" if "csv:" in data else ""
            raise InputError(
                f"{weights_name}: class {label} is {name!r}, but {data_name!r} in "
                f"{data}{way_out}"
            )


def checked_names(names, classes, field="class_names"):
    """Check names by label (strings, integers, None): a tuple of length `classes`."""
    if isinstance(names, str | bytes | Mapping | Set):
        raise InputError(f"{field} is {names!r}; it must be a list of names")
    names = tuple(names)
    if len(names) != classes:
        raise InputError(f"{field} has {len(names)} names for {classes} classes")
    for name in names:
        if not isinstance(name, str | numbers.Integral | None):
            raise InputError(f"{field} has the name {name!r}; it must be a string")
    return tuple(name if name is None else str(name) for name in names)
