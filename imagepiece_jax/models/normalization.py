"""Normalization of the images that trained weights are for."""

import os
import pathlib

from imagepiece_jax.models import hub, hub_config, public, registry
from imagepiece_jax.models.run_files import IMAGENET, RUN_CONFIG, read_config
from imagepiece_jax.models.state_dict import read_normalization


def normalization(path: str | os.PathLike) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of the images of weights; {} where neither file nor name say."""
    path = hub.local(path)
    if path.is_file():
        own = registry.facts(named(path).get("name"))
        found = read_normalization(path) or {k: own[k] for k in IMAGENET if k in own}
    elif path.is_dir() and hub.is_published(path):
        given = hub_config.read(path).given
        found = {k: given[k] for k in IMAGENET if k in given}
    elif (path / RUN_CONFIG).is_file():
        model = read_config(path)["model"]
        found = {name: model[name] for name in IMAGENET}
    else:
        return {}
    return {
        name: registry.channels(f"{path}: {name}", values, positive=name == "std")
        for name, values in found.items()
    }


def named(path: str | os.PathLike) -> dict[str, str]:
    """{"name": the known model that a weights file is called by}; {} for another."""
    name = public.original(pathlib.Path(path).stem)
    known = name in registry.MODELS or public.model(name) is not None
    return {"name": name} if known else {}


def typed(normalization):
    """The values of --mean and --std by name, checked; {} for None."""
    return {
        name: registry.channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )
