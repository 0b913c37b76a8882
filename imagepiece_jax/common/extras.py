"""Optional packages: their import follows `explained_imports` or `check_installed`."""

import contextlib
import importlib.util
from collections.abc import Iterator

from imagepiece_jax.errors import InputError

# {extra: {module: the package that installs it}}, as in pyproject.toml
EXTRA_MODULES = {
    "train": {
        "absl": "absl-py",
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
    "litert": {
        "ai_edge_litert": "ai-edge-litert",
        "litert_converter": "litert-converter",
    },
    "torch": {"timm": "timm", "torch": "torch"},
}


@contextlib.contextmanager
def explained_imports(feature: str) -> Iterator[None]:
    """Turn a missing module, which `feature` needs, into InputError with its extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        check_installed(feature, str(error.name).partition(".")[0])
        raise


def check_installed(feature: str, *modules: str) -> None:
    """Raise InputError for the first missing module of an extra, with its command."""
    for module in modules:
        for extra, package_of_module in EXTRA_MODULES.items():
            if module not in package_of_module or importlib.util.find_spec(module):
                continue
            command = f'pip install ".[{extra}]" in the clone'
            # It requires an xdsl, which what we import of it does not, and whose
            # typing-extensions are too old for chex.
            if module == "litert_converter":
                command = "pip install --no-deps litert-converter"
            problem = f"{feature} needs {package_of_module[module]}"
            raise InputError(f"{problem}, which is not installed: {command}")
