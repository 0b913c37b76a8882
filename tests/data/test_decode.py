"""Decoding against Pillow, and the record of files that do not decode."""

import io
import logging
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.decode import Unreadable, UnreadableImage, decode, rgb
from imagepiece_jax.errors import InputError


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def plain(mode, color):
    return Image.new(mode, (6, 4), color)


@pytest.mark.parametrize(
    "image, format, expected",
    [
        (plain("RGB", (200, 30, 90)), "JPEG", (200, 30, 90)),
        (plain("L", 77), "JPEG", (77, 77, 77)),
        (plain("CMYK", (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (plain("RGB", (200, 30, 90)), "PNG", (200, 30, 90)),
        (plain("RGBA", (200, 30, 90, 0)), "PNG", (200, 30, 90)),
        (plain("LA", (50, 128)), "PNG", (50, 50, 50)),
        (plain("1", 1), "PNG", (255, 255, 255)),
        (plain("I;16", 0x4D10), "PNG", (0x4D, 0x4D, 0x4D)),
    ],
)
def test_every_color_mode_becomes_rgb(image, format, expected):
    pixels = decode(encoded(image, format), "x")
    assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - np.array(expected))
    assert difference.max() <= 3, pixels[0, 0]  # JPEG rounds


PLAIN = [
    ("RGB", {}),
    ("RGB", {"subsampling": 0, "quality": 100}),
    ("RGB", {"progressive": True}),
    ("RGB", {"keep_rgb": True}),
    ("L", {}),
    ("CMYK", {}),
]


@pytest.mark.parametrize("mode, options", PLAIN)
def test_jpeg_pixels_are_pillow_s(mode, options):
    noise = np.random.default_rng(0).integers(0, 256, (45, 67, 3), np.uint8)
    image = Image.fromarray(noise).resize((670, 450)).convert(mode)
    file = encoded(image, "JPEG", **options)
    truth = np.asarray(Image.open(file).convert("RGB"))
    file.seek(0)
    np.testing.assert_array_equal(decode(file, "x"), truth)


def test_bytes_after_the_end_of_a_jpeg_are_ignored():
    file = encoded(plain("RGB", (200, 30, 90)), "JPEG")
    whole = decode(file, "x")
    longer = io.BytesIO(file.getvalue() + b"and so on")
    np.testing.assert_array_equal(decode(longer, "x"), whole)


def test_a_header_that_would_fill_the_memory_is_an_unreadable_image():
    data = bytearray(encoded(plain("RGB", (1, 2, 3)), "JPEG").getvalue())
    size = data.index(b"\xff\xc0") + 5  # start of frame: length, precision, then it
    data[size : size + 4] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500 pixels
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(io.BytesIO(data), "bomb.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 9_000), (1, 90_000_000)])
def test_a_few_bytes_that_are_many_pixels_are_an_unreadable_image(size):
    """A PNG that says its size in the header, and Pillow alone only warns of."""
    data = bytearray(encoded(plain("L", 7), "PNG").getvalue())
    header = b"IHDR" + struct.pack(">II", *size) + bytes(data[24:29])
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    message = f"{size[0]}x{size[1]} pixels, more than 89,478,485"
    with pytest.raises(UnreadableImage, match=message):
        decode(io.BytesIO(data), "bomb.png")


def test_palette_with_transparency_becomes_rgb_without_a_warning():
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    file = encoded(image, "PNG", transparency=b"\x00\x80")
    assert decode(file, "x")[2, 3].tolist() == [10, 200, 30]


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    file = encoded(plain("RGB", (1, 2, 3)), "JPEG", exif=exif)
    assert decode(file, "x").shape == (4, 6, 3)


# Where each corner of an image, numbered row by row, is stored for an orientation.
STORED = {1: "1234", 2: "2143", 3: "4321", 4: "3412"}
STORED |= {5: "1324", 6: "2413", 7: "4231", 8: "3142"}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation, stored", STORED.items())
def test_upright_is_as_a_viewer_shows_it(format, orientation, stored):
    corners = np.uint8([[int(gray) * 60] for gray in stored]).reshape(2, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(corners.repeat(16, 0).repeat(16, 1)).convert("RGB")
    lossless = {"lossless": True} if format == "WEBP" else {}
    file = encoded(image, format, exif=exif, **lossless)
    shown = decode(file, "x", upright=True)[8::16, 8::16, 0].reshape(-1)
    assert np.abs(shown - np.float64([60, 120, 180, 240])).max() < 3


GRAY = np.uint16([[0, 1000], [40000, 65535]])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GRAY),
        Image.frombytes("I;16B", (2, 2), GRAY.astype(">u2").tobytes()),
        Image.fromarray(GRAY.astype(np.int32)),
        Image.fromarray(np.float32(GRAY >> 8)),
        Image.fromarray(np.int32(GRAY >> 8)),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("P"),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("LA"),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("LA").convert("La"),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("RGBA").convert("RGBa"),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("CMYK"),
        Image.fromarray(np.uint8(GRAY >> 8)).convert("YCbCr"),
    ],
    ids=lambda image: image.mode,
)
def test_every_mode_of_pillow_has_its_eight_bits(image):
    pixels = rgb(image)
    assert pixels.shape == (2, 2, 3) and pixels.dtype == np.uint8
    assert pixels.tolist() == np.repeat((GRAY >> 8)[..., None], 3, axis=2).tolist()


@pytest.mark.parametrize(
    "values",
    [
        [-1.0, 200.0],
        [0.0, 1.0],
        [0.5, 1.5],
        [0.0, 1e5],
        [0.0, np.nan],
        [0, 70000],
        [-5, 0],
    ],
)
def test_numbers_without_a_known_range_are_refused(values):
    """Clipped to 0 .. 255 they would be black or white."""
    dtype = np.int32 if isinstance(values[0], int) else np.float32
    with pytest.raises(ValueError, match="values of its mode '[IF]' are .* to "):
        rgb(Image.fromarray(np.array([values], dtype)))


def test_a_float_file_without_a_known_range_is_unreadable():
    file = encoded(Image.fromarray(np.float32([[0, 0.5]])), "TIFF")
    with pytest.raises(UnreadableImage, match="allowed: 0 to 255"):
        decode(file, "x.tif")


def test_damaged_bytes_are_an_unreadable_image():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG").getvalue()
    for data in (b"", b"no image at all", whole[: len(whole) // 2], whole[:-2]):
        with pytest.raises(UnreadableImage) as caught:
            decode(io.BytesIO(data), "cat.jpg")
        assert caught.value.place == "cat.jpg" and caught.value.value


def test_a_file_that_vanished_is_an_unreadable_image(tmp_path):
    with pytest.raises(UnreadableImage, match="No such file"):
        decode(str(tmp_path / "gone.jpg"), "gone.jpg")


def test_unreadable_image_survives_pickling():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "torn")))
    assert (error.place, error.value) == ("a.jpg", "torn")


def test_record_names_a_file_once(caplog):
    record = Unreadable()
    with caplog.at_level(logging.WARNING, "imagepiece_jax.data"):
        for _ in range(3):
            record.record([UnreadableImage("a.jpg", "torn")], 1000, "left out")
    assert [entry.getMessage() for entry in caplog.records] == [
        "a.jpg cannot be read (torn): left out"
    ]
    assert record.count == 1 and record.names == {"a.jpg": "torn"}


def test_one_per_cent_is_allowed_and_one_more_is_not():
    record = Unreadable()
    for index in range(3):
        record.record([UnreadableImage(f"{index}.jpg", "torn")], 300, "left out")
    with pytest.raises(InputError, match=r"^0\.jpg .*\(torn\): 4 of 300 .* 1%"):
        record.record([UnreadableImage("3.jpg", "torn")], 300, "left out")


def test_nineteen_in_a_row_are_allowed_and_twenty_are_not():
    row = [UnreadableImage(f"{index}.jpg", "torn") for index in range(20)]
    record = Unreadable()
    record.record(row[:19], 10_000, "left out")
    with pytest.raises(
        InputError, match=r"^0\.jpg .*, as the first of 20 images in a row"
    ):
        record.record(row, 10_000, "left out")
