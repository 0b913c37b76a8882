"""digits: 1,797 handwritten digits inside the package."""

import gzip
import pathlib

import numpy as np
from PIL import Image

from imagepiece_jax.data.source import ArraySource, SplitRequest, check_num_classes


def open_digits(path: str, request: SplitRequest) -> ArraySource:
    """Open a split of the digits, enlarged to 16x16, a small model's size.

    path: unused, because the name "digits" has none
    """
    check_num_classes(request.num_classes, 10, "data set digits")
    digits, labels = read_digits()  # [images, 8, 8] from 0 to 16, and [images]
    is_test_image = _draw_test_images(labels)
    is_in_split = ~is_test_image if request.split == "train" else is_test_image
    indices = np.flatnonzero(is_in_split)
    images = []
    for gray in np.round(digits[indices] * (255 / 16)).astype(np.uint8):
        # Bicubic, like a photograph.
        image = Image.fromarray(gray).resize((16, 16), Image.Resampling.BICUBIC)
        images.append(np.asarray(image.convert("RGB")))
    class_names = tuple(map(str, range(10)))
    source = ArraySource(images, labels[indices], 10, class_names)
    source.names = [f"digits/{index:04d}" for index in indices]
    return source


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] of levels 0 to 16, and labels; digits.txt has the source."""
    with gzip.open(pathlib.Path(__file__).parent / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, np.int32, delimiter=",")  # [images, 64 and a label]
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def _draw_test_images(labels):
    """True for a fifth of every class, the same in every run and on every machine."""
    # RandomState, because NumPy has frozen its streams for good. A Generator's
    # permutation may change with a release, and the split with it.
    rng = np.random.RandomState(0)
    is_test_image = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        class_indices = rng.permutation(np.flatnonzero(labels == label))
        is_test_image[class_indices[: round(len(class_indices) / 5)]] = True
    return is_test_image
