"""Transforms of one image on the host: random crops, canvases, the evaluation crop.

Pure functions of a uint8 RGB array [H, W, 3] and a NumPy Generator, and three
dataclasses, `TrainTransform`, `CanvasTransform` and `EvalTransform`, that chain them.
Each function takes a fixed number of draws from its generator, so what comes after it
does not depend on how many tries it needed.

Resizing is bicubic with antialiasing. `resize_exactly` is Pillow's, with which
published accuracies were measured: evaluation uses it. `resize_fast` is for training:
on photographs it differs from Pillow's by about half a level of 256 and takes a quarter
of the time.

The attributes of a transform describe its output: `side`, the pixels of the square that
it fits into, `fields`, what of it a batch carries, and `random`, whether copies of one
image differ.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image

from imagepiece_jax.common.fields import CheckedFields, choice, number, optional
from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.errors import InputError

# Workers are parallel over images; OpenCV's own threads would only get in their way.
cv2.setNumThreads(0)

TRIES = 10
EVAL_CROP = 0.875  # share of the resized short side that evaluation keeps
SMALL = 32  # images of up to this side are never resized in evaluation
LONGEST = 32  # long side / short side of what is resized; photographs stay far below

CROPS = ("random_resized", "shift", "none")
RESIZES = ("deit", "none")
CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")  # of evaluation
_OPENCV, _PILLOW = -0.75, -0.5  # the parameter `a` of their cubic kernels


def crop_box(height, width, rng, area, aspect=(3 / 4, 4 / 3)):
    """A random box inside height x width pixels.

    area: bounds of its share of the image's area, which is uniform
    aspect: bounds of width / height, whose logarithm is uniform; after 10 boxes that do
    not fit, it is the largest centered box within these bounds
    Returns (top, left, box height, box width).
    Source: the Inception crop as DeiT uses it.
    """
    low, high = (math.log(ratio) for ratio in aspect)
    for share, ratio, down, right in rng.random((TRIES, 4)):
        pixels = height * width * (area[0] + share * (area[1] - area[0]))
        ratio = math.exp(low + ratio * (high - low))
        box_width = round(math.sqrt(pixels * ratio))
        box_height = round(math.sqrt(pixels / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(down * (height - box_height + 1))
            left = int(right * (width - box_width + 1))
            return top, left, box_height, box_width
    ratio = min(max(width / height, aspect[0]), aspect[1])
    box_width = min(width, round(height * ratio))
    box_height = min(height, round(width / ratio))
    top, left = (height - box_height) // 2, (width - box_width) // 2
    return top, left, box_height, box_width


def random_resized_crop(image, size, rng, area, aspect=(3 / 4, 4 / 3)):
    """Resize a `crop_box` of the image to size x size. -> [size, size, 3]."""
    height, width = image.shape[:2]
    top, left, box_height, box_width = crop_box(height, width, rng, area, aspect)
    box = image[top : top + box_height, left : left + box_width]
    return resize_fast(box, size, size)


def shift(image, rng, pixels):
    """Move the image by up to `pixels` in either direction, padding with zeros.

    The result has the same shape. DeiT does so with small images, by padding and a
    random crop.
    """
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    return padded[top : top + height, left : left + width]


def flip(image, rng):
    """Mirror left and right with probability 1/2. Same shape."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def resize_exactly(
    image: np.ndarray, height: int, width: int, interpolation: str = "bicubic"
) -> np.ndarray:
    """Resize by Pillow, with antialiasing. uint8 [H, W, 3] -> [height, width, 3].

    interpolation: "bicubic" or "bilinear"
    """
    how = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(image).resize((width, height), how))


def resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize close to `resize_exactly`. uint8 [H, W, 3] -> [height, width, 3].

    OpenCV's bicubic has another kernel and does not widen it when it shrinks, so that
    fine texture turns into noise. A short filter in front of it fixes both. Images more
    than twice too large are first averaged down by a whole factor.
    """
    old = image.shape[:2]
    if old == (height, width):
        return image
    rows, columns = old[0] // _factor(old[0], height), old[1] // _factor(old[1], width)
    if (rows, columns) != old:
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    across, down = _filter(columns, width), _filter(rows, height)
    image = cv2.sepFilter2D(image, -1, across, down, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _factor(old, new):
    """Whole factor to average by: at least twice the new size is left."""
    return max(1, old // (2 * new))


def _filter(old, new):
    # Rounded, so that a few hundred filters serve all crops.
    return np.ones(1, np.float32) if old == new else _taps(round(old / new, 2))


@functools.lru_cache(maxsize=1024)
def _taps(scale):
    """The filter before OpenCV's bicubic for old / new size `scale`, float32 [2n + 1].

    Least squares: filter and OpenCV's kernel in a row should be Pillow's kernel,
    which is `scale` times as wide where it shrinks.
    """
    wide = max(scale, 1.0)
    count = math.ceil(2 * wide)
    x = np.linspace(0, 2 * wide + 2, 50 * count)  # both sides are even functions
    wanted = _cubic(x / wide, _PILLOW) / wide
    pairs = [
        _cubic(x - k, _OPENCV) + (k > 0) * _cubic(x + k, _OPENCV)
        for k in range(count + 1)
    ]
    half = np.linalg.lstsq(np.stack(pairs, axis=1), wanted)[0]
    taps = np.concatenate([half[:0:-1], half])
    return (taps / taps.sum()).astype(np.float32)


def _cubic(x, a):
    """Keys' cubic kernel: 1 at 0, 0 at other whole numbers and beyond 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def fit(image, side):
    """Shrink the image, its aspect kept, to at most side x side pixels; never enlarge.

    [H, W, 3] -> [h, w, 3].
    """
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    return resize_fast(
        image, max(1, round(scale * height)), max(1, round(scale * width))
    )


def resize_crop(
    image, size, crop=EVAL_CROP, crop_mode="center", interpolation="bicubic"
):
    """DeiT's evaluation crop, or timm's other ones. [H, W, 3] -> [*size, 3].

    size: pixels a side, or (height, width)
    crop: the short side is resized to int(size / crop) (256 for 224 and DeiT's 0.875),
    for a size that is no square the side that is shorter in proportion; then the center
    is cut out. Both round as torchvision does, a half goes to the even pixel.
    crop_mode: "center" for that; with "squash" both sides are resized so, whatever the
    aspect

    Only the middle of an image that is more than 32 times as long as wide is resized:
    the rest is cut away anyway, and 1 x 100,000 pixels would become 256 x 25,600,000.
    """
    wanted = sides(size)
    if crop_mode == "squash":
        height, width = (int(side / crop) for side in wanted)
    else:
        image = _middle(image)
        height, width = image.shape[:2]
        if height * wanted[1] <= width * wanted[0]:
            short = int(wanted[0] / crop)
            height, width = short, int(short * width / height)
        else:
            short = int(wanted[1] / crop)
            height, width = int(short * height / width), short
    top, left = round((height - wanted[0]) / 2), round((width - wanted[1]) / 2)
    resized = resize_exactly(image, height, width, interpolation)
    return resized[top : top + wanted[0], left : left + wanted[1]]


