"""Images that a caller hands over without labels, as a `Source`."""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from imagepiece_jax.data import image_files, registry
from imagepiece_jax.data.source import FileSource, Source
from imagepiece_jax.errors import InputError

NO_LABEL = -1
ALLOWED = "a folder, paths of images, uint8 arrays [H, W, 3], or data such as csv:FILE"


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


def open_unlabeled(images: Any) -> Source:
    """The Source of images without labels.

    images: a folder, one path or several, arrays uint8 [B, H, W, 3] or a list of
        [H, W, 3], or the name of data ("csv:FILE", "folder:PATH", "imagenet2012",
        "digits"), whose training images are taken; a Source stays what it is
    Raises InputError for anything else.
    """
    if isinstance(images, Source):
        return images
    if isinstance(images, str) and is_data(images):
        return registry.open_source(images, "train", labeled=False)
    if isinstance(images, str | os.PathLike):
        images = [images]
    if not isinstance(images, Iterable):
        raise InputError(field="images", value=images, allowed=ALLOWED)
    images = list(images)
    if all(isinstance(image, str | os.PathLike) for image in images):
        paths = [os.path.expanduser(path) for path in images]
        for path in paths:
            if not os.path.exists(path):
                problem = f"is {path}, which does not exist"
                raise InputError(problem, field="images", value=path, allowed=ALLOWED)
        files = image_files.find_images(paths)
        labels = np.full(len(files), NO_LABEL)
        return FileSource("", files, labels, num_classes=0)
    for number, image in enumerate(images):
        pixels = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not pixels or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            found = getattr(image, "dtype", type(image).__name__)
            shape = list(getattr(image, "shape", []))
            problem = f"is {found} {shape or ''}".rstrip()
            field = f"images[{number}]"
            raise InputError(problem, field=field, value=found, allowed=ALLOWED)
    return ArraySource(images)


def is_data(name: str) -> bool:
    """Whether it names data, not a path: "csv:FILE", "digits"."""
    kinds = {known.partition(":")[0] for known in registry.NAMES}
    kind, colon, _ = name.partition(":")
    alone = not colon and name in registry.NAMES and not pathlib.Path(name).exists()
    return (bool(colon) and kind in kinds) or alone
