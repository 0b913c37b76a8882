"""The methods by name: a new one is a file in this folder and a line in `METHODS`."""

import collections
import dataclasses
import importlib
import re

from imagepiece_jax.common.fields import number_in, plain
from imagepiece_jax.errors import InputError, suggestion
from imagepiece_jax.reduction.methods.method import Method


class _Methods(collections.UserDict):
    """{name of a method: its class}; the class is in the file with the method's name.

    A class is imported when it is first used, so that a program loads only the method
    that it runs.
    """

    def __getitem__(self, name) -> type[Method]:
        kind = self.data[name]
        if isinstance(kind, str):
            kind = _imported(name, kind)
            self.data[name] = kind
        return kind


def _imported(name, kind):
    """The class `kind` in the file of a method. Raises InputError without one."""
    path = f"{__name__}.{name}"
    line = f"METHODS has {name}={kind!r},"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:  # the file is there, but a module that it imports is not
            raise
        allowed = "files of reduction/methods"
        problem = f"but there is no {name}.py"
        raise InputError(allowed=allowed, problem=problem, place=line) from None
    if not hasattr(module, kind):
        names = [each for each in vars(module) if not each.startswith("_")]
        hint = suggestion(kind, names, "name a class of that file")
        problem = f"but {name}.py has no {kind}"
        raise InputError(value=kind, problem=problem, place=line, hint=hint)
    return getattr(module, kind)


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


def spelled(name: str) -> str:
    """The name that METHODS has of a method: of "ToMe" and "token-learner", too.

    "dense", as labels call it, is "none". A name of no method stays as it is.
    """
    known = {each.replace("_", ""): each for each in names()}
    known["dense"] = "none"
    return known.get(re.sub(r"[\W_]", "", name.lower()), name)


def name_of(method: Method) -> str:
    """The name of a method; "none" for one that is not in METHODS."""
    kind = type(method)
    if kind is Method:
        return AUTO
    METHODS.get(kind.__module__.rpartition(".")[2])  # imports this class alone
    return next((k for k, v in METHODS.data.items() if v is kind), "none")


def known_name(name: str) -> str:
    """`spelled`. Raises InputError for the name of no method."""
    found = plain(name)
    if isinstance(found, str):
        found = spelled(found)
    if found not in names():  # a list as a name has no hash
        cost = number_in(str(name).replace(",", "."))
        if cost is not None and 0 < cost <= 1:
            hint = f"did you mean {cost:g}, which is {AUTO!r} with macs={cost:g}?"
            raise InputError("name", name, hint=hint)
        hint = "a share of the MACs such as 0.5 needs no name"
        raise InputError("name", name, names(), hint=hint)
    return found


def create(name: str = "none", **fields) -> Method:
    """Make a method.

    name: one of METHODS, or "auto", in any spelling
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
