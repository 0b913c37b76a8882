"""How does one image look under one method, block by block? A PNG of all its views."""

import math

from imagepiece_jax.common import plotting
from imagepiece_jax.visualize import views

MAPS_IN_A_ROW = 8  # of learned tokens


def save(path, image, name, trace, index):
    """Write the figure of `image`, uint8 [S, S, 3], which is number `index` of `trace`.

    Rows: the input, called `name`, and its tokens after each stage; the class attention
    that each stage saw, and the last block's; the sizes; and, of a soft reduction, a
    map a token. Rows without a picture are left out.
    """
    scale = plotting.enlargement(image)
    shown = views.of_image(trace, index)

    def panels(kind):
        return [
            view and (view.title, view.draw(image, trace.grid, scale), view.note)
            for view in shown[kind]
        ]

    pixels = image.repeat(scale, 0).repeat(scale, 1)
    lead = (name, pixels, f"{math.prod(trace.grid)} patches")
    rows = [[None, *panels(kind)] for kind in views.KINDS if any(shown[kind])] or [[]]
    rows[0] = [lead, *rows[0][1:]]
    maps = panels("weights")
    rows += [maps[i : i + MAPS_IN_A_ROW] for i in range(0, len(maps), MAPS_IN_A_ROW)]
    captions = [text for kind, text in views.CAPTIONS.items() if any(shown[kind])]
    plotting.panel_page(path, rows, " ".join(captions))
