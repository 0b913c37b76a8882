"""Arguments shared by several commands: weights, images with labels, images.

Fields have the names of the Python functions' arguments, and their comments are what
--help prints. tyro takes positional words in the order of these classes in a command's
signature.
"""

import dataclasses
import os
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from imagepiece_jax.errors import InputError


def option_values(name: str, values: tuple | None) -> tuple:
    """Values of a repeatable option; () if it is not typed."""
    if values == ():
        raise InputError(f"{name} has no value; it must have one or more")
    return values or ()


# Positional words are fields, never a command's own parameters: tyro would take a
# positional of the function itself first.


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights, and the arguments of `imagepiece_jax.load`."""

    # A .npz, .safetensors or .pth file, a folder with config.json and weights, the
    # folder of a run, or hf://OWNER/NAME.
    weights: Annotated[str, Positional, arg(metavar="WEIGHTS")]
    # A share of the dense model's MACs, such as 0.5, or a method: tome:r=8.
    reduction: str | None = None
    image_size: tuple[int, ...] | None = None  # Pixels per side, or height and width.
    # The model, if the weights do not name it: timm's name of a public model, or a
    # folder with its config.json.
    config: str | None = None
    # The layers' data type.
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    attention: Literal["xla", "cudnn"] | None = None  # The attention implementation.
    # For a run best or latest; for a file of several models, the key of one.
    checkpoint: str | None = None
    averaged: bool = False  # Use a run's weights averaged over its steps.
    # The center crop's side, as a share of the resized image's side.
    crop: float | None = None
    # 0 removes the head: the model gives vectors.
    num_classes: Literal[0] | None = None

    def typed_options(self) -> dict[str, Any]:
        """The typed arguments apart from the weights, by name."""
        options = {}
        for name, value in vars(self).items():
            if name != "weights" and value is not None and value is not False:
                options[name] = value
        if self.image_size is not None and len(self.image_size) == 1:
            (options["image_size"],) = self.image_size
        return options

    def _refuse_options(self, problem, allowed_names=()):
        """Refuse typed arguments except `allowed_names`; the weights are `problem`."""
        for name, value in self.typed_options().items():
            if name not in allowed_names:
                raise InputError(f"{name} is {value}, but {self.weights} is {problem}")

    def refuse_reduction(self) -> None:
        """Refuse a typed reduction, in a command of `reductions`."""
        if self.reduction is not None:
            words = f"--reductions {self.reduction}, which takes several"
            raise InputError(f"reduction is {self.reduction}; type {words}")

    # Without hints of results, because JAX would be imported, and --help needs none.

    def open_exported(self):
        """Open an exported file as an ExportedProgram; None if it is weights."""
        from imagepiece_jax.models.program import is_exported, open_program

        if not is_exported(self.weights):
            return None
        self._refuse_options("an exported program; export the weights again with it")
        return open_program(self.weights)

    def load_model(self, **more_options):
        """Load the model, with more arguments of `imagepiece_jax.load`."""
        from imagepiece_jax import load

        return load(self.weights, **self.typed_options(), **more_options)


@dataclasses.dataclass(frozen=True)
class Model(Weights):
    """A model, by its weights or its name, and the arguments of `load`."""

    # Weights as other commands take them, or timm's name of a public model.
    weights: Annotated[str, Positional, arg(metavar="MODEL")]

    def create_named(self):
        """Create a named ViT; None for a file, a folder or hf://OWNER/NAME.

        Raises InputError for an unknown name, and for arguments that need weights.
        """
        from imagepiece_jax.models.create import create_model

        path = os.path.expanduser(self.weights)
        if os.path.exists(path) or path.startswith("hf://"):
            return None
        allowed_names = ("reduction", "image_size", "dtype", "attention")
        self._refuse_options("no file or folder", allowed_names)
        return create_model(self.weights, **self.typed_options())


@dataclasses.dataclass(frozen=True)
class Data:
    """Images with labels, and how to read them."""

    # A folder with a folder of images for each class, or a set such as csv:FILE,
    # hf:OWNER/NAME, imagenet2012 or digits; without it, the run's validation data.
    data: Annotated[str | None, Positional, arg(metavar="DATA")] = None
    data_dir: str | None = None  # Folder of imagenet2012's files.
    limit: int | None = None  # Number of images, evenly spaced over the set.
    batch_size: int | None = None  # Images per batch; if unset the run's, or 512.
    workers: int | None = None  # Worker processes; if unset the run's, or 8.
    # Decoding threads per process; if unset the run's, or 2.
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """Images without labels."""

    # Images, folders of images, and .txt files with one path per line. If an image
    # cannot be read, the others' results are written, and the exit status is 1.
    images: Annotated[tuple[str, ...], Positional, arg(metavar="IMAGE")]
