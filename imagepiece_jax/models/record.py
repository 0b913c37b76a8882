"""JSON record of everything that decides a model's results.

Code that resumes or uses an earlier result compares records: feature files, and lines
of `compare`. Records hold whole objects, so new fields are never missed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION

FLAX_FIELDS = ("parent", "name")  # of every Flax module, without effect on results


def model_record(
    pretrained: Pretrained, model: ViT | None = None, **other_values: Any
) -> dict[str, Any]:
    """Make the record of a model with its weights.

    model: the ViT that computes, for example reduced; None: `pretrained.model`
    other_values: further values that decide the results, for `as_json`
    """
    model = model or pretrained.model
    return {
        "reduction": str(model.reduction or DENSE_REDUCTION),
        "weights": pretrained.digest,
        "preprocessing": pretrained.preprocessing.as_json,
        **as_json(other_values),
        "model": as_json(model),
    }


def as_json(value: Any) -> Any:
    """Convert a value to JSON types, with all fields of nested dataclasses.

    A dataclass becomes a dict with its name under "is". Fields with compare=False are
    left out. So are None, () and empty sets: an unused new field changes no record.
    Raises TypeError for any other object, because a part of it could be missed.
    """
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype | type):  # jnp.float32 is a type
        return jnp.dtype(value).name
    if isinstance(value, frozenset | set):
        return sorted(map(as_json, value))
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{value!r} has no form in a record")
    record = {"is": type(value).__name__}
    for field in dataclasses.fields(value):
        if isinstance(value, nn.Module) and field.name in FLAX_FIELDS:
            continue
        field_value = getattr(value, field.name)
        if field.compare and field_value not in (None, (), frozenset()):
            record[field.name] = as_json(field_value)
    return record


def list_differences(
    our_record: Mapping[str, Any], their_record: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """List (field, our value, their value) for every difference between records."""
    differences = []
    for name in {**our_record, **their_record}:
        our_value = our_record.get(name)
        their_value = their_record.get(name)
        if our_value == their_value:
            continue
        if isinstance(our_value, Mapping) and isinstance(their_value, Mapping):
            differences += list_differences(our_value, their_value)
        else:
            differences.append((name, our_value, their_value))
    return differences
