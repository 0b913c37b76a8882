"""Pictures with tokens as outlined areas, and pages of pictures.

`source` is a reduction's provenance map: per patch, row by row, its token's slot. A
negative slot is a dropped patch.
"""

import itertools
import os
import pathlib
import textwrap

import numpy as np

from imagepiece_jax.common.plotting import DOTS_PER_INCH, new_figure, save_figure

# Blend shares: the group's mean color in a kept patch; black or white in a single
# patch's outline; stripes in a dropped patch; a value's color.
_MEAN = 0.55
_PALE = 0.3
_FADED = 0.8
_VALUE = 0.75
# Stripes, because an even tone looks like a gray patch in a gray image.
_STRIPES = np.array([[244, 244, 246], [208, 211, 218]], np.float32)
_STRIPE_WIDTH = 4

# The page, in pixels.
_PANEL = 224  # least side of a picture
_MARGIN = 20
_GAP = 16
_LABEL = 58
_LINE = 22
_FONT_SIZE = 11
_LETTER = 8.2
CAPTION = (
    "Each outlined area is one token, filled with the mean color of its patches. "
    "Patches merged into one token share the color of their outlines, wherever they "
    "lie; other tokens may have a similar color. Striped patches were dropped."
)


def draw_groups(image: np.ndarray, source: np.ndarray, grid) -> np.ndarray:
    """Draw tokens on the image. -> uint8 [H, W, 3].

    A kept patch is blended with its group's mean color; a dropped patch fades into
    stripes. Outlines are two pixels wide and bright around merged patches, one pixel
    wide and pale around a single patch.

    image: uint8 [H, W, 3]
    source: int [h * w]
    grid: (h, w), which divides (H, W)
    """
    image = np.asarray(image)
    source = np.asarray(source)
    slots = _to_pixels(source.reshape(grid), image)
    hues = _to_pixels(outline_colors(source, grid), image)
    means = _to_pixels(mean_colors(image, source, grid), image)
    pixels = image.astype(np.float32)
    present = (slots >= 0)[..., None]
    drawn = np.where(present, _blend(pixels, means, _MEAN), _fade(pixels))
    merged = (_same_token(source).sum(axis=1) > 1).reshape(grid)
    merged = _to_pixels(merged, image)[..., None]
    pale = present & ~merged & _border(slots, 1)[..., None]
    contrast = np.where(drawn.mean(axis=-1, keepdims=True) < 128, 255, 0)
    drawn = np.where(pale, _blend(drawn, contrast, _PALE), drawn)
    bright = present & merged & _border(slots, 2)[..., None]
    return np.rint(np.where(bright, hues, drawn)).astype(np.uint8)


def outline_colors(source, grid) -> np.ndarray:
    """Outline color of every patch's token, float [h, w, 3] from 0 to 255."""
    from matplotlib import colors

    # The hue follows the token's first patch, so it stays when the token absorbs
    # patches. Hues of neighboring places are a sixth of the circle or more apart.
    row, column = np.divmod(_first_patch(source).reshape(grid), grid[1])
    hues = (0.414 * row + 0.236 * column) % 1.0
    hsv = np.stack([hues, np.full(grid, 0.85), np.ones(grid)], axis=-1)
    return 255 * colors.hsv_to_rgb(hsv)


