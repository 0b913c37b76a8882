"""Distances between packages' outputs, and their record for docs/results/parity.md."""

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
from tests.helpers.random_gradients import draw_normal

PACKAGES = ("jax", "timm", "torch", "transformers")
noise = draw_normal


def record(**row):
    """Append a row, with versions, to the file named by PARITY_RECORD, if any."""
    if path := os.environ.get("PARITY_RECORD"):
        row |= {package: importlib.metadata.version(package) for package in PACKAGES}
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def public_weights():
    rows = public_models().items()
    return [f"{model}.{tag}" for model, row in rows for tag in row["weights"]]


def run_torch(run, images):
    """Outputs of a torch function for images [B, H, W, 3]."""
    import torch  # other tests use this module without torch

    with torch.no_grad():
        return run(torch.from_numpy(images).permute(0, 3, 1, 2))


def run_jax(vit, images):
    """Outputs of a Pretrained, with products in the highest precision."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(vit.model.apply)(vit.variables, images)


def run_tensors(model, tensors, images):
    """Outputs of a dense model at the images' size, from tensors by timm's names."""
    trained_size = model.config.image_size
    model = create_model(model.config.at_size(images.shape[1:3]))
    tensors = resize_positions.fit_positions(tensors, model.config, trained_size)
    variables = timm_tensors.from_timm(tensors, variable_shapes(model))
    return run_jax(Pretrained(model, variables), images)


def distance(actual, expected):
    """The largest difference, divided by the largest absolute value."""
    actual = np.asarray(actual)
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
