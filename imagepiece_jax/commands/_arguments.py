"""Arguments that several commands share: weights, images with labels, images.

Their fields are the words of Python's functions. tyro takes positional words in the
order of these classes in a command's signature: a positional of the function itself
would be taken first.
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from imagepiece_jax.common.checks import check_range
from imagepiece_jax.errors import InputError

if TYPE_CHECKING:  # they import JAX, which --help does not need
    from imagepiece_jax.config.labeled import LabeledImages
    from imagepiece_jax.deploy.inference.onnx_program import OnnxProgram
    from imagepiece_jax.models.pretrained import Pretrained
    from imagepiece_jax.models.vit import ViT


def several(name: str, values: tuple | None) -> tuple:
    """The values of an option that takes several; () if it is not typed.

    Raises InputError if it is typed without a value.
    """
    if values == ():
        raise InputError(f"{name} has no value; it must have one or more")
    return values or ()


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights, and the arguments of `imagepiece_jax.load`."""

    weights: Annotated[str, Positional, arg(metavar="WEIGHTS")]
    """A .npz, .safetensors or .pth file, a folder with config.json and weights, the
    folder of a run, or hf://OWNER/NAME."""

    reduction: str | None = None
    """A share of the dense model's MACs, such as 0.5, or a method: tome:r=8."""

    image_size: int | tuple[int, int] | None = None
    """Pixels a side, or height and width."""

    config: str | None = None
    """What the model is if the weights do not say it: timm's name of a public model, or
    a folder with its config.json."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the layers' numbers."""

    attention: Literal["xla", "cudnn"] | None = None
    """What computes attention."""

    checkpoint: str | None = None
    """best or latest of a run; the key of one model in a file of several."""

    averaged: bool = False
    """Take a run's averages of the weights over its steps."""

    crop: float | None = None
    """Share of each side of the resized image that the center crop keeps."""

    num_classes: int | None = None
    """0 leaves the head out: the model gives vectors."""

    def exported(self) -> "OnnxProgram | None":
        """The program of an .onnx file; None if the argument is weights.

        Raises InputError for arguments that need weights.
        """
        if not self.weights.lower().endswith(".onnx"):
            return None
        from imagepiece_jax.deploy.inference.onnx_program import OnnxProgram

        for name, value in vars(self).items():
            if name != "weights" and value is not None and value is not False:
                text = f"{name} is {value}, but {self.weights} is an exported program"
                raise InputError(text)
        return OnnxProgram(self.weights)

    def load(self, **others: Any) -> "Pretrained":
        """The model, by `imagepiece_jax.load`, which takes `others`, too."""
        from imagepiece_jax import load

        if self.weights.lower().endswith(".onnx"):
            raise InputError(
                f"{self.weights} is an exported program, which benchmark and evaluate "
                "take; others take the weights that it was made of"
            )
        given = {name: value for name, value in vars(self).items() if value is not None}
        return load(**given, **others)


@dataclasses.dataclass(frozen=True)
class Model(Weights):
    """A model, by its weights or by its name, and the arguments of `load`."""

    weights: Annotated[str, Positional, arg(metavar="MODEL")]
    """Weights as other commands take them, or timm's name of a public model."""

    def named(self) -> "ViT | None":
        """The model of a name; None if the argument is a file or a folder.

        Raises InputError for an unknown name, and for arguments that need weights.
        """
        from imagepiece_jax.models.create import create_model

        path = os.path.expanduser(self.weights)
        if os.path.exists(path) or path.startswith("hf://"):
            return None
        for name in ("config", "checkpoint", "averaged", "crop", "num_classes"):
            value = getattr(self, name)
            if value is not None and value is not False:
                text = f"{name} is {value}, but {self.weights} is no file or folder"
                raise InputError(text)
        options = {}
        for name in ("image_size", "dtype", "attention"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        return create_model(self.weights, self.reduction, **options)


@dataclasses.dataclass(frozen=True)
class Data:
    """Images with labels, and how they are read."""

    data: Annotated[str | None, Positional, arg(metavar="DATA")] = None
    """A folder with a folder of images for each class, csv:FILE, hf:OWNER/NAME,
    imagenet2012 or digits; without it, what a run was tested on."""

    data_dir: str | None = None
    """Folder of imagenet2012's files."""

    limit: int | None = None
    """How many images to take, evenly spaced over the set."""

    batch_size: int | None = None
    """Images at once: the run's, or 512."""

    workers: int | None = None
    """Processes that read: the run's, or 8."""

    threads: int | None = None
    """Decoding threads in each process: the run's, or 2."""

    def open(self, vit: "Pretrained") -> "LabeledImages":
        """The images that a model is tested on."""
        from imagepiece_jax.config.labeled import labeled_images

        self.check()
        return labeled_images(
            vit,
            self.data,
            data_dir=self.data_dir,
            limit=self.limit,
            batch=self.batch_size,
            workers=self.workers,
            threads=self.threads,
        )

    def check(self):
        """Raise InputError for a number below its least."""
        least = {"limit": 1, "batch_size": 1, "workers": 0, "threads": 0}
        for name, bound in least.items():
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), bound)


@dataclasses.dataclass(frozen=True)
class Images:
    """Images without labels."""

    images: Annotated[tuple[str, ...], Positional, arg(metavar="IMAGE")]
    """Images, folders of images, and .txt files with a path a line."""
