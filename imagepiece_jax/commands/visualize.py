"""Figures, a page and data of the tokens that methods make of images.

python -m imagepiece_jax visualize --weights FILE_OR_WORKDIR \\
    --sweep imagepiece --sweep evit:keep_rate=.7 IMAGE_OR_FOLDER..

For every method one figure per image: the tokens after each reducing block, and the
number of patches of each token. `index.html` shows the figures of all methods, and
`provenance.json` has the slot of every patch after each step. Without --sweep the
method is --reduction, or that of the weights. --limit 20 takes twenty of a folder's
images. An image that cannot be read is named on stderr, the others are shown, and the
exit status is 1. Ctrl-C leaves no part of a new folder.
"""

import contextlib
import pathlib

from imagepiece_jax import cli
from imagepiece_jax.commands import _weights
from imagepiece_jax.common import extras, signals
from imagepiece_jax.common.files import FolderLock, check_folder
from imagepiece_jax.errors import inside, one_of, renamed

WEIGHTS = _weights.weights(latest=True)
LIMIT = cli.limit()
SWEEP = cli.sweep("these methods instead of --reduction")
OUT = cli.text(
    "out",
    None,
    "folder of figures, page and data, replaced if they exist; default: runs/visualize",
)
BLOCKS = cli.listed(
    "blocks", [], "figures show only these blocks, such as 1,4,8; default: all"
)


def main(words):
    cli.path_of_weights()
    # These import JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.data import pictures
    from imagepiece_jax.data.source import evenly_spaced
    from imagepiece_jax.visualize import html

    extras.check("a figure", "matplotlib")
    files = pictures.find_images(words)
    if LIMIT.value is not None and LIMIT.value < len(files):
        print(f"{LIMIT.value} of {len(files):,} images are taken, evenly spaced")
        files = [files[i] for i in evenly_spaced(len(files), LIMIT.value)]
    out = pathlib.Path(OUT.value or "runs/visualize")
    check_folder("--out", out)
    with renamed({"out": "--out"}):
        html.check_folder(out)
    with FolderLock("--out", out):
        return draw(files, out)


def draw(files, out):
    """Draw the images in `files`; the exit status: 1 where one cannot be read."""
    from imagepiece_jax.data import pictures
    from imagepiece_jax.visualize import html

    reductions = _weights.swept()
    vit = WEIGHTS().analyzed()
    models = []
    for reduction in reductions:
        with inside(place=f"sweep {reduction.text}"):
            models.append(vit.with_reduction(reduction, seed=vit.source.seed))
    models = models or [vit]
    numbers = [str(block) for block in range(len(models[0].model.plan))]
    blocks = [int(one_of("--blocks", text, numbers)) for text in BLOCKS.value]
    images, names = pictures.read_images(files, vit.preprocessing)
    if note := pictures.sizes_note(files, vit.preprocessing):
        print(f"note: {note}", flush=True)
    source = vit.source.name
    if vit.source.averaged:
        source += " (averaged weights)"
    with contextlib.ExitStack() as stack:
        for name in html.FILES:
            if not (out / name).exists():
                stack.enter_context(signals.unfinished(out / name))
        stack.enter_context(renamed({"out": "--out"}))
        for line in html.write_folder(out, models, images, names, source, blocks):
            print(line, flush=True)
    return int(len(names) < len(files))


if __name__ == "__main__":
    cli.run(main)
