"""Token reduction for vision transformers in JAX: ImagePiece and its baselines.

The public API is `create_model`, `load`, `save`, `optimize`, `Predictor`, `features`.
Each is imported on first access, so that `import imagepiece_jax` costs nothing.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from imagepiece_jax.inference.optimize import optimize
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.models.features import features
    from imagepiece_jax.models.registry import create_model
    from imagepiece_jax.pretrained.load import load
    from imagepiece_jax.pretrained.save import save

__version__ = "0.2.0"
__all__ = ["Predictor", "create_model", "features", "load", "optimize", "save"]

_HOMES = {
    "Predictor": "inference.predictor",
    "create_model": "models.registry",
    "features": "models.features",
    "load": "pretrained.load",
    "optimize": "inference.optimize",
    "save": "pretrained.save",
}


def __getattr__(name: str):
    if name in _HOMES:
        public = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        if not isinstance(public, type):
            public = importlib.import_module(f"{__name__}.errors").of_keywords(public)
            public.__module__ = __name__  # where pickle finds it
        return globals().setdefault(name, public)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
