"""What did the tokens of these images become? Figures, a page and the data behind them.

python -m imagepiece_jax.visualize --weights FILE_OR_WORKDIR \\
    --sweep imagepiece --sweep evit:keep_rate=.7 IMAGE_OR_FOLDER..

For every method, one figure an image: the tokens after each reducing block, what the
class token attended to, and how many patches are behind each token. `index.html`
compares the methods side by side and needs no network; `provenance.json` and
`provenance.npz` hold the slot of every patch, and all else that is drawn. Sizes and
stem come from the run or the weights, else from --config, as does the method where no
--sweep names one.
"""

import dataclasses
import math
import os
import pathlib
import re
import sys

import numpy as np
from absl import flags

from imagepiece_jax import cli, options
from imagepiece_jax.errors import InputError

CONFIG = cli.define_config()
WEIGHTS = options.weights()
NORMALIZATION = options.normalization()
SWEEP = options.sweep("these methods instead of the config's")
OUT = flags.DEFINE_string(
    "out",
    None,
    "folder of figures, page and data, replaced if there; default: runs/visualize",
    allow_override=True,
)
BLOCKS = flags.DEFINE_list(
    "blocks", [], "figures show these blocks alone, such as 1,4,8; default: all"
)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FIGURES = "figures"
STEM = 80  # bytes of an image's name in that of a figure, which file systems bound


def main(words):
    path = cli.required(WEIGHTS)
    files, out = found(words), pathlib.Path(OUT.value or "runs/visualize")
    blocks = _numbers("--blocks", BLOCKS.value)
    normalization = NORMALIZATION()
    from imagepiece_jax.common.files import make_folder, replace_file
    from imagepiece_jax.models.pretrained import for_analysis
    from imagepiece_jax.reduction.settings import parse
    from imagepiece_jax.visualize import html, provenance
    from imagepiece_jax.visualize.trace import trace

    reductions = [one for text in SWEEP.value for one in parse(text)]
    weights = for_analysis(path, CONFIG.value, "float32", normalization)
    shown = [weights.variant(reduction) for reduction in reductions or [None]]
    _check_blocks(blocks, len(shown[0].model.plan))
    images, names = read(files, weights.image_size)
    for folder in (out, out / FIGURES):
        make_folder("--out", folder)
    methods, traces = [], []
    for variant in shown:
        seen = trace(variant.model, variant.variables, images)
        traces.append(seen)
        facts = {"label": variant.label, "setting": variant.reduction}
        facts |= {"untrained": variant.untrained, "gmacs": variant.gmacs}
        methods.append(facts)
        chosen = [s for s in seen.stages if not blocks or s.block in blocks]
        drawn = dataclasses.replace(seen, stages=tuple(chosen))
        _save_figures(out / FIGURES, images, names, variant.label, drawn)
        patches = math.prod(seen.grid)
        print(f"{variant.label}: {patches} patches, {seen.tokens} tokens of them left")
    provenance.save(out, names, methods, traces)
    name, classes = weights.path.name, weights.class_names
    text = html.page(images, names, methods, traces, name, classes)
    replace_file(out / "index.html", text)
    print(f"page: {out}/index.html; figures: {out}/{FIGURES}; data: {out}/provenance.*")


def found(words):
    """Files that `words` name: a folder stands for the images in it, by name."""
    if not words:
        raise InputError("no image is named; allowed are image files and folders")
    files = []
    for path in map(pathlib.Path, words):
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS)
        if not inside:
            raise InputError(
                f"folder {path} holds no image; allowed are {', '.join(EXTENSIONS)}"
            )
        files += inside
    return files


def read(files, side):
    """(uint8 [B, side, side, 3], names) of those of `files` that are images.

    Images of this size are taken as they are, others as evaluation crops them. What
    cannot be read is left out and told in a sentence; InputError where nothing is left.
    """
    from imagepiece_jax.data.decode import UnreadableImage, decode
    from imagepiece_jax.data.transforms import fitted

    images, names = [], []
    for file in files:
        if not file.is_file():
            print(f"{file} is left out: no such file", file=sys.stderr)
            continue
        try:
            image = decode(file, str(file), upright=True)
        except UnreadableImage as error:
            print(f"{error.name} is left out: {error.reason}", file=sys.stderr)
            continue
        images.append(fitted(image, side))
        names.append(file.name)
    if not images:
        raise InputError(
            f"none of {len(files)} files can be read, the first is {files[0]}; allowed "
            "are images"
        )
    return np.stack(images), names


def _save_figures(folder, images, names, label, trace):
    from imagepiece_jax.visualize import figure

    method = re.sub(r"[^A-Za-z0-9.]+", "_", label).strip("_")
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        stem = os.fsdecode(os.fsencode(pathlib.Path(name).stem)[:STEM])
        path = folder / f"{i:03d}_{stem}_{method}.png"
        figure.save(path, image, name, trace, i)


def _numbers(flag, texts):
    for text in texts:
        if not text.isdecimal():
            raise InputError(f"{flag} has {text!r}; allowed are numbers of blocks")
    return [int(text) for text in texts]


def _check_blocks(blocks, depth):
    for block in blocks:
        if block >= depth:
            raise InputError(f"--blocks has {block}; allowed are 0 to {depth - 1}")


if __name__ == "__main__":
    cli.run(main)
