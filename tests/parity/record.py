"""How far ours and theirs are apart, and its record for docs/results/parity.md."""

import importlib.metadata
import json
import os
import pathlib

import jax
import numpy as np

from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes

PACKAGES = ("jax", "timm", "torch", "transformers")


def record(**row):
    """Append a row, with versions, to the file that PARITY_RECORD names, if any."""
    if path := os.environ.get("PARITY_RECORD"):
        row |= {package: importlib.metadata.version(package) for package in PACKAGES}
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def noise(*shape, seed=0):
    """Images of float32 noise."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def computed(model, variables, images):
    """Outputs of a model, with products of the highest precision."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(model.apply)(variables, images)


def outputs(model, tensors, images):
    """Outputs of a dense model, for the images' size, with tensors by timm's names."""
    trained_size = model.config.image_size
    model = create_model(model.config.at_size(images.shape[1:3]))
    tensors = resize_positions.fit(tensors, model.config, trained_size)
    variables = timm_tensors.from_timm(tensors, variable_shapes(model))
    return computed(model, variables, images)


def apart(found, wanted):
    """Largest difference, in parts of the largest absolute value."""
    found = np.asarray(found)
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
