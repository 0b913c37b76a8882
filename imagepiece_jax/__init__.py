"""Token reduction for vision transformers in JAX: ImagePiece and its baselines.

`load` returns a `Pretrained` for `recover`, `optimize`, `Predictor`, `features`, `save`
and `export`. `create_model` makes a model without weights. `read_config` reads a
`ViTConfig`, the description of a model. Public names are imported on first access, so
`import imagepiece_jax` costs nothing.
"""

import importlib
import typing

from imagepiece_jax.common.version import __version__ as __version__

if typing.TYPE_CHECKING:
    from imagepiece_jax.data.normalize import normalize
    from imagepiece_jax.data.preprocessing import Preprocessing
    from imagepiece_jax.errors import InputError, RunError
    from imagepiece_jax.evaluation.compare import compare
    from imagepiece_jax.evaluation.evaluate import evaluate
    from imagepiece_jax.exporters.export import export
    from imagepiece_jax.inference.feature_store import read_features
    from imagepiece_jax.inference.features import features
    from imagepiece_jax.inference.optimize import ProgramOptions, optimize
    from imagepiece_jax.inference.predictor import Predictor
    from imagepiece_jax.models.config import ViTConfig
    from imagepiece_jax.models.create import create_model
    from imagepiece_jax.models.pretrained import Pretrained
    from imagepiece_jax.recovery.recover import recover
    from imagepiece_jax.reduction.methods import METHODS
    from imagepiece_jax.reduction.reduction import Reduction
    from imagepiece_jax.weights.description import read_config
    from imagepiece_jax.weights.load import load
    from imagepiece_jax.weights.save import save

__all__ = ["METHODS", "InputError", "Predictor", "Preprocessing", "Pretrained"]
__all__ += ["ProgramOptions", "Reduction", "RunError", "ViTConfig", "compare"]
__all__ += ["create_model", "evaluate", "export", "features", "load", "normalize"]
__all__ += ["optimize", "read_config", "read_features", "recover", "save"]

_HOMES = {
    "InputError": "errors",
    "METHODS": "reduction.methods",
    "Predictor": "inference.predictor",
    "Preprocessing": "data.preprocessing",
    "Pretrained": "models.pretrained",
    "Reduction": "reduction.reduction",
    "ProgramOptions": "inference.optimize",
    "RunError": "errors",
    "ViTConfig": "models.config",
    "compare": "evaluation.compare",
    "create_model": "models.create",
    "evaluate": "evaluation.evaluate",
    "export": "exporters.export",
    "features": "inference.features",
    "load": "weights.load",
    "normalize": "data.normalize",
    "optimize": "inference.optimize",
    "read_config": "weights.description",
    "read_features": "inference.feature_store",
    "recover": "recovery.recover",
    "save": "weights.save",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        # From now on Python finds the name without this function.
        return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", *__all__]
