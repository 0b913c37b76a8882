"""Packages that a plain installation leaves out, and the extras that bring them.

`pip install imagepiece_jax` brings what the package's public functions import. Whatever
imports more does it inside `needed`, or is preceded by a `check`.
"""

import contextlib
import importlib.util

from imagepiece_jax.errors import InputError

# extra: {module: the package that it is installed by}, as in pyproject.toml
EXTRAS = {
    "train": {
        "absl": "absl-py",
        "cv2": "opencv-python-headless",
        "importlib_resources": "importlib_resources",
        "matplotlib": "matplotlib",
        "ml_collections": "ml-collections",
        "orbax": "orbax-checkpoint",
        "simplejpeg": "simplejpeg",
        "tensorboardX": "tensorboardX",
        "tensorflow_datasets": "tensorflow-datasets",
    },
    "hub": {"huggingface_hub": "huggingface_hub"},
    "hub-data": {"datasets": "datasets"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "openvino": "openvino"},
    "torch": {"timm": "timm", "torch": "torch"},
}


@contextlib.contextmanager
def needed(what: str):
    """Context in which a failed import raises InputError, if an extra installs it.

    what: what needs the import, in words, such as "a config file"
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        if extra_of(name) is None:
            raise
        raise missing(what, name) from error


def check(what: str, *modules: str):
    """Raise InputError for the first of these modules that is not installed.

    what: what needs them, in words
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise missing(what, module)


def missing(what: str, module: str) -> InputError:
    """The InputError for a missing module; it names the extra to install."""
    extra = extra_of(module)
    library = EXTRAS[extra][module]
    return InputError(
        f"{what} needs {library}, which is not installed; install it: {command(extra)}"
    )


def extra_of(module: str) -> str | None:
    """The extra that brings a module, or None."""
    return next((extra for extra in EXTRAS if module in EXTRAS[extra]), None)


def command(extra: str) -> str:
    """The command that installs an extra beside the package."""
    return f'pip install ".[{extra}]" in the clone'
