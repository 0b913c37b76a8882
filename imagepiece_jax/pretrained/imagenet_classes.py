"""ImageNet-1k's class names, for weights that are said to know these classes."""

import collections
import functools
import pathlib

# Synset and lemmas of each class, by label; its first lines state the source.
TABLE = pathlib.Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def names() -> tuple[str, ...]:
    """The names of the 1,000 classes by label: the lemmas of each synset."""
    return tuple(words for _, words in _rows())


@functools.cache
def synsets() -> tuple[str, ...]:
    """The WordNet IDs of the 1,000 classes by label."""
    return tuple(synset for synset, _ in _rows())


def _rows():
    lines = TABLE.read_text("utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines if line[0] != "#"]


@functools.cache
def _labels() -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Labels by WordNet ID or all lemmas of a synset, and by one of its lemmas too."""
    whole, single = collections.defaultdict(set), collections.defaultdict(set)
    for label, (synset, words) in enumerate(_rows()):
        for name in (synset, words):
            whole[name].add(label)
        for name in (synset, words, *words.split(", ")):
            single[name].add(label)
    return whole, single


def labels_of(name: str, lemmas: bool = False) -> set[int]:
    """The classes that `name` is, a WordNet ID or all lemmas of a synset.

    lemmas: one of them is enough, such as "tench" for "tench, Tinca tinca". Some words
    are two classes: a crane is a bird and a machine.
    """
    return _labels()[lemmas].get(name, set())


def names_of(model: str | None, classes: int | None) -> tuple[str, ...] | None:
    """The names for weights by timm's name, whose tag says that they know them.

    "vit_small_patch16_224.augreg_in21k_ft_in1k" was trained on ImageNet-1k last. None
    for others, and for another number of classes.
    """
    tag = (model or "").partition(".")[2]
    return names() if classes == 1000 and tag.endswith("in1k") else None
