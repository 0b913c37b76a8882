"""The largest public models, by tensor names and shapes; nothing is allocated.

tools/fixtures.py writes timm's shapes to tests/fixtures/whole_models.json.
"""

import json

import jax
import numpy as np
import pytest

from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import naming
from tests.helpers.small_runs import ROOT

FILE = ROOT / "tests" / "fixtures" / "whole_models.json"
MODELS = json.loads(FILE.read_text())


def tensors(row):
    """The whole state dict, of zeros without memory."""
    shapes = dict(row["others"])
    for name, shape in row["block"].items():
        for index in range(row["depth"]):
            shapes[name.replace("blocks.0.", f"blocks.{index}.")] = shape
    zero = np.float32(0)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_has_timms_tensors(name):
    row = MODELS[name]
    model = create_model(name)
    shapes = variable_shapes(model)
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(shapes))
    converted = naming.read_timm_tensors(tensors(row))
    timm_tensors.match_tensors(converted, shapes)
    assert count == pytest.approx(row["parameters"], rel=1e-4)
    # Some papers count the head, and all round the last nonzero digit.
    published = row["published"]
    digit = 10 ** (len(f"{published:.0f}") - len(f"{published:.0f}".rstrip("0")))
    assert abs(count - published) <= max(0.04 * published, digit / 2)
