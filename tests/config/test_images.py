"""Test images of a config: their batches, and the notes on their labels."""

import types

import numpy as np
import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.images import labeled_images, rounded_batch
from imagepiece_jax.config.run import RunConfig
from tests.pictures import write_csv
from tests.runs import configured


@pytest.mark.parametrize(
    "images, count, size",
    [
        *((1000, *row) for row in ((1, 359), (2, 360), (8, 360), (100, 400))),
        *((40, *row) for row in ((1, 40), (8, 40), (16, 48))),
    ],
)
def test_evaluation_batch_is_rounded_up(images, count, size):
    """A small set is one batch of its own size."""
    run = RunConfig.from_config(configured(eval_batch_size=359))
    assert rounded_batch(run, Placement(local_devices=count), images) == size


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, capsys, labels, is_noted):
    data = write_csv(tmp_path, np.zeros((2, 16, 16, 3), np.uint8), labels)
    config = configured(**{"data.name": data})
    vit = types.SimpleNamespace(
        source=types.SimpleNamespace(path="w.npz", run=None),
        problem_type="single_label_classification",
        class_names=None,
        names_of_data=None,
    )
    source = labeled_images(RunConfig.from_config(config), vit, limit=1)
    notes = capsys.readouterr().out.splitlines()
    note = f"note: no label of {data} is 0, the lowest is 1; labels count from 0"
    taken = "note: 1 of 2 images are taken, evenly spaced"
    assert len(source) == 1
    assert notes == [taken, *[note] * is_noted]
