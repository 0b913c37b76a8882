"""The methods by name: a new one is a file in this folder and a line in `METHODS`."""

import collections
import dataclasses
import importlib

from imagepiece_jax.common.fields import plain
from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods.method import Method


class _Methods(collections.UserDict):
    """{name of a method: its class}; the class is in the file with the method's name.

    A class is imported when it is first used, so that a program loads only the method
    that it runs.
    """

    def __getitem__(self, name) -> type[Method]:
        kind = self.data[name]
        if isinstance(kind, str):
            kind = getattr(importlib.import_module(f"{__name__}.{name}"), kind)
            self.data[name] = kind
        return kind


METHODS = _Methods(
    none="NoReduction",
    imagepiece="ImagePiece",
    evit="EViT",
    dynamicvit="DynamicViT",
    spvit="SPViT",
    tome="ToMe",
    token_learner="TokenLearner",
    token_pooling="TokenPooling",
    diffrate="DiffRate",
    attended="Attended",
    pitome="PiToMe",
    tofu="ToFu",
    mctf="MCTF",
    dtem="DTEM",
    dpc_knn="DpcKnn",
    atc="ATC",
    random="Random",
    grid_pooling="GridPooling",
    imagepiece_tome="ImagePieceToMe",
    imagepiece_dynamicvit="ImagePieceDynamicViT",
)


AUTO = "auto"  # stands for the method that is recommended for a model


def names() -> list[str]:
    """The names that a reduction may have."""
    return sorted([*METHODS, AUTO])


def name_of(method: Method) -> str:
    """The name of a method; "none" for one that is not in METHODS."""
    kind = type(method)
    if kind is Method:
        return AUTO
    METHODS.get(kind.__module__.rpartition(".")[2])  # imports this class alone
    return next((k for k, v in METHODS.data.items() if v is kind), "none")


def known_name(name: str) -> str:
    """The name that METHODS has; "dense", as labels call it, is "none".

    Raises InputError for the name of no method.
    """
    found = plain(name)
    if found == "dense":
        return "none"
    if found not in names():  # a list as a name has no hash
        hint = "a share of the MACs such as 0.5 needs no name"
        raise InputError("name", name, names(), hint=hint)
    return found


def create(name: str = "none", **fields) -> Method:
    """Make a method.

    name: one of METHODS, or "auto"
    fields: fields of `config.reduction` that differ from the method's defaults
    Raises InputError for an unknown name, field or value.
    """
    name = known_name(name)
    kind = Method
    if name != AUTO:
        kind = METHODS[name]
    shared = [field.name for field in dataclasses.fields(Method)]
    in_order = sorted(  # those of inference first, those of all methods last
        dataclasses.fields(kind),
        key=lambda f: (f.name in shared, f.metadata.get("training", False)),
    )
    allowed = [field.name for field in in_order]
    for field in fields:
        if field not in allowed:
            problem = f"is not a field of reduction {name!r}"
            raise InputError(field, field, allowed, problem=problem)
    return kind(**fields)
