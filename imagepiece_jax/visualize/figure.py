"""PNG figure of one image under one method: its tokens after every step."""

import math
import os
import pathlib
import re

import numpy as np
from jaxtyping import Float

from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.data.preprocessing import RgbPixels
from imagepiece_jax.visualize import token_pictures
from imagepiece_jax.visualize.trace import Stage, Trace

FIGURE_CAPTION = (
    f"{token_pictures.TOKEN_CAPTION} Sizes: the number of patches of each token, on a "
    "logarithmic scale; the largest token is the brightest."
)
STEM_BYTES = 80  # bytes of an image's name in a file name, which file systems limit


def write_figure(
    path: str | os.PathLike,
    image: RgbPixels,
    name: str,
    trace: Trace,
    index: int,
) -> None:
    """Write the figure of image `index` in a trace.

    The first row has the input, titled `name`, and its tokens; the second row has the
    token sizes. A soft reduction's tokens overlap, and are not painted.
    """
    image = token_pictures.enlarge_image(image)
    grid = trace.grid
    token_panels = [(name, image, f"{math.prod(grid)} patches")]
    size_panels: list[token_pictures.Panel | None] = [None]
    for stage in trace.stages:
        if stage.token_of_patch is None:
            continue
        title = f"block {stage.block}"
        if stage.site == "pre":
            title = f"before block {stage.block}"
        painted = token_pictures.paint_tokens(image, stage.token_of_patch[index], grid)
        token_panels.append((title, painted, counted_noun(stage.tokens, "token")))
        shares, size_note = size_shares(stage, index)
        painted = token_pictures.paint_values(image, shares, grid)
        size_panels.append((f"sizes, {title}", painted, size_note))
    if len(token_panels) > 1:
        panel_rows = [token_panels, size_panels]
        token_pictures.write_panel_page(path, panel_rows, FIGURE_CAPTION)
    else:
        token_pictures.write_panel_page(path, [token_panels], "")


def size_shares(stage: Stage, index: int) -> tuple[Float[np.ndarray, " patches"], str]:
    """(token size per patch, sizes in words) of image `index` after a hard reduction.

    Sizes are logarithmic: 0 for one patch, 1 for the image's largest token, NaN for a
    dropped patch.
    """
    assert stage.sizes is not None and stage.token_of_patch is not None
    sizes = stage.sizes[index]
    smallest = sizes.min()
    largest = sizes.max()
    # Two patches are the smallest size that gets the brightest color.
    shares = np.log(sizes) / np.log(max(largest, 2))
    size_note = "1 patch each" if largest == 1 else f"{smallest} to {largest} patches"
    token_of_patch = stage.token_of_patch[index]
    share_of_patch = shares[np.maximum(token_of_patch, 0)]
    return np.where(token_of_patch < 0, np.nan, share_of_patch), size_note


def figure_name(index: int, name: str, label: str) -> str:
    """File name of a figure; label: the method's."""
    stem = os.fsdecode(os.fsencode(pathlib.Path(name).stem)[:STEM_BYTES])
    method = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_")
    return f"{index:03d}_{stem}_{method}.png"
