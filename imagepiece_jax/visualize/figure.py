"""PNG figure of one image under one method: its tokens after every step."""

import math
import os
import pathlib
import re

import numpy as np

from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.visualize import token_pictures
from imagepiece_jax.visualize.trace import Stage, Trace

CAPTION = (
    f"{token_pictures.CAPTION} Sizes: the number of patches of each token, on a "
    "logarithmic scale; the largest token is the brightest."
)
STEM = 80  # bytes of an image's name in a file name, which file systems limit


def save(path: str | os.PathLike, image: np.ndarray, name: str, trace: Trace, index):
    """Write the figure of image `index` in a trace.

    The first row has the input, titled `name`, and its tokens; the second row has the
    token sizes. A soft reduction's tokens overlap, and are not drawn.

    image: uint8 [S, S, 3]
    """
    image = token_pictures.enlarged(image)
    grid = trace.grid
    tokens = [(name, image, f"{math.prod(grid)} patches")]
    sizes = [None]
    for stage in trace.stages:
        if stage.source is None:
            continue
        title = f"block {stage.block}"
        if stage.site == "pre":
            title = f"before block {stage.block}"
        drawn = token_pictures.draw_groups(image, stage.source[index], grid)
        tokens.append((title, drawn, counted_noun(stage.tokens, "token")))
        shares, note = size_shares(stage, index)
        drawn = token_pictures.draw_values(image, shares, grid)
        sizes.append((f"sizes, {title}", drawn, note))
    if len(tokens) > 1:
        token_pictures.panel_page(path, [tokens, sizes], CAPTION)
    else:
        token_pictures.panel_page(path, [tokens], "")


def size_shares(stage: Stage, index: int) -> tuple[np.ndarray, str]:
    """(token size per patch, sizes in words).

    Sizes are logarithmic: 0 for one patch, 1 for the image's largest token, NaN for a
    dropped patch.
    """
    sizes = stage.sizes[index]
    low = sizes.min()
    high = sizes.max()
    # Two patches are the smallest size that gets the brightest color.
    shares = np.log(sizes) / np.log(max(high, 2))
    note = "1 patch each" if high == 1 else f"{low} to {high} patches"
    slots = stage.source[index]
    return np.where(slots < 0, np.nan, shares[np.maximum(slots, 0)]), note


def file_name(index: int, name: str, label: str) -> str:
    """File name of a figure; label: the method's."""
    stem = os.fsdecode(os.fsencode(pathlib.Path(name).stem)[:STEM])
    method = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_")
    return f"{index:03d}_{stem}_{method}.png"
