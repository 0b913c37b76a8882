"""Labeled images that weights are evaluated on, and the notes on their labels."""

import itertools
import types

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.labeled_images import labeled_images
from imagepiece_jax.models.problem_type import SINGLE_LABEL
from tests.pictures import write_csv, write_plain

VIT = types.SimpleNamespace(
    config=types.SimpleNamespace(num_classes=10, problem_type=SINGLE_LABEL),
    preprocessing=Preprocessing(16),
    source=types.SimpleNamespace(title="w.npz", run=None),
    class_names=tuple("0123456789"),
)


@pytest.mark.parametrize("labels, is_noted", [((1, 2), True), ((1, 0), False)])
def test_labels_that_may_count_from_one_are_noted(tmp_path, capsys, labels, is_noted):
    data = write_csv(tmp_path, np.zeros((2, 16, 16, 3), np.uint8), labels)
    source = labeled_images(VIT, data, limit=1).source
    assert len(source) == 1
    assert ("labels count from 0" in capsys.readouterr().out) == is_noted


def test_of_a_folder_with_splits_val_is_measured_on(tmp_path):
    for split, name in itertools.product(("train", "val"), range(10)):
        write_plain(tmp_path, f"{split}/{name}/0.png")
    source = labeled_images(VIT, f"{tmp_path}").source
    assert {source.name(index).split("/")[-3] for index in range(10)} == {"val"}


@pytest.mark.parametrize(
    "name, value",
    [("limit", 0), ("limit", 2.5), ("batch_size", 0), ("workers", -1), ("threads", -1)],
)
def test_numbers_below_their_least_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        labeled_images(VIT, "digits", **{name: value})
