"""What of an image is stored when a data set is prepared: its own bytes, or others?

JPEG files of colour or grey images stay as they are, byte for byte. What else may be
among ImageNet's files (a PNG named .JPEG, 22 JPEGs of printing inks) becomes an RGB
JPEG, as in TFDS's own preparation, so that every decoder of JPEG reads the whole set.
"""

import io

from PIL import Image

from imagepiece_jax.data.decode import UnreadableImage, decode

# Of photographs with short side 256 this keeps 36-38 dB at 30 KB an image.
QUALITY = 92
QUALITY_UNRESIZED = 100  # where only the format changes
LONGEST_JPEG = 65_500  # pixels a side, by libjpeg


def stored(data, name, short_side=0):
    """The bytes to store for the encoded image `data`; UnreadableImage.

    Every image is decoded, which shows the damaged ones; one that would have to become
    a JPEG, but is longer than a JPEG can be, counts as one of them. Where its short
    side exceeds `short_side` pixels (0: never) it is resized to that, bicubic and
    antialiased, the long side rounded down as in evaluation, and encoded with JPEG
    quality 92.
    """
    pixels = decode(io.BytesIO(data), name)
    height, width = pixels.shape[:2]
    if short_side and min(height, width) > short_side:
        return _jpeg(_shrunk(pixels, short_side), QUALITY)
    with Image.open(io.BytesIO(data)) as header:
        if header.format in ("JPEG", "MPO") and header.mode in ("RGB", "L"):
            return data
    if max(height, width) > LONGEST_JPEG:
        raise UnreadableImage(
            name, f"{width}x{height} pixels, more than a JPEG's {LONGEST_JPEG:,}"
        )
    return _jpeg(Image.fromarray(pixels), QUALITY_UNRESIZED)


def _shrunk(pixels, short_side):
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = (int(short_side * width / short), int(short_side * height / short))
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def _jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
