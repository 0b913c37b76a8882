"""Figures, an HTML page and data of the tokens that methods make of images.

python -m imagepiece_jax visualize --weights FILE_OR_WORKDIR \\
    --sweep imagepiece --sweep evit:keep_rate=.7 IMAGE_OR_FOLDER..

For every method one figure per image: the tokens after each reducing block, the class
attention, and the number of patches of each token. `index.html` compares the methods
side by side and needs no network; `provenance.json` and `provenance.npz` hold the slot
of every patch, and all else that is drawn. Sizes and stem come from the run or the
weights, else from --config, as does the method if there is no --sweep.
"""

import dataclasses
import math
import pathlib

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.files import make_folder, replace_file
from imagepiece_jax.errors import InputError

cli.define_config()
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
AVERAGED = cli.averaged()
RESIZE = cli.resize()
SWEEP = cli.sweep("these methods instead of the config's")
OUT = flags.DEFINE_string(
    "out",
    None,
    "folder of figures, page and data, replaced if there; default: runs/visualize",
    allow_override=True,
)
BLOCKS = flags.DEFINE_list(
    "blocks", [], "figures show these blocks alone, such as 1,4,8; default: all"
)


def main(words):
    path, normalization = cli.required(WEIGHTS), NORMALIZATION()
    typed = cli.config_or_base()
    # They import JAX: after the flags.
    from imagepiece_jax.common.image_size import whole_patches
    from imagepiece_jax.data import sources
    from imagepiece_jax.data.transforms import EvalTransform
    from imagepiece_jax.reduction.settings import parse
    from imagepiece_jax.training.weights_config import for_analysis
    from imagepiece_jax.visualize import figure, html
    from imagepiece_jax.visualize.trace import trace, write_traces

    files, out = sources.find_images(words), pathlib.Path(OUT.value or "runs/visualize")
    blocks = block_numbers(BLOCKS.value)
    reductions = [one for text in SWEEP.value for one in parse(text)]
    weights = for_analysis(path, *typed, normalization, AVERAGED.value)
    shown = [weights.pretrained(reduction) for reduction in reductions or [None]]
    depth = len(shown[0].model.plan)
    for block in blocks:
        if block >= depth:
            raise InputError(f"--blocks has {block}; allowed are 0 to {depth - 1}")
    resize = RESIZE.value or weights.resize
    transform = EvalTransform(weights.image_size, resize, **weights.crop)
    images, names = sources.read_images(files, transform)
    if note := sources.sizes_note(files, transform):
        print(f"note: {note}", flush=True)
    figures = out / "figures"
    for folder in (out, figures):
        make_folder("--out", folder)
    methods, traces = [], []
    drawn_images, _ = whole_patches(images, shown[0].model.patch_size)
    for vit in shown:
        seen, label = trace(vit.model, vit.variables, images), vit.label
        traces.append(seen)
        facts = {"label": label, "setting": vit.reduction}
        facts |= {"untrained": vit.untrained, "gmacs": vit.gmacs}
        methods.append(facts)
        stages = tuple(s for s in seen.stages if not blocks or s.block in blocks)
        drawn = dataclasses.replace(seen, stages=stages)
        figure.save_all(figures, drawn_images, names, label, drawn)
        patches = math.prod(seen.grid)
        print(f"{label}: {patches} patches, {seen.tokens} tokens of them left")
    write_traces(out, names, methods, traces)
    name, classes = weights.name, weights.class_names
    name += " (averaged weights)" * weights.averaged
    text = html.page(drawn_images, names, methods, traces, name, classes)
    replace_file(out / "index.html", text)
    print(f"page: {out}/index.html; figures: {figures}; data: {out}/provenance.*")


def block_numbers(texts):
    """["1", "4"] -> [1, 4]; InputError for anything but numbers."""
    for text in texts:
        if not text.isdecimal():
            raise InputError(f"--blocks has {text!r}; allowed are numbers of blocks")
    return [int(text) for text in texts]


if __name__ == "__main__":
    cli.run(main)
