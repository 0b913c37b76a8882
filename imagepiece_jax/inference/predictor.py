"""What does `import imagepiece_jax` offer? Models, weights, speed and predictions.

    model, variables = load("deit_tiny_patch16_224.pth")
    fast = optimize(model, variables, batch_size=64)
    logits = fast(images)

The package itself imports this file when one of its names is used.
"""

import pathlib
import warnings
from typing import NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.inference.optimize import image_side, optimize
from imagepiece_jax.models import convert, pretrained, summary
from imagepiece_jax.models.registry import MODELS, create_model

__all__ = ["Prediction", "Predictor", "create_model", "load", "optimize"]


def load(path, *, checkpoint="best", **fields):
    """(model, variables) of a weights file, or of the folder of a run.

    A file (.npz, .safetensors, .pth) is a timm state dict: sizes, stem and classes are
    told by its tensors. A run's folder tells them by its config; `checkpoint` is "best"
    or "latest". `fields` are those of create_model that are to differ or cannot be
    told, such as reduction={"name": "evit", "keep_rate": 0.7}; another image_size
    resizes the position embeddings. A run's model has its `class_names`, unless
    others, of the same classes, are given to be shown. A file that
    does not tell mean and std gets ImageNet's, with a warning; mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5) are those of the AugReg ViTs. InputError for what does not fit,
    and for a field that contradicts the weights.
    """
    size = MODELS.get(str(fields.get("name")), {}) | fields
    told = pretrained.read(path, size.get("num_heads"))
    own = {k: v for k, v in told.reduction.items() if k not in pretrained.MODEL_FIELDS}
    given = {"reduction": own, "class_names": pretrained.class_names(path)}
    fields = given | told.changed(fields)
    if "mean" not in fields:
        warnings.warn(pretrained.untold(path, "mean=.., std=.."), stacklevel=2)
    if told.config is not None:
        from imagepiece_jax.training import initial_weights  # and with it orbax

        model, like = _model(fields)
        return model, initial_weights.load(told.path, like, which=checkpoint)
    try:
        model, like = _model(fields)
    except InputError as error:
        raise InputError(f"weights file {path}: {error}") from error
    return model, convert.load(told.path, like, hint=False)


def _model(fields):
    """The model and the shapes of its variables."""
    model = create_model(**fields)
    return model, summary.shapes(model, fields["image_size"])


class Prediction(NamedTuple):
    """One of the classes that an image may show; `label` is its name, or its index."""

    label: str | int
    index: int
    probability: float


class Predictor:
    """What is on these pictures? Called with images, gives the likeliest classes.

    variables: as from `load`; labels: a name for each class, None for the model's own
    (`class_names`, as a run has them) or, without any, indices; top: how many classes,
    None for 5, or all of fewer; resize: "deit" is evaluation's crop, "none" for images
    that have the right size; batch_size and `options` are `optimize`'s.
    """

    def __init__(
        self,
        model,
        variables,
        *,
        labels=None,
        top=None,
        batch_size=32,
        resize="deit",
        **options,
    ):
        from imagepiece_jax.data import transforms

        if labels is not None and len(labels) != model.num_classes:
            raise InputError(
                f"labels has {len(labels)} names; the model has {model.num_classes} "
                "classes"
            )
        top = min(5, model.num_classes) if top is None else top
        if not 1 <= top <= model.num_classes:
            raise InputError(f"top is {top}; allowed are 1 to {model.num_classes}")
        side = image_side(model, variables)
        self._labels = model.class_names if labels is None else labels
        self._top = top
        self._transform = transforms.EvalTransform(side, resize=resize)
        self.program = optimize(
            model, variables, batch_size=batch_size, pixels=True, **options
        )

    def __call__(self, images):
        """A list of `top` Predictions for each image, the likeliest first.

        images: a list of, or one of: the path of a file, a PIL image (both turned as
        their EXIF orientation says), an array [H, W, 3] uint8. One alone gives its list
        alone. InputError for anything else, with the place of the image.
        """
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
        """[S, S, 3] uint8 as the program takes them."""
        try:
            return self._transform(_rgb(image))
        except InputError as error:
            raise InputError(f"image {place}: {error}") from error

    def _best(self, logits):
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        order = np.argsort(-logits, kind="stable")[: self._top].tolist()
        names = [None] * len(logits) if self._labels is None else self._labels
        return [
            Prediction(i if names[i] is None else names[i], i, float(odds[i]))
            for i in order
        ]


def _rgb(image):
    """Pixels [H, W, 3] uint8 of a file, a PIL image (both upright) or an array."""
    from imagepiece_jax.data import decode

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
