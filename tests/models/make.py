"""Models whose configs are those of a name with other fields."""

import dataclasses

from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, PARTS, Architecture
from imagepiece_jax.models.config import MEAN, STD, ViTConfig


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