def _middle(image):
    """The image without what its long side has beyond LONGEST short sides."""
    most = LONGEST * min(image.shape[:2])
    top, left = (max(0, side - most) // 2 for side in image.shape[:2])
    return image[top : top + most, left : left + most]


def unresized(image, size, small=False):
    """The image itself.

    small: it is not resized because evaluation resizes no image of this size
    Raises InputError where it does not have this size.
    """
    actual = image.shape[:2]
    if actual != sides(size):
        why = f", as evaluation uses all of up to {SMALL}x{SMALL}" * small
        raise InputError(
            f"has {described(actual)} pixels and is used unresized{why}: "
            f"config.image_size={size} needs {described(size)}",
            field="the image",
            value=described(actual),
            hint="scale it to that first",
        )
    return image


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random crop and flip; called with (image, rng) -> [S, S, 3] uint8.

    image_size: pixels a side
    crop: "random_resized" (shares of the area in `area`), "shift" (by up to `shift`
    pixels) or "none"; the latter two need images of this size
    """

    image_size: int
    crop: str
    area: tuple[float, float]
    shift: int
    flip: bool

    fields: ClassVar = ("image",)
    random: ClassVar = True

    @property
    def shape(self):
        return sides(self.image_size)

    def __call__(self, image, rng):
        if self.crop == "random_resized":
            image = random_resized_crop(image, self.image_size, rng, self.area)
        else:
            image = unresized(image, self.image_size)
            if self.crop == "shift":
                image = shift(image, rng, self.shift)
        if self.flip:
            image = flip(image, rng)
        return image


@dataclasses.dataclass(frozen=True)
class CanvasTransform:
    """The whole image, for a crop on the device; called with (image, rng) -> [h, w, 3].

    It is shrunk where it is larger than canvas x canvas. In a batch it lies in the top
    left corner of a canvas of zeros, and "extent" is its (h, w).
    """

    canvas: int

    fields: ClassVar = ("image", "extent")
    random: ClassVar = False

    @property
    def shape(self):
        return sides(self.canvas)

    def __call__(self, image, rng=None):
        return fit(image, self.canvas)


@dataclasses.dataclass(frozen=True)
class EvalTransform(CheckedFields):
    """The fixed crop of evaluation; called with (image) -> [H, W, 3] uint8.

    image_size: pixels a side, or (height, width)
    resize: "deit", or "none" for images that have that size already
    crop, crop_mode, interpolation: as `resize_crop` has them; without `crop` it is
    DeiT's, who resize nothing up to 32 pixels
    """

    image_size: int | tuple[int, int]
    resize: str = choice("deit", RESIZES)
    crop: float | None = optional(number(above=0, most=1))
    crop_mode: str = choice("center", CROP_MODES)
    interpolation: str = choice("bicubic", INTERPOLATIONS)

    fields: ClassVar = ("image",)
    random: ClassVar = False

    @property
    def shape(self):
        return sides(self.image_size)

    @property
    def resizes(self) -> bool:
        """Whether images are resized and cropped, not taken as they are."""
        small = self.crop is None and max(sides(self.image_size)) <= SMALL
        return self.resize != "none" and not small

    @property
    def share(self) -> float:
        """Share of the resized side that is kept, where images are resized."""
        return EVAL_CROP if self.crop is None else self.crop

    @property
    def text(self) -> str:
        """What is done to an image: "resize 256 bicubic, crop 224"."""
        if not self.resizes:
            return f"images as they are, {described(self.image_size)}"
        resized = tuple(int(side / self.share) for side in self.shape)
        both = self.crop_mode == "squash" or len({*self.shape}) > 1
        size = described(resized) if both else resized[0]
        crop = described(self.shape) if len({*self.shape}) > 1 else self.shape[0]
        squashed = " squashed" * (self.crop_mode == "squash")
        return f"resize {size}{squashed} {self.interpolation}, crop {crop}"

    @property
    def facts(self) -> dict[str, object]:
        """What decides the pixels, as JSON values."""
        if not self.resizes:
            return {"image_size": list(self.shape), "resize": "none"}
        return {
            "image_size": list(self.shape),
            "resize": self.resize,
            "crop": self.share,
            "crop_mode": self.crop_mode,
            "interpolation": self.interpolation,
        }

    def note(self, sizes, total: int) -> str | None:
        """A line where images have the model's size, and are resized nevertheless.

        sizes: (height, width) of some of `total` images, or of all
        Returns None where one of them has another size, or where resizing leaves them
        as they are.
        """
        sizes = list(sizes)
        same = {*sizes} == {self.shape}
        if not self.resizes or not same or self.share == 1:
            return None
        which = f"all {total} images"
        if len(sizes) < total:
            which = f"all of {len(sizes)} images that were read"
        return (
            f"{which} have {described(self.shape)} pixels, the model's size, and yet "
            f"are enlarged and cropped ({self.text}): --resize none takes them as they "
            "are"
        )

    def __call__(self, image):
        if not self.resizes:
            return unresized(image, self.image_size, small=self.resize != "none")
        return resize_crop(
            image, self.image_size, self.share, self.crop_mode, self.interpolation
        )
