"""Models whose configs are those of a name with other fields."""

import dataclasses

from imagepiece_jax.models import create, registry
from imagepiece_jax.models.architecture import DEIT, PARTS, Architecture
from imagepiece_jax.models.config import MEAN, STD, ViTConfig

EXECUTION = ("dtype", "attention")


def config(name, *, arch=None, **changes):
    """The config of a name with other fields, and other parts of its Architecture.

    name: None for a config of all sizes
    arch: an Architecture, or parts of one
    """
    images = {"image_size": 224, "mean": MEAN, "std": STD}
    base = registry.config(name) if name else None
    own = base.arch if base else DEIT
    if isinstance(arch, Architecture):
        own = arch
    elif arch:
        own = own.with_parts(arch)
    parts = {field: changes.pop(field) for field in [*changes] if field in PARTS}
    own = own.with_parts(parts)
    if base:
        return dataclasses.replace(base, arch=own, **changes)
    return ViTConfig(arch=own, **images | changes)


def create_model(name, reduction=None, **changes):
    """The model of `config`; changes may have dtype and attention, too."""
    execution = {k: changes.pop(k) for k in EXECUTION if k in changes}
    return create.create_model(config(name, **changes), reduction, **execution)
