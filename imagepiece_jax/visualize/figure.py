"""PNG figure of one image under one method: its tokens after every step."""

import math
import os
import pathlib
import re

import numpy as np
from jaxtyping import Float, Int

from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.data.preprocessing import RgbPixels
from imagepiece_jax.visualize import token_pictures
from imagepiece_jax.visualize.trace import Trace

FIGURE_CAPTION = (
    f"{token_pictures.TOKEN_CAPTION} Sizes: the number of patches of each token, on a "
    "logarithmic scale; the largest token is the brightest."
)
STEM_BYTES = 80  # bytes of an image's name in a file name, which file systems limit


def write_figure(
    path: str | os.PathLike, image: RgbPixels, name: str, trace: Trace, index: int
) -> None:
    """Write the figure of image `index` in a trace; the image has whole patches.

    The first row has the input, titled `name`, and its tokens; the second row has the
    token sizes. A soft reduction's tokens overlap, and are not painted.
    """
    # Enlarged by a whole factor, so that patches keep whole pixels.
    factor = max(1, math.ceil(token_pictures.LEAST_PANEL / image.shape[0]))
    enlarged_image = image.repeat(factor, 0).repeat(factor, 1)  # [H, W, 3]
    panels = {(0, 0): (name, enlarged_image, f"{trace.num_patches} patches")}
    column = 0
    for stage in trace.stages:
        if stage.token_of_patch is None or stage.sizes is None:
            continue
        column += 1
        token_of_patch = stage.token_of_patch[index]
        token_picture = token_pictures.paint_tokens(
            enlarged_image, token_of_patch, trace.grid
        )
        count_text = counted_noun(stage.num_tokens, "token")
        panels[0, column] = (stage.title, token_picture, count_text)
        shares, size_text = size_shares(stage.sizes[index], token_of_patch)
        size_picture = token_pictures.paint_values(enlarged_image, shares, trace.grid)
        panels[1, column] = (f"sizes, {stage.title}", size_picture, size_text)
    token_pictures.write_panel_page(path, panels, FIGURE_CAPTION if column else "")


def size_shares(
    sizes: Int[np.ndarray, " tokens"], token_of_patch: token_pictures.TokenMap
) -> tuple[Float[np.ndarray, " patches"], str]:
    """(token size per patch, sizes in words).

    Sizes are logarithmic: 0 for one patch, 1 for the image's largest token, NaN for a
    dropped patch.
    """
    max_size = sizes.max()
    # Two patches are the smallest size that gets the brightest color.
    shares = np.log(sizes) / np.log(max(max_size, 2))
    note = "1 patch each" if max_size == 1 else f"{sizes.min()} to {max_size} patches"
    share_of_patch = shares[np.maximum(token_of_patch, 0)]  # of dropped ones any
    return np.where(token_of_patch < 0, np.nan, share_of_patch), note


def figure_name(index: int, name: str, method_label: str) -> str:
    """File name of a figure."""
    stem = os.fsdecode(os.fsencode(pathlib.Path(name).stem)[:STEM_BYTES])
    method_text = re.sub(r"[^A-Za-z0-9.]+", "_", method_label).strip("_")
    return f"{index:03d}_{stem}_{method_text}.png"
