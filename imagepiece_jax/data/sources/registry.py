"""Data sets by name. A new one is a file here, and an entry of `SOURCE_OPENERS`."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from imagepiece_jax.data.source import Source, SplitRequest
from imagepiece_jax.data.sources.csv_table import open_csv
from imagepiece_jax.data.sources.digits import open_digits
from imagepiece_jax.data.sources.folder import open_class_folders
from imagepiece_jax.data.sources.hub_data import open_hub_data
from imagepiece_jax.data.sources.imagenet_tfds import open_imagenet
from imagepiece_jax.errors import InputError

# {form of names: function (path, SplitRequest)}. No command overwrites a FILE it reads.
SOURCE_OPENERS: dict[str, Callable[[str, SplitRequest], Source]] = {
    "imagenet2012": open_imagenet,
    "digits": open_digits,
    "hf:OWNER/NAME": open_hub_data,
    "folder:PATH": open_class_folders,
    "csv:FILE": open_csv,
}


def open_source(name: str, split: str, **options: Any) -> Source:
    """Open a split, "train" or "val", of the data set `name`; options: SplitRequest's.

    imagenet2012    ImageNet-1k as TFDS's array_record files in `data_dir`
    hf:OWNER/NAME   columns image and label of a data set on the Hugging Face hub, or
                    hf:FOLDER with its parquet files
    digits          1,797 handwritten digits, 16x16, inside the package
    folder:PATH     PATH/train/CLASS/..., PATH/val/CLASS/..., or PATH/CLASS/... for
                    validation alone; see `class_names`
    csv:FILE        see `open_csv`; paths relative to FILE
    PATH            an existing folder or .csv file, without the word before it

    Raises InputError for an unknown name, and for images or labels that are not there.
    """
    request = SplitRequest(split, **options)
    full_name = complete_name(name)
    form = find_form(full_name)
    if not form:
        known_names = f"{', '.join(SOURCE_OPENERS)}, an existing folder or .csv file"
        raise InputError(f"{name!r} is no data set; the data sets are {known_names}")
    path = os.path.expanduser(full_name.partition(":")[2])  # "" without a colon
    return SOURCE_OPENERS[form](path, request)


def find_form(name: str) -> str:
    """The form in `SOURCE_OPENERS` of a data set's name; "" for another word."""
    prefix, colon, path = name.partition(":")
    for form in SOURCE_OPENERS:  # any path fits, but only where the form has one
        form_prefix, form_colon, form_path = form.partition(":")
        if (prefix, colon, path != "") == (form_prefix, form_colon, form_path != ""):
            return form
    return ""


def is_set_name(name: str) -> bool:
    """Whether a word names a data set and not a path."""
    return find_form(name) != "" and not os.path.exists(name)


def complete_name(name: str) -> str:
    """Complete a path to "folder:PATH" or "csv:FILE", if it exists."""
    path = os.path.expanduser(name)
    if name in SOURCE_OPENERS:
        return name
    if os.path.isdir(path):
        return f"folder:{name}"
    if os.path.isfile(path) and path.lower().endswith(".csv"):
        return f"csv:{name}"
    return name


def short_name(name: str) -> str:
    """Data set name without this machine's folders: "csv:photos/labels.csv"."""
    prefix, colon, path = name.partition(":")
    return prefix + colon + "/".join(pathlib.Path(path).parts[-2:])
