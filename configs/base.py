"""DeiT's recipe on ImageNet-1k (Touvron et al., 2021), as flags.

The fields, their defaults and their meanings are in imagepiece_jax/training/config.py,
of the groups data and augment in imagepiece_jax/data/config.py, and of model.arch in
imagepiece_jax/models/architecture.py. Any field can be changed on the command line:
--config.batch_size=256. The other files of this folder start from this one and state
only what differs.
"""

import dataclasses
import types
import typing

from ml_collections.config_dict import ConfigDict, FieldReference, placeholder

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.training.config import RunConfig


def get_config():
    """DeiT-S as its authors trained it: 300 epochs, 1,024 images a step."""
    config = group(RunConfig)
    config.lock()
    return config


def group(options):
    """The defaults of a dataclass; a field that may be None is a reference."""
    config = ConfigDict()
    for field in dataclasses.fields(options):
        value = field.default
        if dataclasses.is_dataclass(field.type):
            value = group(field.type)
        elif field.name == "arch":
            value = architecture()
        elif isinstance(field.type, types.UnionType):
            value = FieldReference(value, field_type=value_type(field))
        config[field.name] = value
    return config


def architecture():
    """A placeholder for every part of a model: empty until somebody sets it."""
    parts = ConfigDict()
    for field in dataclasses.fields(Architecture):
        parts[field.name] = placeholder(value_type(field))
    return parts


def value_type(field):
    """The type of a flag's value: tuple for tuple[float, float] | None."""
    if field.name == "rotary":  # the fields of a Rotary; only in a config file
        return dict
    kind = field.type
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    return typing.get_origin(kind) or kind
