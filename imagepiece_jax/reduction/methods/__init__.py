"""The methods by name: a new one is a file in this folder and a line in `METHODS`."""

import dataclasses

from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.reduction.methods.atc import ATC
from imagepiece_jax.reduction.methods.diffrate import DiffRate
from imagepiece_jax.reduction.methods.dpc_knn import DpcKnn
from imagepiece_jax.reduction.methods.dtem import DTEM
from imagepiece_jax.reduction.methods.dynamicvit import DynamicViT
from imagepiece_jax.reduction.methods.evit import EViT
from imagepiece_jax.reduction.methods.grid_pooling import GridPooling
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.methods.imagepiece_dynamicvit import ImagePieceDynamicViT
from imagepiece_jax.reduction.methods.imagepiece_tome import ImagePieceToMe
from imagepiece_jax.reduction.methods.mctf import MCTF
from imagepiece_jax.reduction.methods.method import Method, NoReduction
from imagepiece_jax.reduction.methods.pitome import PiToMe
from imagepiece_jax.reduction.methods.random import Random
from imagepiece_jax.reduction.methods.spvit import SPViT
from imagepiece_jax.reduction.methods.tofu import ToFu
from imagepiece_jax.reduction.methods.token_learner import TokenLearner
from imagepiece_jax.reduction.methods.token_pooling import TokenPooling
from imagepiece_jax.reduction.methods.tome import ToMe

METHODS: dict[str, type[Method]] = {
    "none": NoReduction,
    "imagepiece": ImagePiece,
    "evit": EViT,
    "dynamicvit": DynamicViT,
    "spvit": SPViT,
    "tome": ToMe,
    "token_learner": TokenLearner,
    "token_pooling": TokenPooling,
    "diffrate": DiffRate,
    "pitome": PiToMe,
    "tofu": ToFu,
    "mctf": MCTF,
    "dtem": DTEM,
    "dpc_knn": DpcKnn,
    "atc": ATC,
    "random": Random,
    "grid_pooling": GridPooling,
    "imagepiece_tome": ImagePieceToMe,
    "imagepiece_dynamicvit": ImagePieceDynamicViT,
}


def name_of(method: Method) -> str:
    """The name of a method; "none" for one that is not in METHODS."""
    return next((k for k, v in METHODS.items() if v is type(method)), "none")


def create(name: str = "none", **fields) -> Method:
    """Make a method.

    name: one of METHODS
    fields: fields of `config.reduction` that differ from the method's defaults
    Raises InputError for an unknown name, field or value.
    """
    if name not in [*METHODS]:  # a list as a name has no hash
        word = str(name).lower().replace("-", "_")
        listed = f"the methods are {', '.join(sorted(METHODS))}"
        hint = suggestion(word, METHODS, listed)
        raise InputError(field="name", value=name, hint=hint)
    shared = [field.name for field in dataclasses.fields(Method)]
    allowed = sorted(  # those of inference first, those of all methods last
        dataclasses.fields(METHODS[name]),
        key=lambda f: (f.name in shared, f.metadata.get("training", False)),
    )
    allowed = [field.name for field in allowed]
    for field in fields:
        if field not in allowed:
            problem = f"is not a field of reduction {name!r}"
            hint = suggestion(field, allowed, f"allowed: {', '.join(allowed)}")
            raise InputError(problem, field=field, value=field, hint=hint)
    return METHODS[name](**fields)
