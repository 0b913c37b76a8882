"""Test images of a config: the size of their batches."""

import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.images import rounded_batch
from imagepiece_jax.config.run import RunConfig
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
