"""Token reduction for vision transformers: ImagePiece and its rivals in JAX.

`create_model`, `load`, `optimize` and `Predictor` are imported when they are used, so
that `import imagepiece_jax` costs nothing.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["Predictor", "create_model", "load", "optimize"]


def __getattr__(name):
    if name in __all__:
        return getattr(
            importlib.import_module("imagepiece_jax.inference.predictor"), name
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
