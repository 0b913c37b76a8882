"""Test images of a config: their batches, and the notes on their labels."""

import types

import numpy as np
import pytest
from PIL import Image

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


VIT = types.SimpleNamespace(
    source=types.SimpleNamespace(path="w.npz", run=None),
    problem_type="single_label_classification",
    class_names=None,
    names_of_data=None,
)


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, capsys, labels, is_noted):
    data = write_csv(tmp_path, np.zeros((2, 16, 16, 3), np.uint8), labels)
    config = configured(**{"data.name": data})
    source = labeled_images(RunConfig.from_config(config), VIT, limit=1)
    notes = capsys.readouterr().out.splitlines()
    note = f"note: no label of {data} is 0, the lowest is 1; labels count from 0"
    taken = "note: 1 of 2 images are taken, evenly spaced"
    assert len(source) == 1
    assert notes == [taken, *[note] * is_noted]


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_of_a_folder_with_splits_val_is_measured_on(tmp_path, capsys, prefix):
    for split in ("train", "val"):
        for name in range(10):
            file = tmp_path / split / str(name) / "0.png"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(file)
    config = configured(**{"data.name": f"{prefix}{tmp_path}"})
    source = labeled_images(RunConfig.from_config(config), VIT)
    assert {source.name(index).split("/")[-3] for index in range(10)} == {"val"}
    said = f"note: {tmp_path} holds train and val; val is measured on\n"
    assert capsys.readouterr().out == said
    config.data.name = f"{prefix}{tmp_path}/val"
    assert len(labeled_images(RunConfig.from_config(config), VIT)) == 10
    assert capsys.readouterr().out == ""
