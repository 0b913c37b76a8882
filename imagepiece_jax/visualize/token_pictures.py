"""Pictures with tokens as outlined areas, and pages of pictures.

`token_of_patch` is the token of every patch, row by row; negative: a dropped patch.
"""

import os
import pathlib
import textwrap
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from imagepiece_jax.common.plotting import DOTS_PER_INCH, new_figure, save_figure
from imagepiece_jax.data.preprocessing import RgbPixels

Grid = tuple[int, int]  # (height, width) in patches; divides the image's sides
TokenMap = Int[np.ndarray, " patches"]
PatchColors = Float[np.ndarray, "rows columns 3"]
Panel = tuple[str, RgbPixels, str]  # (title, picture, note)

# Blend shares: the group's mean color in a kept patch; black or white in a single
# patch's outline; stripes in a dropped patch; a value's color.
_MEAN_SHARE = 0.55
_PALE_SHARE = 0.3
_FADED_SHARE = 0.8
_VALUE_SHARE = 0.75
# Stripes, because an even tone looks like a gray patch in a gray image.
_STRIPE_COLORS = np.array([[244, 244, 246], [208, 211, 218]], np.float32)
_STRIPE_WIDTH = 4

# The page, in pixels.
LEAST_PANEL = 224  # the fewest rows of a picture
_PAGE_MARGIN = 20
_PANEL_GAP = 16
_TITLE_HEIGHT = 58
_LINE_HEIGHT = 22
_FONT_SIZE = 11
_LETTER_WIDTH = 8.2
TOKEN_CAPTION = (
    "Each outlined area is one token, filled with the mean color of its patches. "
    "Patches merged into one token share the color of their outlines, wherever they "
    "lie; other tokens may have a similar color. Striped patches were dropped."
)


def paint_tokens(image: RgbPixels, token_of_patch: TokenMap, grid: Grid) -> RgbPixels:
    """Paint tokens on the image.

    A kept patch is blended with its token's mean color; a dropped patch fades into
    stripes. Outlines are two pixels wide and bright around merged patches, one pixel
    wide and pale around a single patch.
    """
    image = np.asarray(image)
    token_of_patch = np.asarray(token_of_patch)
    token_of_pixel = _expand_to_pixels(token_of_patch.reshape(grid), image)
    bright_color = _expand_to_pixels(outline_colors(token_of_patch, grid), image)
    mean_color = _expand_to_pixels(mean_colors(image, token_of_patch, grid), image)
    pixels = image.astype(np.float32)
    # [..., None] is an axis for the colors.
    is_kept = (token_of_pixel >= 0)[..., None]
    colored_pixels = _mix_colors(pixels, mean_color, _MEAN_SHARE)
    filled_pixels = np.where(is_kept, colored_pixels, _fade_to_stripes(pixels))
    # Patches in each patch's token, by a sum over [patches, patches]; dropped: 1.
    token_sizes = _same_token(token_of_patch).sum(axis=1).reshape(grid)
    is_merged = _expand_to_pixels(token_sizes > 1, image)[..., None]
    is_pale = is_kept & ~is_merged & _token_border(token_of_pixel, 1)[..., None]
    # White on dark pixels, black on bright pixels.
    contrast_color = np.where(filled_pixels.mean(axis=-1, keepdims=True) < 128, 255, 0)
    pale_color = _mix_colors(filled_pixels, contrast_color, _PALE_SHARE)
    is_bright = is_kept & is_merged & _token_border(token_of_pixel, 2)[..., None]
    unmerged_pixels = np.where(is_pale, pale_color, filled_pixels)
    painted_pixels = np.where(is_bright, bright_color, unmerged_pixels)
    return np.rint(painted_pixels).astype(np.uint8)


def outline_colors(token_of_patch: TokenMap, grid: Grid) -> PatchColors:
    """Outline color of every patch's token, from 0 to 255."""
    from matplotlib import colors

    # The hue follows the token's first patch, so it stays when the token absorbs
    # patches. Hues of neighboring places are a sixth of the circle or more apart.
    same_token = _same_token(token_of_patch)  # [patches, patches]
    first_patches = same_token.argmax(axis=1).reshape(grid)
    _, num_columns = grid
    rows, columns = np.divmod(first_patches, num_columns)
    hues = (0.414 * rows + 0.236 * columns) % 1.0
    hsv = np.stack([hues, np.full(grid, 0.85), np.ones(grid)], axis=-1)
    return 255 * colors.hsv_to_rgb(hsv)


