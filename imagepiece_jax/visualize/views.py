"""What is there to show of one image under one method? Titles, numbers and words.

The figures and the page draw the same views, each in its own way.
"""

from typing import NamedTuple

import numpy as np

from imagepiece_jax.common import plotting
from imagepiece_jax.reduction.tokens import DROPPED

KINDS = ("tokens", "attention", "sizes")
CAPTIONS = {
    "tokens": plotting.CAPTION,
    "attention": (
        "Class attention: how much of what the class token reads comes from each "
        "token, mean over heads, on a square-root scale. All patches of a token show "
        "its value; bright is the token that is read most."
    ),
    "sizes": (
        "Sizes: how many patches are behind each token, on a logarithmic scale; bright "
        "is the largest token."
    ),
    "weights": (
        "Weights: what each learned token took of every patch; bright is the most. "
        "These tokens overlap, so they have no outlines and no sizes."
    ),
}
COLOURS = {"attention": "inferno", "sizes": "viridis", "weights": "inferno"}


class View(NamedTuple):
    """One picture: a title, a note in a few words, and what it shows.

    values: [n0] slots of the patches (kind "tokens"), or floats in 0..1, NaN for
    patches that were dropped.
    """

    kind: str
    title: str
    note: str
    values: np.ndarray

    def draw(self, image, grid, scale=1):
        """The picture over `image`, uint8 [H * scale, W * scale, 3]."""
        if self.kind == "tokens":
            return plotting.draw_groups(image, self.values, grid, scale)
        return plotting.draw_values(image, self.values, grid, COLOURS[self.kind], scale)


def of_image(trace, index):
    """The views of image `index`, by kind: lists with None where there is none.

    "tokens" and "sizes" have a place for each stage; "attention" has what each stage
    saw, and that of the last block; "weights" a map for each token that a soft
    reduction made.
    """
    stages = trace.stages
    looks = [(s.attention, s.attended, s.block - (s.site == "pre")) for s in stages]
    looks.append((trace.attention, trace.attended, trace.depth - 1))
    soft = [stage.weights[index] for stage in stages if stage.weights is not None]
    return {
        "tokens": [_tokens(stage, index) for stage in stages],
        "attention": [_attention(index, *look) for look in looks],
        "sizes": [_sizes(stage, index) for stage in stages],
        "weights": [_weights(i, m) for maps in soft for i, m in enumerate(maps)],
    }


def _name(stage):
    return f"{'before ' if stage.site == 'pre' else ''}block {stage.block}"


def _tokens(stage, index):
    if stage.source is None:
        return None
    note = f"{stage.tokens} tokens"
    return View("tokens", _name(stage), note, stage.source[index])


def _attention(index, attention, attended, block):
    if attention is None:
        return None
    row = attention[index]
    # Not linear: one token of many patches may be read more than all the others.
    values = _spread(np.sqrt(row / row.max()), attended[index])
    note = f"largest {_percent(row.max())}"
    return View("attention", f"attention, block {block}", note, values)


def _sizes(stage, index):
    if stage.sizes is None:
        return None
    sizes = stage.sizes[index]
    low, high = sizes.min(), sizes.max()
    # Two patches are the least that gets the brightest colour.
    share = np.log(sizes) / np.log(max(high, 2))
    note = "1 patch each" if high == 1 else f"{low} to {high} patches"
    values = _spread(share, stage.source[index])
    return View("sizes", f"sizes, {_name(stage)}", note, values)


def _weights(number, weights):
    note = f"largest weight {_percent(weights.max() / weights.sum())}"
    return View("weights", f"token {number}", note, weights / weights.max())


def _spread(values, slots):
    """The value of each patch's token, NaN where it has none. [n], [n0] -> [n0]."""
    return np.where(slots == DROPPED, np.nan, values[np.maximum(slots, 0)])


def _percent(share):
    return f"{100 * share:.1f} %"