def mean_colors(image, source, grid):
    """Mean color of every patch's token. [H, W, 3], [h * w] -> float32 [h, w, 3]."""
    height, width = image.shape[:2]
    h, w = grid
    patches = image.reshape(h, height // h, w, width // w, 3).astype(np.float64)
    same_token = _same_token(source)
    sums = same_token @ patches.mean(axis=(1, 3)).reshape(-1, 3)
    means = sums / same_token.sum(axis=1, keepdims=True)
    return means.reshape(h, w, 3).astype(np.float32)


def draw_values(image, values, grid):
    """Draw a value per patch over the gray image. uint8 [H, W, 3] -> same shape.

    values: float [h * w] in 0..1; NaN: a dropped patch, which fades into stripes
    """
    from matplotlib import colormaps

    image = np.asarray(image)
    values = np.asarray(values).reshape(grid)
    dropped = _to_pixels(np.isnan(values), image)[..., None]
    colors = colormaps["viridis"](np.nan_to_num(values), bytes=True)
    painted = _to_pixels(colors[..., :3], image)
    gray = image.astype(np.float32).mean(axis=-1, keepdims=True)
    drawn = np.where(dropped, _fade(image), _blend(gray, painted, _VALUE))
    return np.rint(drawn).astype(np.uint8)


def enlarged(image):
    """Enlarge an image [H, W, 3] by a whole factor to _PANEL rows or more."""
    scale = max(1, -(-_PANEL // image.shape[0]))
    return image.repeat(scale, 0).repeat(scale, 1)


def panel_page(path: str | os.PathLike, rows, caption: str):
    """Write one PNG of pictures in rows.

    rows: lists of (title, uint8 [H, W, 3], note) of one size; None: an empty place
    caption: text below the pictures
    """
    _, first_picture, _ = next(filter(None, itertools.chain(*rows)))
    height, width = first_picture.shape[:2]
    columns = max(map(len, rows))
    page_width = 2 * _MARGIN + columns * (width + _GAP) - _GAP
    caption = textwrap.wrap(caption, int((page_width - 2 * _MARGIN) / _LETTER))
    below = 2 * _MARGIN + len(caption) * _LINE
    page_height = len(rows) * (height + _LABEL) + below

    figure = new_figure(page_width / DOTS_PER_INCH, page_height / DOTS_PER_INCH)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            if panel is None:
                continue
            title, pixels, note = panel
            left = _MARGIN + column * (width + _GAP)
            bottom = page_height - (row + 1) * (height + _LABEL)
            corner = (left / page_width, bottom / page_height)
            size = (width / page_width, height / page_height)
            axes = figure.add_axes((*corner, *size))
            axes.imshow(pixels, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            title = title.encode(errors="backslashreplace").decode()  # may not be UTF-8
            title = textwrap.shorten(title, int(width / _LETTER), placeholder="…")
            axes.set_title(
                f"{title}\n{note}",
                fontsize=_FONT_SIZE,
                loc="left",
                pad=5,
                parse_math=False,  # "$" in a file name is a "$"
            )
    figure.text(
        _MARGIN / page_width,
        (below - _MARGIN) / page_height,
        "\n".join(caption),
        fontsize=_FONT_SIZE,
        verticalalignment="top",
    )
    save_figure(figure, pathlib.Path(path))


def _same_token(source):
    """Whether patches share a token; a dropped patch is alone. -> bool [n0, n0]."""
    kept = (source[:, None] == source) & (source >= 0)
    return kept | np.eye(len(source), dtype=bool)


def _first_patch(source):
    """First patch of every patch's token. [n0] -> int [n0]."""
    return _same_token(source).argmax(axis=1)


def _blend(below, above, share):
    return (1 - share) * below + share * above


def _fade(pixels):
    """Stripes over the faintly visible gray image."""
    y, x = np.indices(pixels.shape[:2])
    stripes = _STRIPES[(x + y) // _STRIPE_WIDTH % 2]
    return _blend(pixels.mean(axis=-1, keepdims=True), stripes, _FADED)


def _to_pixels(values, image):
    """Value of every pixel's patch. [h, w, ...] -> [H, W, ...]."""
    for axis in (0, 1):
        values = values.repeat(image.shape[axis] // values.shape[axis], axis)
    return values


def _border(slots, width):
    """Pixels at most `width` from another group in their row or column."""
    border = np.zeros(slots.shape, bool)
    # A transpose turns columns into rows, in the same memory.
    for edges, values in ((border, slots), (border.T, slots.T)):
        for distance in range(1, width + 1):
            differ = values[distance:] != values[:-distance]
            edges[distance:] |= differ
            edges[:-distance] |= differ
    return border
