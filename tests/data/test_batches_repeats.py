"""Repeated augmentation against a slow version of DeiT's sampler."""

import collections
import functools
import itertools
import math

import numpy as np
import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data.batches import PART_IMAGES, epoch_order
from tests.data import noise
from tests.data.noise import Noise, values

train = functools.partial(noise.train, repeats=3)


def sampler(order, workers):
    """What each of `workers` devices sees in an epoch: DeiT's sampler."""
    assigned = [index for index, _ in itertools.product(order, range(3))]
    total = math.ceil(len(order) * 3 / workers) * workers
    assigned += assigned[: total - len(assigned)]
    share = math.floor(math.floor(len(order) / 256) * 256 / workers)
    return [assigned[worker::workers][:share] for worker in range(workers)]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("length", [256, 800])
def test_steps_have_the_images_of_deit_s_sampler(length, workers):
    batches = train(Noise(length, size=8), 2 * (length // 256), 256)
    steps = len(batches) // 2
    for epoch in range(2):
        shares = sampler(epoch_order(3, epoch, length).tolist(), workers)
        m = 256 // workers
        assert {len(share) // m for share in shares} == {steps}
        for step in range(steps):
            expected = []
            for share in shares:
                expected += share[step * m : (step + 1) * m]
            seen = values([batches[epoch * steps + step]])
            assert collections.Counter(seen) == collections.Counter(expected)


def test_copies_are_neighbors_with_draws_of_their_own():
    """They continue in the next step and end with the epoch."""
    batch = train(Noise(20), 1, 12)[0]
    labels = batch["label"][0, 0]
    images = batch["image"][0, 0]
    one = epoch_order(3, 0, 20)
    two = epoch_order(3, 1, 20)
    np.testing.assert_array_equal(labels, np.repeat(one[:4], 3))
    assert len({image.tobytes() for image in images}) == 12
    labels = values(train(Noise(20), 3))
    assert labels == [*np.repeat(one, 3)[:16], *np.repeat(two, 3)[:8]]


@pytest.mark.parametrize("processes, accumulation", [(1, 1), (2, 1), (2, 2)])
def test_an_image_is_read_once_for_its_copies_in_a_part(processes, accumulation):
    for index in range(processes):
        source = Noise(400)
        placement = Placement(index, processes, 2, accumulation)
        (batch,) = train(source, 1, 192, placement=placement)
        parts = math.ceil(batch["label"].size / PART_IMAGES)
        assert parts > 1
        distinct = len(np.unique(batch["label"]))
        assert distinct <= len(source.reads) < distinct + parts


def test_an_unreadable_image_is_reported_once_for_its_copies():
    order = epoch_order(3, 0, 400).tolist()
    source = Noise(400, {order[1], order[2]})
    assert values(train(source, 1, 12)) == [order[0]] * 3 + [order[3]] * 9
    assert list(source.unreadable) == [f"{order[1]}.jpg", f"{order[2]}.jpg"]
    # 20 in a row end a run: seven with three copies each do not.
    source = Noise(4000, order_of(4000)[:7])
    train(source, 1, 24)
    assert len(source.unreadable) == 7


def order_of(length):
    return epoch_order(3, 0, length).tolist()
