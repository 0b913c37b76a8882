"""Normalization of the images that trained weights are for."""

import os
import pathlib

from imagepiece_jax.models import registry
from imagepiece_jax.models.run_files import IMAGENET, RUN_CONFIG, read_config
from imagepiece_jax.models.state_dict import read_normalization


def normalization(path: str | os.PathLike) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of the images of weights; {} where it is unknown."""
    path = pathlib.Path(path)
    if path.is_file():
        found = read_normalization(path)
    elif (path / RUN_CONFIG).is_file():
        model = read_config(path)["model"]
        found = {name: model[name] for name in IMAGENET}
    else:
        return {}
    return {
        name: registry.channels(f"{path}: {name}", values, positive=name == "std")
        for name, values in found.items()
    }


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
