"""How do the bytes of an image become pixels, and what happens where they do not?

One damaged file must not end a long run, many of them must: `decode` raises
`UnreadableImage`, the loader goes on without it, `Unreadable` keeps the record.
"""

import io
import logging

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagepiece_jax.errors import InputError

MOST_IN_A_ROW = 20  # so many unreadable images one after the other stop the run
MOST_SHARE = 0.01  # and so does more than this share of a source
# In one image: 270 MB decoded, and a few times as much on the way. From here on Pillow
# warns of a decompression bomb; it refuses only twice as many.
MOST_PIXELS = 89_478_485

log = logging.getLogger("imagepiece_jax.data")


class UnreadableImage(Exception):
    """The bytes of one image do not decode. `name`: its file, `reason`: one phrase."""

    def __init__(self, name, reason):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason


def decode(file, name):
    """RGB pixels [H, W, 3] uint8 of an encoded image; UnreadableImage.

    `file` is a path or an open binary file. Transparency is ignored, 16-bit grey keeps
    its upper eight bits, and EXIF orientation is not applied (as in torchvision, so
    that published accuracies compare). An image of more than MOST_PIXELS, which a few
    bytes can say they are, is not decoded.
    """
    try:
        data = _bytes(file)
        pixels = _fast_jpeg(data)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels, more than {MOST_PIXELS:,}"
                )
            return np.asarray(_to_rgb(image))
    except ImportError:  # of a library, not damage of this image
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(name, "no known image format") from error
    except Exception as error:  # Pillow raises nearly anything on damaged bytes
        raise UnreadableImage(name, str(error) or repr(error)) from error


def _bytes(file):
    if hasattr(file, "read"):
        return file.read()
    with open(file, "rb") as opened:
        return opened.read()


def _fast_jpeg(data):
    """Pixels of a plain JPEG, the same as Pillow's in half the time; None for others.

    Both call libjpeg-turbo, but Pillow hands it the bytes piece by piece. What is odd
    (printing inks, damage, sizes that would fill the memory) is left to Pillow's rules.
    """
    import simplejpeg  # only where images are decoded: others do without it

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > MOST_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _to_rgb(image):
    if image.mode.startswith("I;16"):  # convert() would clip at 255, not scale
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB gives the same and a warning
    return image.convert("RGB")


class Unreadable:
    """The damaged files of one source: each is logged once, and too many stop the run.

    `names` maps the files met so far to the reason, in the order in which they were
    met; `count` is their number.
    """

    def __init__(self):
        self.names = {}

    @property
    def count(self):
        return len(self.names)

    def record(self, row, total, consequence):
        """Note a `row` of UnreadableImage errors with no readable image between them.

        `total` is the source's length, `consequence` says in the log what happens
        instead. Raises InputError for 20 in a row and for more than 1 % of `total`.
        """
        for error in row:
            if error.name not in self.names:
                self.names[error.name] = error.reason
                log.warning(
                    "%s cannot be read (%s): %s", error.name, error.reason, consequence
                )
        if len(row) >= MOST_IN_A_ROW:
            raise InputError(
                f"{len(row)} images in a row cannot be read, the first is "
                f"{row[0].name} ({row[0].reason}): allowed are fewer than "
                f"{MOST_IN_A_ROW}"
            )
        if self.count > MOST_SHARE * total:
            first = next(iter(self.names))
            raise InputError(
                f"{self.count} of {total} images cannot be read, the first is {first} "
                f"({self.names[first]}): allowed is {MOST_SHARE:.0%}"
            )
