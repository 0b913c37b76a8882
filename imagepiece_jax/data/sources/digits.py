"""digits: 1,797 handwritten digits inside the package."""

import gzip
import pathlib

import numpy as np
from PIL import Image

from imagepiece_jax.data.source import ArraySource, check_num_classes


def open_digits(path, split, num_classes, *_):
    """Open a split of the digits, 16x16; arguments and errors as for `open_source`."""
    check_num_classes(num_classes, 10, "data set digits")
    pixels, labels = read_digits()
    tested = _choose_tested(labels)
    chosen = np.flatnonzero(tested if split == "val" else ~tested)
    images = np.stack([_enlarge_digit(pixels[index]) for index in chosen])
    names = [f"digits/{index:04d}" for index in chosen]
    digits = tuple(map(str, range(10)))
    return ArraySource(images, labels[chosen], 10, digits, names)


def read_digits():
    """Images [1797, 8, 8] from 0 to 16, and labels; digits.txt states the source."""
    with gzip.open(pathlib.Path(__file__).parent / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, np.int32, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _choose_tested(labels):
    """True for a fifth of every class, the same in every run and on every machine."""
    # RandomState, because NumPy has frozen its streams for good. A Generator's
    # permutation may change with a release, and the split with it.
    draw = np.random.RandomState(0)
    tested = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        tested[members[: round(len(members) / 5)]] = True
    return tested


def _enlarge_digit(digit):
    """Enlarge 8x8 values 0..16 to 16x16x3 uint8, bicubic like a photograph."""
    levels = np.round(digit * (255 / 16)).astype(np.uint8)
    large = Image.fromarray(levels).resize((16, 16), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(large)[:, :, None], 3, axis=2)
