"""Decoding of image files."""

import contextlib
import functools
import io
import pathlib
import warnings

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.common.image_size import MAX_PIXELS
from imagepiece_jax.data.preprocessing import RgbPixels
from imagepiece_jax.errors import InputError

ImageFile = AnyPath | bytes  # a path, or a file's bytes

# Formats that Pillow names, but does not decode by itself: documents, films, and others
# that need a separate decoder; and IM, which Pillow drops.
UNDECODED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "IM", "MPEG", "PALM", "PDF", "WMF"}
# {EXIF orientation: transpose that makes the image upright}; 1 needs no transpose.
UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

with contextlib.suppress(ImportError):  # telephones' HEIC, where it is installed
    import pillow_heif  # pyrefly: ignore[missing-import]

    pillow_heif.register_heif_opener()

# Pillow warns at half of MAX_PIXELS, which large cameras exceed. A warnings context
# around every image is not thread-safe: other threads would see it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(InputError):
    """An image that does not decode, by the name of its file."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be read ({reason})")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # worker processes pickle it
        return UnreadableImage, (self.name, self.reason)


@functools.cache
def image_extensions() -> tuple[str, ...]:
    """Endings of image files, in lower case: of all formats that Pillow decodes."""
    formats = Image.registered_extensions()
    return tuple(end for end in formats if formats[end] not in UNDECODED_FORMATS)


def decode_image(file: ImageFile, name: str, upright: bool = True) -> RgbPixels:
    """Decode an image to RGB pixels, or raise UnreadableImage with `name`.

    upright: apply the EXIF orientation
    """
    try:
        content = file if isinstance(file, bytes) else pathlib.Path(file).read_bytes()
        pixels = _decode_plain_jpeg(content)
        if pixels is None:  # another format, or a JPEG that it leaves to Pillow
            with Image.open(io.BytesIO(content)) as image:
                return convert_to_rgb(image, upright)
        # EXIF orientations are in APP1 segments, which most files of public sets lack.
        if upright and b"\xff\xe1" in content:
            # Not Image.open, which also reads further images listed in the file.
            image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
            if (transpose := _upright_transpose(image)) is not None:
                pixels = np.asarray(Image.fromarray(pixels).transpose(transpose))
        return pixels
    except ImportError:  # a missing library, not a damaged image
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        if isinstance(error, Image.DecompressionBombError):  # a few bytes can claim so
            reason = f"more than {MAX_PIXELS:,} pixels"
        elif isinstance(error, UnidentifiedImageError):
            reason = "no known image format"
        raise UnreadableImage(name, reason) from None  # `reason` says it all


def _decode_plain_jpeg(content):
    """Decode a plain JPEG by simplejpeg; None for any other file."""
    try:
        import simplejpeg  # optional, and only for decoding
    except ImportError:
        return None
    try:
        # Half of Pillow's time for equal pixels: both call libjpeg-turbo, but Pillow
        # passes it the bytes piece by piece. Odd files (printing inks, damage, sizes
        # that would fill the memory) follow Pillow's rules.
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(content)
        if color_space in ("YCbCr", "Gray") and int(height) * int(width) <= MAX_PIXELS:
            return simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:
        pass
    return None


def _upright_transpose(image):
    """The transpose that makes an image upright; None for an upright image."""
    # Not ImageOps.exif_transpose: it also rewrites the EXIF without the orientation,
    # and fails if any other field is malformed.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return UPRIGHT_TRANSPOSES.get(orientation)
    except Exception:  # malformed metadata; the pixels are whole
        return None


def convert_to_rgb(image: Image.Image, upright: bool = True) -> RgbPixels:
    """RGB pixels of a PIL image in any mode, turned if `upright`.

    Transparency is ignored; 16-bit gray keeps its upper eight bits.
    Raises ValueError for mode I beyond 16 bits, and for mode F not clearly 0 to 255.
    """
    if upright:
        image.load()  # for some formats Pillow reads EXIF, or turns the image, only now
        if (transpose := _upright_transpose(image)) is not None:
            image = image.transpose(transpose)
    if image.mode.startswith("I;16"):  # convert() would clip at 255, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_convert_to_uint8(np.asarray(image), image.mode))
    elif image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB gives the same and a warning
    return np.asarray(image.convert("RGB"))


def _convert_to_uint8(levels, mode):
    """Mode I or F levels as uint8, by their range; ValueError for any other range."""
    lowest = levels.min()
    highest = levels.max()
    # Floats up to 16 may be an image in [0, 1] with a few highlights: refused.
    if lowest >= 0 and highest <= 255 and (mode == "I" or not 0 < highest < 16):
        return np.rint(levels).astype(np.uint8)
    if lowest >= 0 and highest < 2**16 and mode == "I":
        return (levels >> 8).astype(np.uint8)  # the upper eight bits of sixteen
    raise ValueError(f"mode {mode!r} has {lowest:g} to {highest:g}, not 0 to 255")
