"""Stored bytes: an image's own wherever a JPEG decoder can read them."""

import io

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.decode import UnreadableImage
from tests.tars import encoded, photo
from tools.imagenet.writer import encode

simplejpeg = pytest.importorskip("simplejpeg")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_keep_their_bytes(mode, options):
    data = encoded(photo(0).convert(mode), **options)
    assert encode(data, "a.JPEG") is data
    assert encode(data, "a.JPEG", short_side=48) is data  # 60 x 48: not larger


@pytest.mark.parametrize(
    "data",
    [
        encoded(photo(1), "PNG"),
        encoded(photo(1).convert("CMYK"), quality=100, subsampling=0),
        encoded(photo(1).convert("CMYK"), "TIFF"),
    ],
    ids=["PNG", "CMYK JPEG", "TIFF"],
)
def test_other_formats_become_an_rgb_jpeg(data):
    new = encode(data, "a.JPEG")
    assert simplejpeg.decode_jpeg_header(new)[:3] == (48, 60, "YCbCr")
    error = np.abs(simplejpeg.decode_jpeg(new) - np.asarray(photo(1)).astype(float))
    assert error.mean() < 2  # colors are halved in resolution, no more


@pytest.mark.parametrize(
    "size, new_size",
    # torchvision's Resize(64): the long side is truncated
    [((200, 99), (129, 64)), ((99, 200), (64, 129)), ((65, 65), (64, 64))],
)
def test_larger_images_are_shrunk_as_pillow_does(size, new_size):
    image = photo(2, *size)
    new = encode(encoded(image, quality=100, subsampling=0), "a.JPEG", short_side=64)
    truth = image.resize(new_size, Image.Resampling.BICUBIC)
    assert Image.open(io.BytesIO(new)).size == new_size
    assert np.abs(pixels(new) - np.asarray(truth)).mean() < 2
    assert new == encode(encoded(image, quality=100, subsampling=0), "b", 64)


def test_shrinking_filters_what_is_too_fine():
    """Stripes of one pixel become gray; without antialiasing they would stay."""
    stripes = np.zeros((128, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    new = encode(encoded(Image.fromarray(stripes), "PNG"), "a.png", short_side=64)
    assert np.ptp(pixels(new)[:, 8:-8]) < 16


def test_damaged_images_are_found_although_bytes_are_kept():
    data = encoded(photo(3, 200, 200))
    for bad in (data[:-200], b"", b"not an image"):
        with pytest.raises(UnreadableImage, match="a.JPEG"):
            encode(bad, "a.JPEG")


def test_an_image_longer_than_a_jpeg_can_be_is_unreadable():
    data = encoded(Image.new("L", (1, 70_000)), "PNG")
    for short_side in (0, 64):
        with pytest.raises(UnreadableImage, match="1x70000 pixels, more than a JPEG's"):
            encode(data, "a.JPEG", short_side)
