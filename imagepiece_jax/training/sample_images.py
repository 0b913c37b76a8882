"""Sample images of a run: an augmented batch, and what became of the tokens."""

import functools
import itertools
import math
import pathlib

import jax
import numpy as np
from PIL import Image

from imagepiece_jax.common import parallel, plotting
from imagepiece_jax.common.image_size import whole_patches
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.reduction.tokens import Assignment, compose
from imagepiece_jax.training.train_step import prepared_images

PICTURE = "tokens.png"  # in the run's folder
SHOWN = 8  # images of an augmented batch
SMALLEST, WIDEST = 64, 1200  # pixels: a side of a small image, a panel's width


class SampleImages:
    """Sample images of one run; each of their programs is compiled once.

    `count` test images are followed through `model`; 0 switches all images off.
    """

    def __init__(self, workdir, model, recipe, count):
        self._workdir, self._count = workdir, count
        self._model = model.clone(axis_name=None)
        self._prepared = parallel.pmap(
            functools.partial(
                prepared_images, model=self._model, recipe=recipe, count=SHOWN
            )
        )
        self._examples = self._decide = None

    def augmented(self, batch, step):
        """Some images of `batch`, which is that of `step` (from 1), or None.

        [local devices, A, m, ...] -> uint8 [H, W, 3]. All processes must call this:
        mixing exchanges images between all devices.
        """
        if self._count == 0:
            return None
        before = parallel.replicate(np.int32(step - 1))
        return sheet(parallel.unreplicate(self._prepared(batch, before)))

    def tokens(self, source, transform, variables):
        """Tokens of some test images after each reduction, uint8 [H, W, 3], or None.

        The full picture is written to the run's folder; a smaller one is returned. Only
        this process's first device is used.
        """
        if self._examples is None:
            self._examples = examples(source, transform, self._count)
        images, titles = self._examples
        if not titles:
            return None
        if self._decide is None and any(layer.counts for layer in self._model.plan):
            # Held, because caches are emptied when the program of a step changes.
            lowered = _decide.lower(variables, images, self._model)
            self._decide = lowered.compile()
        path = save_token_picture(
            self._workdir, self._model, variables, images, titles, self._decide
        )
        if path is None:
            return None
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
            picture.thumbnail((WIDEST, 16 * WIDEST))
            return np.asarray(picture)


def sheet(images):
    """Images side by side in rows of up to four: [B, S, S, 3] -> [H, W, 3].

    Small ones are enlarged; empty places are white.
    """
    scale = math.ceil(SMALLEST / images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    columns = min(4, len(images))
    missing = -len(images) % columns
    images = np.pad(images, [(0, missing), *[(0, 0)] * 3], constant_values=255)
    rows = [np.concatenate(row, 1) for row in np.split(images, len(images) // columns)]
    return np.concatenate(rows, axis=0)


def examples(source, transform, count):
    """Up to `count` readable test images, transformed, and their titles.

    They are spread over the split, which is often sorted by class.
    """
    count = min(count, len(source))
    images, titles = [], []
    for i in range(count):
        try:
            image, label = source.read(i * len(source) // count)
        except UnreadableImage:
            continue
        images.append(transform(image))
        name = source.class_names and source.class_names[label]
        titles.append(name or f"label {label}")
    return np.array(images), titles


def save_token_picture(workdir, model, variables, images, titles, decide=None):
    """Write a PNG of the tokens of some test images; returns its path.

    images: uint8 [B, H, W, 3]. Blocks after a soft reduction, whose tokens hold a share
    of every patch, are left out; None, and no file, where no block remains. decide:
    `_decide`, if compiled already. RunError where it cannot be written.
    """
    reducing = [i for i, layer in enumerate(model.plan) if layer.counts]
    decide = decide or functools.partial(_decide, model=model)
    dests = decide(variables, images) if reducing else []
    if not dests:
        return None

    images, grid = whole_patches(images, model.patch_size)
    patches = np.arange(math.prod(grid), dtype=np.int32)
    source = np.broadcast_to(patches, (len(images), len(patches)))
    stages = []
    for block, dest in zip(reducing, dests, strict=False):
        source = np.asarray(compose(dest, source))
        stages.append((f"block {block}", source))
    path = pathlib.Path(workdir) / PICTURE
    maps = [[(title, stage[i]) for title, stage in stages] for i in range(len(images))]
    plotting.token_page(path, images, maps, grid, titles)
    return path


@functools.partial(jax.jit, static_argnames="model")
def _decide(variables, images, model):
    """The slot map of every reduction up to the first soft one."""
    images = normalize(images, model.mean, model.std)
    results = model.apply(variables, images).results
    hard = itertools.takewhile(lambda r: isinstance(r, Assignment), results)
    return [result.dest for result in hard]
