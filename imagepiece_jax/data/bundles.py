"""What is read together, handed from one process to another, and joined to batches?

Bundles of some tens of images: single ones would cost more to hand over than to decode.
Copies of one image stay in one bundle, so that it is read and decoded once, and where
nothing on the host tells them apart its pixels are kept once.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.errors import InputError

SIZE = 32  # images, about

# What comes with the pixels: name -> (dtype, shape for one image).
FIELDS = {
    "label": (np.int32, ()),
    "mask": (np.float32, ()),  # 0: there is no image
    "index": (np.int32, ()),  # in the source
    "extent": (np.int32, (2,)),  # height and width in a larger square of zeros
}


class Bundle(NamedTuple):
    """Samples in the order of their positions in the global batch."""

    pixels: Any  # uint8 [distinct, S, S, 3], or where they are kept
    rows: list  # of each sample: its row of the pixels
    slots: list  # where it goes in this process's part of the batch
    fields: dict  # name of FIELDS -> list of one value a sample
    errors: list  # of each sample: a tuple of the UnreadableImage tried before it


def parts(samples):
    """In how many bundles so many samples are read."""
    return math.ceil(samples / SIZE)


def slots(positions, places, part):
    """Which slots belong to bundle `part`, in the order of their positions: a list.

    positions [slots] lie in the global batch; places [slots] rise with them, and slots
    of the same place hold copies.
    """
    order = np.argsort(positions)
    places = places[order]
    count = parts(len(order))
    cuts = np.arange(1, count) * len(order) // count
    cuts = np.searchsorted(places, places[cuts])  # to the first of its copies
    return np.split(order, cuts)[part].tolist()


def most_rows(positions, repeats, random):
    """The most rows of pixels of a bundle, wherever in an epoch its step lies."""
    most = 0
    for phase in range(repeats):
        places = (phase + positions) // repeats
        for part in range(parts(len(positions))):
            found = slots(positions, places, part)
            rows = len(found) if random else len(set(places[found].tolist()))
            most = max(most, rows)
    return most


class Builder:
    """Makes one `Bundle`, image by image."""

    def __init__(self, source, transform):
        self._source, self._transform = source, transform
        self._images, self._samples = [], []

    def add(self, candidates, calls, index=-1):
        """Put the first readable image among `candidates` into each slot of `calls`.

        `calls` maps a slot to what the transform is called with beside the image.
        Where no image is readable, zeros come with mask 0 and `index`. InputError for
        an image that does not fit the transform.
        """
        image, label, mask, errors = None, 0, 0.0, []
        for candidate in map(int, candidates):
            try:
                image, label = self._source.read(candidate)
            except UnreadableImage as error:
                errors.append(error)
                continue
            index, mask = candidate, 1.0
            break
        for copy, (slot, arguments) in enumerate(calls.items()):
            if copy == 0 or self._transform.random:
                self._images.append(self._transformed(image, index, arguments))
            values = {"label": label, "mask": mask, "index": index}
            values["extent"] = self._images[-1].shape[:2]
            tried = tuple(errors) if copy == 0 else ()
            self._samples.append((len(self._images) - 1, slot, values, tried))

    def _transformed(self, image, index, arguments):
        if image is None:
            return np.zeros((0, 0, 3), np.uint8)
        try:
            return self._transform(image, *arguments)
        except InputError as error:
            raise InputError(f"{self._source.name(index)}: {error}") from error

    def done(self, room):
        """The `Bundle` of all that was added, its pixels in an array room(shape)."""
        side = self._transform.side
        pixels = room((len(self._images), side, side, 3))
        for square, image in zip(pixels, self._images, strict=True):
            height, width = image.shape[:2]
            square[:height, :width] = image
            square[:height, width:] = 0
            square[height:] = 0
        rows, slots, values, errors = map(list, zip(*self._samples, strict=True))
        fields = {name: [one[name] for one in values] for name in FIELDS}
        return Bundle(pixels, rows, slots, fields, errors)


def join(bundles, shape, fields):
    """(batch, history) of the bundles that make up one batch of `shape`.

    The batch has the arrays named by `fields`, each of `shape` and then that of one
    image; they are new each time, because JAX on CPU may use their memory as it is.
    The history has for every sample, in the order of positions, its errors and mask.
    """
    side = bundles[0].pixels.shape[1]
    kinds = {"image": (np.uint8, (side, side, 3))} | FIELDS
    batch, history = {}, []
    for name in fields:
        dtype, of_one = kinds[name]
        whole = np.empty((math.prod(shape), *of_one), dtype)
        for bundle in bundles:
            if name == "image":
                for slot, row in zip(bundle.slots, bundle.rows, strict=True):
                    whole[slot] = bundle.pixels[row]
            else:
                whole[bundle.slots] = bundle.fields[name]
        batch[name] = whole.reshape(*shape, *of_one)
    for bundle in bundles:
        history += zip(bundle.errors, bundle.fields["mask"], strict=True)
    return batch, history
