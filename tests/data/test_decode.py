import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.decode import UnreadableImage, convert_to_rgb, decode_image

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "kind", ["RGB", "RGB progressive", "RGB keep_rgb", "L", "CMYK"]
)
def test_jpeg_pixels_equal_pillows(kind):
    mode, *options = kind.split()
    image = Image.fromarray(NOISE).resize((670, 450)).convert(mode)
    file = encode(image, "JPEG", **dict.fromkeys(options, True))
    truth = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(file, "x"), truth)


# {orientation: the stored order of corners, which are numbered row by row}
STORED = {1: "1234", 2: "2143", 3: "4321", 4: "3412"}
STORED |= {5: "1324", 6: "2413", 7: "4231", 8: "3142"}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation, stored", STORED.items())
def test_upright_pixels_are_in_a_viewers_order(format, orientation, stored):
    corners = np.uint8([[int(gray) * 60] for gray in stored]).reshape(2, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(corners.repeat(16, 0).repeat(16, 1)).convert("RGB")
    lossless = {"lossless": True} if format == "WEBP" else {}
    file = encode(image, format, exif=exif, **lossless)
    as_stored = "1234" if format == "TIFF" else stored  # Pillow itself turns TIFF
    for upright, corners in ((False, as_stored), (True, "1234")):
        pixels = decode_image(file, "x", upright)[8::16, 8::16, 0].reshape(-1)
        assert np.abs(pixels - 60.0 * np.array([*map(int, corners)])).max() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_metadata_turn_nothing():
    image = Image.new("RGB", (24, 16))
    for block in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", bytes(40)):
        file = encode(image, "JPEG", exif=block)
        assert decode_image(file, "x").shape == (16, 24, 3)
        assert convert_to_rgb(Image.open(io.BytesIO(file))).shape == (16, 24, 3)


GRAY = np.uint16([[0, 1000], [40000, 65535]])
BYTES = Image.fromarray(np.uint8(GRAY >> 8))
PALETTED = BYTES.convert("P")
PALETTED.info["transparency"] = b"\x00\x80"  # Pillow warns when it becomes RGB
TRANSPARENT = BYTES.convert("RGBA")
TRANSPARENT.putalpha(0)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GRAY),
        Image.frombytes("I;16B", (2, 2), GRAY.astype(">u2").tobytes()),
        Image.fromarray(GRAY.astype(np.int32)),
        Image.fromarray(np.float32(GRAY >> 8)),
        Image.fromarray(np.int32(GRAY >> 8)),
        BYTES.convert("LA").convert("La"),
        PALETTED,
        TRANSPARENT,
        *map(BYTES.convert, ("P", "LA", "CMYK", "YCbCr")),
    ],
    ids=lambda image: image.mode,
)
def test_every_pillow_mode_becomes_eight_bits(image):
    pixels = convert_to_rgb(image)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == np.repeat((GRAY >> 8)[..., None], 3, axis=2).tolist()


@pytest.mark.parametrize(
    "values", [[-1.0, 200.0], [0.0, 1.0], [0.0, np.nan], [0, 70000], [-5, 0]]
)
def test_numbers_without_a_known_range_are_refused(values):
    """Clipping to 0 .. 255 would make them black or white."""
    dtype = np.int32 if isinstance(values[0], int) else np.float32
    with pytest.raises(ValueError, match="mode '[IF]' has .* to .*, not 0 to 255"):
        convert_to_rgb(Image.fromarray(np.array([values], dtype)))


def large_png(width, height):
    data = bytearray(encode(Image.new("L", (6, 4)), "PNG"))
    header = b"IHDR" + struct.pack(">II", width, height) + bytes(data[24:29])
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    return bytes(data)


JPEG = encode(Image.fromarray(NOISE), "JPEG")


def test_damaged_or_too_large_images_are_unreadable(tmp_path):
    files_and_reasons = [
        (b"no image at all", "no known image format"),
        (JPEG[:-2], "truncated"),
        (large_png(20_000, 9_000), "178,956,970 pixels"),
        (str(tmp_path / "gone.jpg"), "No such file"),
    ]
    for file, reason in files_and_reasons:
        with pytest.raises(UnreadableImage) as caught:
            decode_image(file, "cat.jpg")
        assert caught.value.name == "cat.jpg"
        assert reason in caught.value.reason
