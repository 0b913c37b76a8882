"""Metadata of trained weights: what files and names say that no tensor tells."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.data.normalize import channels
from imagepiece_jax.models import hub, hub_config, public, registry
from imagepiece_jax.models.layouts import Recognized, read_weights
from imagepiece_jax.models.run_files import (
    IMAGENET,
    RUN_CONFIG,
    model_fields,
    read_config,
)
from imagepiece_jax.models.state_dict import read_normalization


def metadata(
    path: str | os.PathLike, read: Recognized | None = None, name: str | None = None
) -> dict[str, Any]:
    """Fields of create_model that weights state, such as name, gelu and num_heads.

    path: of a weights file, a published model or a run; read: the tensors of a file,
    where they have been read. What its layout says is more special than its name, and
    what the file itself says of its images most. name: what the caller calls a file;
    timm's name of a public model means that model's function, whatever the layout.
    """
    path = hub.local(path)
    if path.is_dir() and hub.is_published(path):
        return dict(hub_config.read(path).given)
    if path.is_dir():
        return model_fields(read_config(path))
    read = read or read_weights(path)
    images = read_normalization(path).items()
    meant = {} if name in registry.MODELS else stated({"name": name})
    says = {k: v for k, v in read.says.items() if k == "num_heads" or k not in meant}
    return named(path) | says | {k: _channels(path, k, v) for k, v in images}


def normalization(path: str | os.PathLike) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of the images of weights; {} where neither file nor name say.

    {} also of a folder that holds neither weights nor a run yet.
    """
    path = hub.local(path)
    empty = path.is_dir() and not hub.is_published(path)
    if not path.exists() or (empty and not (path / RUN_CONFIG).is_file()):
        return {}
    found = stated(metadata(path))
    return {k: _channels(path, k, found[k]) for k in IMAGENET if k in found}


def _channels(path, name, values):
    return channels(f"{path}: {name}", values, positive=name == "std")


def stated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with all that its name and architecture stand for, field by field."""
    given = {k: v for k, v in metadata.items() if v is not None}
    found = dict(registry.facts(given.get("name")))
    if found or "arch" in given:
        found |= vars(registry.architecture(given))
    return found | given


def named(path: str | os.PathLike) -> dict[str, str]:
    """{"name": the known model that a weights file is called by}; {} for another."""
    name = public.original(pathlib.Path(path).stem)
    known = name in registry.MODELS or public.model(name) is not None
    return {"name": name} if known else {}


def typed(normalization):
    """The values of --mean and --std by name, checked; {} for None."""
    return {
        name: channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )
