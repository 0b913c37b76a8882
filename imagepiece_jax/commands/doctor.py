"""Versions, devices, the attention kernel in use, and missing extras.

python -m imagepiece_jax doctor
"""

import importlib.metadata
import importlib.util
import platform

from imagepiece_jax import __version__, cli
from imagepiece_jax.common import extras
from imagepiece_jax.common.version import LIBRARIES

# extra -> (a module that it installs, its purpose)
EXTRAS = {
    "train": ("ml_collections", "training, evaluation and other commands"),
    "gpu": ("jax_cuda13_plugin", "NVIDIA GPUs"),
    "onnx": ("onnx", "ONNX files"),
    "hub": ("huggingface_hub", "weights of the Hugging Face hub"),
    "torch": ("timm", "comparisons with timm"),
    "dev": ("pytest", "tests"),
}


def main():
    """Print it all; last what needs JAX, whose import or devices may fail."""
    print(f"imagepiece_jax {__version__}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    for name in LIBRARIES:
        print(f"{name} {version(name)}")
    for extra, (module, purpose) in EXTRAS.items():
        state = f"missing: {extras.command(extra)}"
        if importlib.util.find_spec(module) is not None:
            state = "installed"
        print(f"extra {extra} ({purpose}): {state}", flush=True)
    try:
        import jax
    except ImportError as error:
        print(f"JAX cannot be imported: {error}")
        return
    from imagepiece_jax.models.attention import resolve_backend

    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    print(f"devices: {len(devices)} x {devices[0].platform} ({kinds})")
    for dtype in ("bfloat16", "float32"):
        print(f"attention in {dtype}: {resolve_backend('auto', dtype)}")


def version(name):
    """The installed version of a library, or how to install it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is missing: pip install imagepiece_jax"


if __name__ == "__main__":
    cli.run(main, compiles=False)
