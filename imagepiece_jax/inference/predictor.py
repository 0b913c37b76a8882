"""Predictions for images: the most probable classes of files, PIL images or arrays."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.data import decode, transforms
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.optimize import model_image_size, optimize
from imagepiece_jax.models.vit import ViT


class Prediction(NamedTuple):
    """One of the classes that an image may show; `label` is its name, or its index."""

    label: str | int
    index: int
    probability: float


class Predictor:
    """A compiled classifier: called with images, it returns the most probable classes.

    variables: as from `load`; labels: a name for each class, None for the model's own
    (`class_names`, as a run has them) or, without any, indices; top: how many classes,
    None for 5, or all of fewer; resize: "deit" is DeiT's crop of evaluation, "none" for
    images that have the right size, None the weights' own crop where it is known
    (`model.preprocessing`), else DeiT's; batch_size and `options` are `optimize`'s.
    """

    def __init__(
        self,
        model: ViT,
        variables: Mapping[str, Any],
        *,
        labels: Sequence[str] | None = None,
        top: int | None = None,
        batch_size: int = 32,
        resize: str | None = None,
        **options: Any,
    ):
        if labels is not None and len(labels) != model.num_classes:
            raise InputError(
                f"labels has {len(labels)} names; the model has {model.num_classes} "
                "classes"
            )
        if not model.num_classes:
            raise InputError(
                "the model has no classes to predict; allowed are models with a head, "
                "such as load(num_classes=..) makes, or imagepiece_jax.features"
            )
        top = min(5, model.num_classes) if top is None else top
        if not 1 <= top <= model.num_classes:
            raise InputError(f"top is {top}; allowed are 1 to {model.num_classes}")
        size = model_image_size(model, variables)
        self._labels = model.class_names if labels is None else labels
        self._top = top
        self._transform = _transform(size, resize, model.preprocessing)
        self.program = optimize(
            model, variables, batch_size=batch_size, pixels=True, **options
        )

    def __call__(self, images) -> list:
        """A list of `top` Predictions for each image, the most probable first.

        images: a list of, or one of: the path of a file, a PIL image (both turned as
        their EXIF orientation says), an array [H, W, 3] uint8; or several of these as
        one array [B, H, W, 3]. One alone gives its list alone. InputError for anything
        else, with the place of the image.
        """
        if getattr(images, "ndim", 0) == 4:
            images = list(images)
        if not isinstance(images, list | tuple):
            return self([images])[0]
        found, size = [], self.program.batch_size
        for start in range(0, len(images), size):
            part = images[start : start + size]
            pixels = [self._pixels(image, start + i) for i, image in enumerate(part)]
            logits = np.asarray(self.program(np.stack(pixels)))
            found += [self._best(row) for row in logits]
        return found

    def _pixels(self, image, place):
        """[H, W, 3] uint8 as the program takes them."""
        try:
            return self._transform(_rgb(image))
        except InputError as error:
            raise InputError(f"image {place}: {error}") from error

    def _best(self, logits):
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-logits, kind="stable")[: self._top].tolist()
        names = [None] * len(logits) if self._labels is None else self._labels
        return [
            Prediction(i if names[i] is None else names[i], i, float(probabilities[i]))
            for i in order
        ]


def _transform(size, resize, known):
    """Evaluation's crop: `known` of the weights, unless `resize` is given."""
    if resize is not None or known is None or known.crop is None:
        return transforms.EvalTransform(size, resize=resize or "deit")
    return transforms.EvalTransform(
        size,
        crop=known.crop,
        crop_mode=known.crop_mode,
        interpolation=known.interpolation,
    )


def _rgb(image):
    """Pixels [H, W, 3] uint8 of a file, a PIL image (both upright) or an array."""
    if isinstance(image, str | pathlib.Path):
        try:
            return decode.decode(image, str(image), upright=True)
        except decode.UnreadableImage as error:
            raise InputError(f"{error.name} cannot be read: {error.reason}") from error
    if hasattr(image, "convert"):
        try:
            return decode.rgb(image, upright=True)
        except Exception as error:  # Pillow reads files late and raises nearly anything
            raise InputError(f"the PIL image cannot be read: {error}") from error
    shape, dtype = getattr(image, "shape", ()), getattr(image, "dtype", None)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        found = type(image).__name__ if dtype is None else f"{dtype} {list(shape)}"
        raise InputError(
            f"found {found}; allowed are paths, PIL images and uint8 arrays [H, W, 3]"
        )
    return np.asarray(image)
