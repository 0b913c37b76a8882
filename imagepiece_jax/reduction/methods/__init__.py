"""Methods by name. To add a method, add a file here and a line in `METHODS`."""

import collections
import importlib
from importlib import metadata

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction.methods.method import Method

ENTRY_POINTS = "imagepiece_jax.methods"  # the group of other packages' methods


class _Methods(collections.UserDict):
    """{method name: class}; the file with the method's name holds the class."""

    # Classes are imported on first use: a program loads only the method it runs.
    def __getitem__(self, key: str) -> type[Method]:
        method_class = self.data[key]
        if isinstance(method_class, str):
            module = importlib.import_module(f"{__name__}.{key}")
            method_class = getattr(module, method_class)
            self[key] = method_class
        return method_class

    def __setitem__(self, key: str, item: str | type[Method]) -> None:
        """Set a method's class, or the name of a class to import on first use."""
        is_dataclass = "__dataclass_fields__" in getattr(item, "__dict__", ())
        if not (is_dataclass or isinstance(item, str)):  # its fields would be lost
            decorator = "@dataclasses.dataclass(frozen=True)"
            raise InputError(f"method {key} is {item}, no class with {decorator}")
        self.data[key] = item


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
    peaks="Peaks",
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


def find_method(name: str) -> type[Method] | None:
    """Find a method's class in METHODS, or by another package's entry point."""
    if name not in METHODS:
        for entry_point in metadata.entry_points(group=ENTRY_POINTS, name=name):
            try:
                METHODS[name] = entry_point.load()
            except (ImportError, AttributeError) as error:
                raise InputError(f"method {name}: {error}") from error
    return METHODS.get(name)
