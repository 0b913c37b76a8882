"""Decoding of image files, and the record of damaged ones.

One damaged file must not end a long run, many of them must: `decode` raises
`UnreadableImage`, the loader continues without it, `record_unreadable` counts them.
"""

import io
import logging
import warnings

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from imagepiece_jax.common.files import open_regular
from imagepiece_jax.common.image_size import MAX_PIXELS
from imagepiece_jax.errors import InputError

# Of every format that Pillow itself decodes, those of public sets first. Other files
# of a folder are not taken for images: documents, which Ghostscript runs (.eps), films,
# formats that need a decoder of their own (.wmf, .h5), and what Pillow drops (.im).
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jfif", ".jpe", ".mpo", ".apng"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".dib"),
    *(".blp", ".bw", ".cur", ".dcx", ".dds", ".fit", ".fits", ".flc", ".fli", ".ftc"),
    *(".ftu", ".gbr", ".icb", ".icns", ".ico", ".iim", ".msp", ".pcd", ".pcx"),
    *(".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".vda", ".vst"),
    *(".xbm", ".xpm"),
)
MAX_IN_A_ROW = 20  # this many unreadable images in a row stop the run
MAX_SHARE = 0.01  # and so does more than this share of a source
# What an EXIF orientation says to do before the image is looked at; 1: nothing.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]  # width is height
NUMBER_BYTES = {1: 1, 3: 2, 4: 4}  # of EXIF's types byte, short and long

log = logging.getLogger("imagepiece_jax.data")
# Pillow warns of half as many pixels, which large cameras have. A context around each
# image, which other threads would see, could not be left safely.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(InputError):
    """One image that does not decode.

    name: of its file
    reason: why
    """

    def __init__(self, name, reason):
        super().__init__(f"{name} cannot be read ({reason})")
        self.name = name
        self.reason = reason

    def __reduce__(self):  # how another process gets it
        return UnreadableImage, (self.name, self.reason)


def decode(file, name: str, upright: bool = True) -> np.ndarray:
    """RGB pixels of an encoded image. See `rgb` for other modes.

    file: a path, or the bytes of a file
    name: of the file, for errors
    upright: apply the EXIF orientation
    Returns [H, W, 3] uint8.
    Raises UnreadableImage, also for more than MAX_PIXELS, which a few bytes can claim
    to be.
    """
    try:
        with _opened(file) as stream:
            data = stream.read()
        pixels = _fast_jpeg(data)
        # Orientations stand in segments of type APP1, which most files of sets lack.
        if pixels is not None and upright and b"\xff\xe1" in data:
            pixels = _upright_jpeg(pixels, data)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(data)) as image:
            return rgb(image, upright)
    except ImportError:  # of a library, not damage of this image
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        if isinstance(error, Image.DecompressionBombError):
            reason = f"more than {MAX_PIXELS:,} pixels"
        elif isinstance(error, UnidentifiedImageError):
            reason = "no known image format"
        raise UnreadableImage(name, reason) from error


def size(file, upright: bool = True) -> tuple[int, int] | None:
    """(height, width) of an image by its header; None if unreadable. See `decode`."""
    try:
        with _opened(file) as stream, Image.open(stream) as image:
            # Pillow itself turns TIFF, and its size.
            if upright and image.format != "TIFF" and _turn(image) in SIDEWAYS:
                return image.width, image.height
            return image.height, image.width
    except Exception:  # as in `decode`, which reports it
        return None


def _opened(file):
    """The binary file at a path, or of bytes."""
    return io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)


def _fast_jpeg(data):
    """Pixels of a plain JPEG, the same as Pillow's in half the time; None for others.

    Both call libjpeg-turbo, but Pillow passes it the bytes piece by piece. What is odd
    (printing inks, damage, sizes that would fill the memory) is left to Pillow's rules,
    and everything where simplejpeg is not installed.
    """
    try:
        import simplejpeg  # only where images are decoded
    except ImportError:
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def _upright_jpeg(pixels, data):
    """The pixels of the JPEG file `data`, turned by its EXIF orientation."""
    try:  # not Image.open, which also reads other images that a file may list
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception:  # its pixels have been read
        return pixels
    turn = _turn(image)
    if turn is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(turn))


