"""The data sets by name: a new kind is a file here and a case of `open_source`."""

import os
import pathlib
from collections.abc import Sequence

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.data.source import SPLITS, Source
from imagepiece_jax.data.sources.csv_table import open_csv
from imagepiece_jax.data.sources.digits import open_digits
from imagepiece_jax.data.sources.folder import open_folder
from imagepiece_jax.data.sources.hub_data import open_hub_data
from imagepiece_jax.data.sources.imagenet_tfds import open_imagenet
from imagepiece_jax.errors import InputError

SETS = ("imagenet2012", "digits")
NAMES = (*SETS, "hf:OWNER/NAME", "folder:PATH", "csv:FILE")


def open_source(
    name: str,
    split: str,
    *,
    num_classes: int | None = None,
    data_dir: str | os.PathLike | None = None,
    class_names: Sequence[str | None] | None = None,
    labeled: bool = True,
) -> Source:
    """The `Source` of a split of the data of a name.

    imagenet2012    ImageNet-1k as TFDS's array_record files in `data_dir`
    hf:OWNER/NAME   columns image and label of a data set of the Hugging Face hub, or
                    hf:FOLDER of its parquet files
    digits          1,797 handwritten digits, 16x16, inside the package
    folder:PATH     PATH/train/CLASS/..., PATH/val/CLASS/..., or to test PATH/CLASS/...
                    alone; see `class_names`
    csv:FILE        see `open_csv`; paths relative to FILE
    PATH            an existing folder or .csv file, without the word before it

    name: one of these
    split: "train" or "val"
    num_classes: None is as many as there are
    class_names: of a model of `num_classes`, by label. Each folder has one of them for
        its name, or the WordNet ID of a class of ImageNet; those of some classes are
        enough for a test. None: labels are the order of all folders, sorted as text
    labeled: False: csv: and hf: need no labels, which are not read
    Raises InputError for an unknown name, for missing, empty or unreadable files, for
    labels that do not fit `num_classes`, and for folders without `class_names` that
    numbers in their names sort in another order than text does.
    """
    check_choice("split", split, SPLITS)
    name = full_name(name)
    kind, _, path = name.partition(":")
    path = os.path.expanduser(path)
    if name == "imagenet2012":
        return open_imagenet(split, num_classes, data_dir)
    if name == "digits":
        return open_digits(split, num_classes)
    if kind == "hf" and path:
        return open_hub_data(path, split, num_classes, labeled)
    if kind == "folder" and path:
        return open_folder(path, split, num_classes, class_names)
    if kind == "csv" and path:
        return open_csv(path, split, num_classes, labeled)
    raise InputError(
        f"name is {name!r}; it must be {', '.join(NAMES)}, or an existing folder or "
        ".csv file"
    )


def is_set(word: str) -> bool:
    """Whether a word names a data set rather than a path."""
    named = word in SETS or word.startswith(("hf:", "csv:"))
    return named and not os.path.exists(word)


def full_name(name: str) -> str:
    """The name of data: "folder:PATH" of an existing folder, "csv:FILE" of a table."""
    path = os.path.expanduser(name)
    if name in NAMES:
        return name
    if os.path.isdir(path):
        return f"folder:{name}"
    if os.path.isfile(path) and path.lower().endswith(".csv"):
        return f"csv:{name}"
    return name


def short_name(name: str) -> str:
    """Name of a data set without this machine's folders: "csv:photos/labels.csv"."""
    kind, colon, path = name.partition(":")
    return kind + colon + "/".join(pathlib.Path(path).parts[-2:])
