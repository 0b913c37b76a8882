"""Images that are read once and stay in memory: small sets, trained on many times.

Training images are canvases, which the device crops and flips anew in every epoch; test
images have their final size.
"""

import concurrent.futures
import dataclasses

import numpy as np

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.sources import ArraySource, Source
from imagepiece_jax.data.transforms import CanvasTransform, EvalTransform
from imagepiece_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Resident:
    """All images of a source, in its order.

    image: uint8 [n, C, C, 3], in the top left corner of a canvas of zeros; extent:
    int32 [n, 2], height and width of the image there; label: int32 [n].
    """

    image: np.ndarray
    extent: np.ndarray
    label: np.ndarray

    @property
    def fields(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return dataclasses.asdict(self)

    def __len__(self):
        return len(self.label)


def read(
    source: Source, transform: CanvasTransform | EvalTransform, threads: int
) -> Resident:
    """Every image of `source` by `transform`; InputError for one that does not decode.

    Nothing is left out here: the set is small, and its reader can fix it.
    """
    height, width = sides(transform.shape)
    pixels = np.zeros((len(source), height, width, 3), np.uint8)
    extent = np.zeros((len(source), 2), np.int32)
    label = np.zeros(len(source), np.int32)

    def one(index):
        try:
            image, label[index] = source.read(index)
        except UnreadableImage as error:
            raise InputError(
                f"{error.name} cannot be read ({error.reason}); replace or remove it"
            ) from error
        image = transform(image)
        extent[index] = image.shape[:2]
        pixels[index, : image.shape[0], : image.shape[1]] = image

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, range(len(source))):
            pass
    return Resident(pixels, extent, label)


def as_source(images: Resident, of: Source) -> ArraySource:
    """`images`, read from the source `of`, as a source of their own."""
    names = [of.name(index) for index in range(len(of))]
    return ArraySource(
        images.image, images.label, names, of.num_classes, of.class_names
    )
