"""Images that a caller hands over without labels, as a `Source`."""

import logging
import os
import pathlib
from typing import Any

import numpy as np

from imagepiece_jax.data import decode, image_files, pictures, registry
from imagepiece_jax.data.source import FileSource, Source
from imagepiece_jax.errors import InputError

log = logging.getLogger("imagepiece_jax.data")
NO_LABEL = -1
ALLOWED = "a folder, paths of images, or data such as csv:FILE"


class ArraySource(Source):
    """Images in memory.

    images: uint8 [H, W, 3], maybe of different sizes
    """

    def __init__(self, images):
        super().__init__(num_classes=0)
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index], NO_LABEL

    def name(self, index):
        return f"image {index}"

    def size(self, index):
        return self.images[index].shape[:2]


class Photographs(FileSource):
    """Image files without labels, turned as their EXIF says."""

    def __init__(self, files):
        super().__init__("", files, np.full(len(files), NO_LABEL), num_classes=0)

    def read(self, index):
        path = self.name(index)
        return decode.decode(path, path, upright=True), NO_LABEL


def open_unlabeled(images: Any, data_dir: str | os.PathLike | None = None) -> Source:
    """The Source of images to learn from without labels.

    images: a folder, one path or several, uint8 [B, H, W, 3], images as
        `pictures.rgb` takes them, or the name of data ("csv:FILE", "folder:PATH",
        "imagenet2012", "digits"), whose training images are taken, as they are of a
        folder that holds train and val; a Source stays what it is
    data_dir: of imagenet2012, as `open_source` takes it
    An image of several that cannot be read is left out, with a warning.
    Raises InputError for anything else.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str):
        images = _named(images)
    if isinstance(images, str) and is_data(images):
        return registry.open_source(images, "train", labeled=False, data_dir=data_dir)
    is_one = pictures.is_one(images)
    if not is_one:
        pictures.check_batch(images)
    images = [images] if is_one else list(images)
    if all(isinstance(image, str | os.PathLike) for image in images):
        paths = [os.path.expanduser(path) for path in images]
        for path in paths:
            if not os.path.exists(path):
                raise InputError(
                    f"is {path}, which does not exist",
                    field="images",
                    value=path,
                    allowed=ALLOWED,
                )
            if path.endswith(".csv"):
                raise InputError(
                    f"is {path}, which is no image",
                    field="images",
                    value=path,
                    allowed=ALLOWED,
                    hint=f"did you mean csv:{path}?",
                )
        return Photographs(image_files.find_images(paths, "train"))
    pixels = []
    for number, image in enumerate(images):
        try:
            pixels.append(pictures.rgb(image))
        except InputError as error:
            named = error
            if not is_one:
                named = error.inside(place=f"image {number}")
            if is_one or isinstance(error, pictures.NoImage):
                raise named from error
            log.warning("%s: it is left out", named)
    return ArraySource(pixels)


def _named(name: str) -> str:
    """What a text names: "csv:FILE" of a table, PATH of "folder:PATH" without train.

    Any other text is itself.
    """
    if name.lower().endswith(".csv"):
        return registry.full_name(name)
    kind, _, path = name.partition(":")
    folder = os.path.expanduser(path)
    if kind != "folder" or not os.path.isdir(folder):
        return name
    return name if os.path.isdir(os.path.join(folder, "train")) else path


def check_found(images: str):
    """Raise InputError, as `open_unlabeled`, for a path or data that are not there."""
    if is_data(images):
        registry.check_found(images)
    elif not os.path.exists(os.path.expanduser(images)):
        open_unlabeled(images)  # which raises the error


def is_data(name: str) -> bool:
    """Whether it names data, not a path: "csv:FILE", "digits"."""
    kinds = {known.partition(":")[0] for known in registry.NAMES}
    kind, colon, _ = name.partition(":")
    if colon:
        return kind in kinds
    return name in registry.NAMES and not pathlib.Path(name).exists()
