"""Batches of the images that a recovery holds out."""

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.deploy.recover.recovery_images import evaluation_batches
from imagepiece_jax.errors import InputError


def test_the_last_batch_of_an_evaluation_is_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)
    batches = evaluation_batches(ArraySource(pixels), Preprocessing(6), batch_size=8)
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    masks = [batch["mask"].sum() for batch in batches]
    assert masks == [8, 3]
    assert sorted(map(bytes, images)) == sorted(map(bytes, pixels))
    assert batches[0]["image"].shape == batches[1]["image"].shape
    for batch in batches:
        own = batch["mask"]
        named = pixels[batch["index"][own]]
        np.testing.assert_array_equal(batch["image"][own], named)


def test_an_image_that_does_not_fit_is_named():
    pixels = np.zeros((3, 6, 6, 3), np.uint8)
    preprocessing = Preprocessing(8, resize="none")
    with pytest.raises(InputError, match="image 0: the image has 6x6 pixels"):
        evaluation_batches(ArraySource(pixels), preprocessing, batch_size=8)
