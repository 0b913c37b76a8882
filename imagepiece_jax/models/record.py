"""What decides the results of a model, as one record of JSON.

Whatever goes on where it was stopped, or takes up an earlier result, compares records:
folders of features, the lines of `compare`, the teacher of a run. A record is built
from whole objects, so that a new field of theirs is in it by itself.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE

if TYPE_CHECKING:
    from imagepiece_jax.models.pretrained import Pretrained

OF_FLAX = ("parent", "name")  # fields of every module, which decide nothing
MAX_NAMED = 3  # differences that a sentence names


def record_of(
    vit: "Pretrained", model: ViT | None = None, **others: Any
) -> dict[str, Any]:
    """The record of a model with its weights.

    model: the form in which it computes; None: as it is
    others: what else decides the results, as values that `as_json` takes
    """
    model = model or vit.model
    return {
        "reduction": str(model.reduction or DENSE),
        "weights": vit.digest,
        "preprocessing": vit.preprocessing.as_json,
        **as_json(others),
        "model": as_json(model),
    }


def as_json(value: Any) -> Any:
    """A value as JSON reads it back, with all fields of the dataclasses in it.

    A dataclass is a dict with its name under "is". Fields that are no part of its
    equality are left out, and so are fields that are None or empty.
    Raises TypeError for any other object, of which something could be missed.
    """
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype | type):
        return jnp.dtype(value).name
    if isinstance(value, frozenset | set):
        return sorted(map(as_json, value))
    if isinstance(value, tuple | list):
        return [as_json(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): as_json(each) for name, each in value.items()}
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} has no form in a record")
    found = {"is": type(value).__name__}
    for field in dataclasses.fields(value):
        if isinstance(value, nn.Module) and field.name in OF_FLAX:
            continue
        own = getattr(value, field.name)
        if field.compare and own not in (None, (), frozenset()):
            found[field.name] = as_json(own)
    return found


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(field, value of ours, value of theirs) wherever two records differ."""
    found = []
    for name in ours | theirs:
        value = ours.get(name)
        other = theirs.get(name)
        if value == other:
            continue
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            found += differences(value, other)
        else:
            found.append((name, value, other))
    return found


def sentence(found: list[tuple[str, Any, Any]], place: str) -> str:
    """The first of `differences` in words, as a predicate of its field.

    place: what has the other record, and a verb: "vectors was started with"
    """
    (_, value, other), *more = found
    text = f"is {_short(value)}, but {place} {_short(other)}"
    if more:
        names = [name for name, *_ in more[: MAX_NAMED - 1]]
        text += f" (also different: {', '.join(names)})"
    return text


def _short(value):
    if value is None:
        return "none"
    return value if isinstance(value, str) else reprlib.repr(value)