def mean_colors(image: RgbPixels, token_of_patch: TokenMap, grid: Grid) -> PatchColors:
    """Mean color of every patch's token."""
    height, width = image.shape[:2]
    num_rows, num_columns = grid
    # Axes 1 and 3 are the rows and columns of a patch's pixels.
    shape = (num_rows, height // num_rows, num_columns, width // num_columns, 3)
    pixels_by_patch = image.reshape(shape).astype(np.float64)
    patch_means = pixels_by_patch.mean(axis=(1, 3)).reshape(-1, 3)
    same_token = _same_token(token_of_patch)  # [patches, patches]
    token_means = same_token @ patch_means / same_token.sum(axis=1, keepdims=True)
    return token_means.reshape(num_rows, num_columns, 3).astype(np.float32)


def paint_values(
    image: RgbPixels, patch_values: Float[np.ndarray, " patches"], grid: Grid
) -> RgbPixels:
    """Paint a value per patch over the gray image.

    patch_values: from 0 to 1; NaN: a dropped patch, which fades into stripes
    """
    from matplotlib import colormaps

    image = np.asarray(image)
    value_grid = np.asarray(patch_values).reshape(grid)
    # An axis for the colors; the last color of `patch_colors`, [rows, columns, 4], is
    # alpha.
    is_dropped = _expand_to_pixels(np.isnan(value_grid), image)[..., None]
    patch_colors = colormaps["viridis"](np.nan_to_num(value_grid), bytes=True)
    pixel_colors = _expand_to_pixels(patch_colors[..., :3], image)
    gray = image.astype(np.float32).mean(axis=-1, keepdims=True)
    colored_pixels = _mix_colors(gray, pixel_colors, _VALUE_SHARE)
    painted_pixels = np.where(is_dropped, _fade_to_stripes(image), colored_pixels)
    return np.rint(painted_pixels).astype(np.uint8)


def write_panel_page(
    path: str | os.PathLike, panels: Mapping[tuple[int, int], Panel], caption: str
) -> None:
    """Write one PNG of pictures in rows and columns.

    panels: by (row, column), with pictures of one size; a place may be empty
    """
    _, first_picture, _ = panels[0, 0]
    height, width, _ = first_picture.shape
    num_rows, num_columns = np.max([*panels], axis=0) + 1  # of [panels, 2]
    page_width = 2 * _PAGE_MARGIN + num_columns * (width + _PANEL_GAP) - _PANEL_GAP
    letters_per_line = int((page_width - 2 * _PAGE_MARGIN) / _LETTER_WIDTH)
    caption_lines = textwrap.wrap(caption, letters_per_line)
    caption_height = 2 * _PAGE_MARGIN + len(caption_lines) * _LINE_HEIGHT
    page_height = num_rows * (height + _TITLE_HEIGHT) + caption_height

    figure = new_figure(page_width / DOTS_PER_INCH, page_height / DOTS_PER_INCH)
    for (row, column), (title, picture, note) in panels.items():
        left = _PAGE_MARGIN + column * (width + _PANEL_GAP)
        bottom = page_height - (row + 1) * (height + _TITLE_HEIGHT)
        corner = (left / page_width, bottom / page_height)
        extent = (width / page_width, height / page_height)
        axes = figure.add_axes((*corner, *extent))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        # A file name may not be UTF-8.
        whole_title = title.encode(errors="backslashreplace").decode()
        num_letters = int(width / _LETTER_WIDTH)
        short_title = textwrap.shorten(whole_title, num_letters, placeholder="…")
        axes.set_title(
            f"{short_title}\n{note}",
            fontsize=_FONT_SIZE,
            loc="left",
            pad=5,
            parse_math=False,  # "$" in a file name is a "$"
        )
    figure.text(
        _PAGE_MARGIN / page_width,
        (caption_height - _PAGE_MARGIN) / page_height,
        "\n".join(caption_lines),
        fontsize=_FONT_SIZE,
        verticalalignment="top",
    )
    save_figure(figure, pathlib.Path(path))


def _same_token(token_of_patch):
    """Whether patches share a token, [patches, patches]; a dropped patch is alone."""
    is_shared = (token_of_patch[:, None] == token_of_patch) & (token_of_patch >= 0)
    return is_shared | np.eye(len(token_of_patch), dtype=bool)


def _mix_colors(below, above, share):
    return (1 - share) * below + share * above


def _fade_to_stripes(pixels):
    """Stripes over the faintly visible gray image."""
    rows, columns = np.indices(pixels.shape[:2])
    stripes = _STRIPE_COLORS[(rows + columns) // _STRIPE_WIDTH % 2]
    return _mix_colors(pixels.mean(axis=-1, keepdims=True), stripes, _FADED_SHARE)


def _expand_to_pixels(patch_values, image):
    """Value of every pixel's patch."""
    height, width = image.shape[:2]
    num_rows, num_columns = patch_values.shape[:2]
    return patch_values.repeat(height // num_rows, 0).repeat(width // num_columns, 1)


def _token_border(token_of_pixel, border_width):
    """Mark pixels at most `border_width` from another token in their row or column."""
    is_border = np.zeros(token_of_pixel.shape, bool)
    # A transpose turns columns into rows, in the same memory.
    orientations = ((is_border, token_of_pixel), (is_border.T, token_of_pixel.T))
    for border_map, token_map in orientations:
        for distance in range(1, border_width + 1):
            differs = token_map[distance:] != token_map[:-distance]
            border_map[distance:] |= differs
            border_map[:-distance] |= differs
    return is_border
