"""Figures, a page and data of images' tokens."""

import os
import pathlib

from imagepiece_jax.commands._arguments import Images, Weights, option_values
from imagepiece_jax.common.checks import check_range

NUM_DRAWN_IMAGES = 8  # images of a data set


def main(
    weights: Weights,
    images: Images,
    *,
    out: str = "runs/visualize",
    reductions: tuple[str, ...] | None = None,
    blocks: tuple[int, ...] | None = None,
) -> int:
    """Draw images' tokens after every reducing block, and a page of all drawings.

    IMAGE may be a set, such as digits, hf:OWNER/NAME or csv:FILE: 8 of its images are
    drawn. provenance.json has the slot of every patch.

    Example: imagepiece visualize weights photos --out page --reduction .5

    Args:
        out: Folder to write. Earlier figures, page and data are replaced.
        reductions: Several reductions, instead of --reduction.
        blocks: Draw only these blocks, counted from 0.
    """
    from imagepiece_jax.data import pictures
    from imagepiece_jax.data.sources import registry
    from imagepiece_jax.visualize import html

    reduction_texts = option_values("reductions", reductions)
    if reduction_texts:
        weights.refuse_reduction()
    drawn_blocks = option_values("blocks", blocks)
    folder = pathlib.Path(out)
    html.check_page_writable(folder)
    source = pictures.as_source(images.images, "val")
    if registry.is_set_name(images.images[0]):
        source = source.evenly_spaced(NUM_DRAWN_IMAGES)
    # float32, because rounding would decide near ties between tokens.
    pretrained = weights.load_model().with_default_execution(weights.dtype or "float32")
    variants = [pretrained.with_reduction(text) for text in reduction_texts]
    variants = variants or [pretrained]
    for block in drawn_blocks:
        check_range("blocks", block, 0, len(pretrained.model.plan) - 1)
    pixels, image_names = pictures.read_images(source, pretrained.preprocessing)
    file_names = [*map(os.path.basename, image_names)]
    for line in html.write_page(folder, variants, pixels, file_names, drawn_blocks):
        print(line, flush=True)
    return int(len(file_names) < len(source))  # 1: some cannot be read
