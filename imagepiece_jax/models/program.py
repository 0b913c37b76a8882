"""Exported programs, and the table of their formats."""

import importlib
import os
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.errors import InputError

if TYPE_CHECKING:  # JAX is imported here, but the table does not need it
    import numpy as np

    from imagepiece_jax.models.config import ViTConfig
    from imagepiece_jax.models.pretrained import Origin
    from imagepiece_jax.models.vit import ViT

# {ending of a file: module with its format's functions}. The first is a folder's. The
# modules' libraries are optional, so `import_format` imports the one that is needed.
FORMAT_MODULES = {
    ".onnx": "imagepiece_jax.exporters.onnx_format",
    ".tflite": "imagepiece_jax.exporters.litert_format",
}


class ExportedProgram(Protocol):
    """An exported program, which has its weights inside."""

    model: "ViT"  # the model of the program: token counts and dtype
    config: "ViTConfig"  # its sizes, head and image preparation
    class_names: tuple[str | None, ...] | None
    origin: "Origin"
    facts: Mapping[str, Any]  # the JSON beside the file
    batch_size: int | None  # images per call; None: any number

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""

    def __call__(
        self, pixels: "np.ndarray", name: str = "logits", batch_size: int | None = None
    ) -> "np.ndarray":
        """Compute the named output. uint8 [B, H, W, 3] -> [B, ..].

        batch_size: images at once of a program that takes any number; None: all
        """

    def prepared_call(self, pixels: "np.ndarray") -> Callable[[], Any]:
        """A function that computes the images, which are prepared before."""


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a file's name is an exported program's."""
    return pathlib.PurePath(path).suffix.lower() in FORMAT_MODULES


def import_format(path: str | os.PathLike) -> types.ModuleType:
    """Import the format of an exported file."""
    if not is_exported(path):
        endings = " or ".join(FORMAT_MODULES)
        raise InputError(f"{path} does not end in {endings}; load takes weights")
    ending = pathlib.PurePath(path).suffix.lower()
    return importlib.import_module(FORMAT_MODULES[ending])


def open_program(path: AnyPath, threads: int | None = None) -> ExportedProgram:
    """Open an exported file, described by its JSON.

    threads: of the CPU; None: all devices, and as many threads as cores
    Raises InputError if its runtime cannot load the file, or export's JSON is missing.
    """
    return import_format(path).open_file(path, threads)