def _turn(image):
    """The one of `TURNS` that makes `image` upright, or None.

    ImageOps.exif_transpose also writes the EXIF anew, without the orientation, and
    fails where any other field is malformed.
    """
    orientation = _orientation(image.info.get("exif", b""))
    if orientation is None:
        try:  # where a PNG or XMP has it
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # of malformed ones; the pixels are whole
            return None
    return TURNS.get(orientation)


def _orientation(exif):
    """The orientation that a block of EXIF states; None where it states none.

    A field of EXIF has 12 bytes: its number, its type, a count, and the value or the
    place of the value in the block. Some programs cut the block, so that values are
    missing. Pillow stops at the first of these: of 4,000 random blocks it missed 266
    orientations.
    """
    content = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "little", b"MM": "big"}.get(content[:2])
    if order is None:
        return None

    def number(offset, size):
        return int.from_bytes(content[offset : offset + size], order)

    table = number(4, 4)  # offset of the number of fields, which the fields follow
    end = table + 2 + 12 * number(table, 2)
    for offset in range(table + 2, min(end, len(content)), 12):
        size = NUMBER_BYTES.get(number(offset + 2, 2))
        single = number(offset + 4, 4) == 1  # several numbers may lie elsewhere
        if number(offset, 2) == ExifTags.Base.Orientation and size and single:
            return number(offset + 8, size)
    return None


def rgb(image: Image.Image, upright: bool = True) -> np.ndarray:
    """RGB pixels [H, W, 3] uint8 of a PIL image of any mode, turned if `upright`.

    Transparency is ignored, 16-bit gray keeps its upper eight bits.
    Raises ValueError for numbers (modes I and F) whose range is neither eight bits nor
    sixteen.
    """
    if upright:
        image.load()  # of some formats only then has Pillow the EXIF, or turned it
        turn = _turn(image)
        if turn is not None:
            image = image.transpose(turn)
    if image.mode.startswith("I;16"):  # convert() would clip at 255, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    elif image.mode == "La":
        image = image.convert("LA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB gives the same and a warning
    return np.asarray(image.convert("RGB"))


def _eight_bits(values, mode):
    """Numbers of 32 bits as uint8: those of eight bits, or the upper eight of sixteen.

    Their range shows which they are. Floats up to 16 may be of images from 0 to 1, with
    a few highlights above, and are refused.

    mode: Pillow's, "I" for integers or "F" for floats
    Raises ValueError for another range.
    """
    low = values.min()
    high = values.max()
    if low >= 0 and high <= 255 and (mode == "I" or not 0 < high < 16):
        return np.rint(values).astype(np.uint8)
    if low >= 0 and high < 2**16 and mode == "I":
        return (values >> 8).astype(np.uint8)
    allowed = "0 to 255, or 16 bits" if mode == "I" else "0 to 255"
    raise ValueError(
        f"the values of its mode {mode!r} are {low:g} to {high:g}; allowed: {allowed}"
    )


def record_unreadable(damaged, in_a_row, total, consequence):
    """Note UnreadableImage errors: each file is logged once, too many stop the run.

    damaged: dict of the files met so far, in order, to the reason
    in_a_row: errors with no readable image between them
    total: length of the source
    consequence: for the log, what happens instead
    """
    for error in in_a_row:
        if error.name not in damaged:
            damaged[error.name] = error.reason
            log.warning("%s: %s", error, consequence)
    if len(in_a_row) >= MAX_IN_A_ROW:
        raise InputError(
            f"{in_a_row[0]}, as the first of {len(in_a_row)} images in a row"
        )
    count = len(damaged)
    if count > MAX_SHARE * total:
        file, reason = next(iter(damaged.items()))
        raise InputError(
            f"{count} of {total} images cannot be read, more than {MAX_SHARE:.0%}; the "
            f"first is {file} ({reason})"
        )
