"""Views of one image under one method, and the PNG figure of all of them."""

import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from imagepiece_jax.deploy.visualize import token_pictures
from imagepiece_jax.deploy.visualize.trace import Trace

CAPTIONS = {
    "tokens": token_pictures.CAPTION,
    "sizes": (
        "Sizes: the number of patches of each token, on a logarithmic scale; the "
        "largest token is the brightest."
    ),
}
STEM = 80  # bytes of an image's name in a figure's name: file systems have a limit


class View(NamedTuple):
    """One picture."""

    kind: str
    title: str
    note: str
    # [n0]: slots of the patches (kind "tokens"), or floats in 0..1, NaN if dropped
    values: np.ndarray

    def draw(self, image, grid):
        """The picture over `image`, uint8 [H, W, 3]."""
        if self.kind == "tokens":
            return token_pictures.draw_groups(image, self.values, grid)
        return token_pictures.draw_values(image, self.values, grid)


def views(trace: Trace, index: int) -> dict[str, list[View | None]]:
    """The views of image `index` by kind, "tokens" and "sizes", one for each stage.

    The view of a soft reduction is None, because its tokens overlap.
    """
    found = {"tokens": [], "sizes": []}
    for stage in trace.stages:
        found["tokens"].append(_tokens(stage, index))
        found["sizes"].append(_sizes(stage, index))
    return found


def save(path, image, name, trace, index):
    """Write the figure of image number `index` of a trace.

    The first row has the input, titled `name`, and its tokens, the second their sizes.

    image: uint8 [S, S, 3]
    """
    image = token_pictures.enlarged(image)
    by_kind = views(trace, index)

    def panel(view):
        if view is None:
            return None
        return (view.title, view.draw(image, trace.grid), view.note)

    lead = (name, image, f"{math.prod(trace.grid)} patches")
    rows = [[lead, *map(panel, by_kind["tokens"])]]
    captions = []
    if any(by_kind["tokens"]):
        rows.append([None, *map(panel, by_kind["sizes"])])
        captions = CAPTIONS.values()
    token_pictures.panel_page(path, rows, " ".join(captions))


def file_name(index, name, label):
    """The name of a figure's file; label: the method's."""
    stem = os.fsdecode(os.fsencode(pathlib.Path(name).stem)[:STEM])
    method = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_")
    return f"{index:03d}_{stem}_{method}.png"


def _place(stage):
    """Where a step stands, in words."""
    if stage.site == "pre":
        return f"before block {stage.block}"
    return f"block {stage.block}"


def _tokens(stage, index):
    if stage.source is None:
        return None
    note = f"{stage.tokens} tokens"
    return View("tokens", _place(stage), note, stage.source[index])


def _sizes(stage, index):
    """The view of the sizes of tokens after a step; None if they overlap."""
    if stage.sizes is None:
        return None
    sizes = stage.sizes[index]
    low = sizes.min()
    high = sizes.max()
    # Two patches are the smallest size that gets the brightest color.
    share = np.log(sizes) / np.log(max(high, 2))
    note = "1 patch each" if high == 1 else f"{low} to {high} patches"
    slots = stage.source[index]
    values = np.where(slots < 0, np.nan, share[np.maximum(slots, 0)])
    return View("sizes", f"sizes, {_place(stage)}", note, values)
