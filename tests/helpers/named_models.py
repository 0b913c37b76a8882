"""Configs of named models, with changed fields."""

import dataclasses

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT, PART_NAMES, Architecture
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from imagepiece_jax.reduction.methods.method import ModelFacts


def facts(depth=12, patches=196, embed_dim=384, **fields):
    """ModelFacts of DeiT-S, with changed fields."""
    return ModelFacts(depth, embed_dim, patches, **fields)


def config(name, *, arch=None, **changes):
    """A named model's config with changed fields and parts.

    name: None if `changes` has all sizes
    arch: an Architecture, or changed parts
    """
    base = registry.model_config(name) if name else None
    own = base.arch if base else DEIT
    if isinstance(arch, Architecture):
        own = arch
    elif arch:
        own = own.with_fields(arch)
    parts = {field: changes.pop(field) for field in [*changes] if field in PART_NAMES}
    own = own.with_fields(parts)
    images = base.preprocessing if base else Preprocessing(224)
    fields = {field: changes.pop(field) for field in {*changes} & {*vars(images)}}
    changes["preprocessing"] = dataclasses.replace(images, **fields)
    if base:
        return dataclasses.replace(base, arch=own, **changes)
    return ViTConfig(arch=own, **{"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | changes)
