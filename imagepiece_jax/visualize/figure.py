"""Views of one image under one method, and the PNG figure of all of them."""

import math
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common import token_pictures
from imagepiece_jax.visualize.trace import Trace

KINDS = ("tokens", "attention", "sizes")
CAPTIONS = {
    "tokens": token_pictures.CAPTION,
    "attention": (
        "Class attention: the class token's attention to each token, mean over heads, "
        "on a square-root scale. All patches of a token show its value; the token "
        "attended to most is the brightest."
    ),
    "sizes": (
        "Sizes: the number of patches of each token, on a logarithmic scale; the "
        "largest token is the brightest."
    ),
    "weights": (
        "Weights: each learned token's weight of every patch; the largest is the "
        "brightest. These tokens overlap, so they have no outlines and no sizes."
    ),
}
COLORMAPS = {"attention": "inferno", "sizes": "viridis", "weights": "inferno"}
MAPS_IN_A_ROW = 8  # of learned tokens
STEM = 80  # bytes of an image's name in a figure's name: file systems have a limit


class View(NamedTuple):
    """One picture."""

    kind: str
    title: str
    note: str
    # [n0] slots of the patches (kind "tokens"), or floats in 0..1, NaN where dropped
    values: np.ndarray
    colors: np.ndarray | None = None  # of outlines, by `token_pictures.outline_colors`

    def draw(self, image, grid):
        """The picture over `image`, uint8 [H, W, 3]."""
        if self.kind == "tokens":
            return token_pictures.draw_groups(image, self.values, grid, self.colors)
        return token_pictures.draw_values(
            image, self.values, grid, COLORMAPS[self.kind]
        )


def views(trace: Trace, index: int) -> dict[str, list[View | None]]:
    """The views of image `index` by kind: lists, with None where there is none.

    "tokens" and "sizes" have a place for each stage; "attention" one for the input of
    each stage and the last block; "weights" one for each token of a soft reduction.
    """
    stages = trace.stages
    sources = [stage.source[index] for stage in stages if stage.source is not None]
    colors = token_pictures.outline_colors(sources, trace.grid)
    found = {"tokens": [], "attention": [], "sizes": [], "weights": []}
    for stage in stages:
        found["tokens"].append(_tokens(stage, index, colors))
        found["attention"].append(_attention(stage, index, stage.attention_block))
        found["sizes"].append(_sizes(stage, index))
        if stage.weights is not None:
            for number, weights in enumerate(stage.weights[index]):
                found["weights"].append(_weights(number, weights))
    found["attention"].append(_attention(trace, index, trace.depth - 1))
    return found


def save(path, image, name, trace, index):
    """Write the figure of `image`, uint8 [S, S, 3], which is number `index` of `trace`.

    Rows: the input, titled `name`, and its tokens; then each other kind of view.
    """
    image = token_pictures.enlarged(image)
    by_kind = views(trace, index)

    def panel(view):
        if view is None:
            return None
        return (view.title, view.draw(image, trace.grid), view.note)

    shown = [kind for kind in KINDS if any(by_kind[kind])]
    rows = [[None, *map(panel, by_kind[kind])] for kind in shown]
    lead = (name, image, f"{math.prod(trace.grid)} patches")
    if rows:
        rows[0][0] = lead
    else:
        rows = [[lead]]
    maps = list(map(panel, by_kind["weights"]))
    for start in range(0, len(maps), MAPS_IN_A_ROW):
        rows.append(maps[start : start + MAPS_IN_A_ROW])
    captions = [text for kind, text in CAPTIONS.items() if any(by_kind[kind])]
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


def _tokens(stage, index, colors):
    if stage.source is None:
        return None
    note = f"{stage.tokens} tokens"
    return View("tokens", _place(stage), note, stage.source[index], colors)


def _attention(traced, index, block):
    """The view of class attention in a block, if the Stage or Trace has one."""
    if traced.attention is None:
        return None
    row = traced.attention[index]
    # Not linear: one token of many patches may exceed all the others.
    values = np.sqrt(row / row.max())
    values = _spread(values, traced.attended[index])
    note = f"largest {_percent(row.max())}"
    return View("attention", f"attention, block {block}", note, values)


def _sizes(stage, index):
    """The view of the sizes of tokens after a step; None: the Stage has none."""
    if stage.sizes is None:
        return None
    sizes = stage.sizes[index]
    low = sizes.min()
    high = sizes.max()
    # Two patches are the smallest size that gets the brightest color.
    share = np.log(sizes) / np.log(max(high, 2))
    note = "1 patch each" if high == 1 else f"{low} to {high} patches"
    values = _spread(share, stage.source[index])
    return View("sizes", f"sizes, {_place(stage)}", note, values)


def _weights(number, weights):
    share = weights.max() / weights.sum()
    note = f"largest weight {_percent(share)}"
    return View("weights", f"token {number}", note, weights / weights.max())


def _spread(values, slots):
    """Value of each patch's token, NaN where it has none. [n], [n0] -> [n0]."""
    return np.where(slots < 0, np.nan, values[np.maximum(slots, 0)])


def _percent(share):
    return f"{100 * share:.1f} %"
