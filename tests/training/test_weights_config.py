"""Images for weights: what is noted of them. tests/errors.txt holds mistakes."""

import types

import pytest
from PIL import Image

from configs import base, quickstart
from imagepiece_jax.cli import Overrides
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.weights_config import of_weights, open_images

WEIGHTS = types.SimpleNamespace(
    path="w.npz", class_names=None, names_of_data=None, run=None
)


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, labels, is_noted):
    rows = ["filename,label"]
    for label in labels:
        Image.new("RGB", (16, 16)).save(tmp_path / f"{label}.png")
        rows.append(f"{label}.png,{label}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    config = quickstart.get_config()
    config.data.name = data = f"csv:{tmp_path}/set.csv"
    source, notes = open_images(RunConfig.read(config), WEIGHTS, limit=1)
    note = f"note: no label of {data} is 0, the lowest is 1; labels count from 0"
    assert len(source) == 1 and notes == [note] * is_noted


def test_a_field_that_weights_decide_is_theirs_where_it_is_emptied(run_of_0_2_0):
    """So that what is made of the config is the model that is evaluated."""
    emptied = [("model.mlp_ratio", ""), ("model.name", "None"), ("model.kernels", "")]
    given = run_of_0_2_0, base.get_config(), Overrides(emptied)
    config, weights = of_weights(*given)
    assert (config.model.mlp_ratio, config.model.name) == (2.0, "vit_mini")
    assert config.model.kernels is None  # of a device, not of the weights
    assert RunConfig.read(config).create_model() == weights.model()
