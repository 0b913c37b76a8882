"""How far ours and theirs are apart, and its record for docs/results/parity.md."""

import importlib.metadata
import json
import os
import pathlib

import jax
import numpy as np

from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.registry import public_models
from imagepiece_jax.models.variables import variable_shapes

PACKAGES = ("jax", "timm", "torch", "transformers")


def record(**row):
    """Append a row, with versions, to the file that PARITY_RECORD names, if any."""
    if path := os.environ.get("PARITY_RECORD"):
        row |= {package: importlib.metadata.version(package) for package in PACKAGES}
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def public_weights():
    """The names of all public weights."""
    names = []
    for model, row in public_models().items():
        names += [f"{model}.{tag}" for tag in row["weights"]]
    return names


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def torched(run, images):
    """Outputs of a function of torch for images [B, H, W, 3]."""
    import torch  # which not all have who ask how far arrays are apart

    with torch.no_grad():
        return run(torch.from_numpy(images).permute(0, 3, 1, 2))


def computed(vit, images):
    """Outputs of a Pretrained, with products of the highest precision."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(vit.model.apply)(vit.variables, images)


def outputs(model, tensors, images):
    """Outputs of a dense model, for the images' size, with tensors by timm's names."""
    trained_size = model.config.image_size
    model = create_model(model.config.at_size(images.shape[1:3]))
    tensors = resize_positions.fit_positions(tensors, model.config, trained_size)
    variables = timm_tensors.from_timm(tensors, variable_shapes(model))
    return computed(Pretrained(model, variables), images)


def apart(found, wanted):
    """Largest difference, in parts of the largest absolute value."""
    found = np.asarray(found)
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
