"""The classes that a model chooses among on a set of images: all, or the set's own."""

import pathlib

from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError

FIELD = "valid_labels"
FROM_DATA = "data"


def read(text: str | None, source: Source) -> tuple[int, ...] | None:
    """The labels that are answers, in rising order; None: those of all classes.

    text: None; "data": the labels of the images; or a file of labels, one a line, as
        timm has them for ImageNet-A and ImageNet-R
    source: the images
    Raises InputError for a file that holds anything else or lacks a label of the
        images, and for a single label, which would always be right.
    """
    if text is None:
        return None
    present = source.present_labels
    labels = present
    if text != FROM_DATA:
        labels = _of_file(text, source.num_classes)
    if len(labels) == 1:
        problem = f"is {text}, which leaves only class {labels[0]}"
        raise InputError(FIELD, text, "two classes or more", problem=problem)
    lacking = sorted({*present} - {*labels})
    if lacking:
        allowed = "files with the labels of all images"
        problem = f"{text} lacks label {lacking[0]}, which images have"
        raise InputError(FIELD, text, allowed, problem=problem)
    return labels


def _of_file(path, num_classes):
    """The labels in a file, in rising order. InputError for anything else in it."""
    allowed = (
        f"{FROM_DATA}, or a file of labels from 0 to {num_classes - 1}, one per line"
    )
    try:
        words = pathlib.Path(path).read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} cannot be read ({getattr(error, 'strerror', 'no text')})"
        raise InputError(FIELD, path, allowed, problem=problem) from error
    for word in words:
        if not word.isdecimal() or int(word) >= num_classes:
            raise InputError(
                FIELD, word, allowed, problem=f"{path} has the label {word!r}"
            )
    if not words:
        raise InputError(FIELD, path, allowed, problem=f"{path} is empty")
    return tuple(sorted(set(map(int, words))))


def in_words(labels: tuple[int, ...] | None, num_classes: int) -> str:
    """The classes in words: "10 of 1,000 classes", "all 1,000 classes"."""
    if labels is None:
        return f"all {num_classes:,} classes"
    return f"{len(labels):,} of {num_classes:,} classes"


def note(labels: tuple[int, ...] | None, source: Source) -> str | None:
    """A note on images of a few classes, where the model chooses among all; or None."""
    present = len(source.present_labels)
    if labels is not None or present == source.num_classes:
        return None
    classes = "one class" if present == 1 else f"{present:,} classes"
    return (
        f"the images have {classes}, and the model chooses among all "
        f"{source.num_classes:,}; {FIELD}={FROM_DATA} has it choose among theirs"
    )
