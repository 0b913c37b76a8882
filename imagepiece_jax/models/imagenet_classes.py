"""ImageNet-1k's class names, for weights that are said to know these classes."""

import functools
import pathlib

# Synset and lemmas of each class, by label; its first lines state the source.
TABLE = pathlib.Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def names() -> tuple[str, ...]:
    """The names of the 1,000 classes by label: the lemmas of each synset."""
    lines = TABLE.read_text("utf-8").splitlines()
    return tuple(line.partition("\t")[2] for line in lines if line[0] != "#")


def names_of(model: str | None, classes: int | None) -> tuple[str, ...] | None:
    """The names for weights by timm's name, whose tag says that they know them.

    "vit_small_patch16_224.augreg_in21k_ft_in1k" was trained on ImageNet-1k last. None
    for others, and for another number of classes.
    """
    tag = (model or "").partition(".")[2]
    return names() if classes == 1000 and tag.endswith("in1k") else None
