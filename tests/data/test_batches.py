"""Batches do not depend on devices, hosts, threads and restarts; evaluation has every
image exactly once; damaged files; repeats against DeiT's sampler."""

import collections
import functools
import itertools
import math
import threading
import time

import numpy as np
import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data import batches as batching
from imagepiece_jax.data.batches import Batches, epoch_order
from imagepiece_jax.data.preprocessing import Preprocessing
from tests.helpers.noise_images import (
    Noise,
    assert_same,
    field_values,
    global_batches,
    train_batches,
    train_list,
)
from tests.helpers.refused_calls import refused

repeated = functools.partial(train_list, repeats=3)


def evaluate(source, threads=0, **options):
    transform = Preprocessing(8, resize="none")
    batches = Batches(source=source, transform=transform, batch_size=8, **options)
    return list(batches.read_batches(threads))


def test_epoch_orders_are_different_permutations():
    orders = [epoch_order(s, e, 50) for s, e in itertools.product((0, 1), (0, 1, 2))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 6
    epoch_order.cache_clear()
    np.testing.assert_array_equal(epoch_order(0, 0, 50), orders[0])


@functools.cache
def placed_batches(processes, devices, accumulation, copies):
    """Global batches, two steps into the second epoch or of three chunks."""
    options = dict(size=96, stop=4, repeats=3) if copies else dict(stop=46)
    parts = []
    for process in range(processes):
        placement = Placement(process, processes, devices, accumulation)
        source = Noise(350, bad=(4, 5, 17))
        parts.append(train_list(source, placement=placement, **options))
    return global_batches(parts)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("placement", [(1, 8, 1), (2, 1, 1), (2, 2, 2), (1, 1, 4)])
def test_devices_hosts_and_accumulation_do_not_matter(placement, copies):
    assert_same(placed_batches(*placement, copies), placed_batches(1, 1, 1, copies))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(threads):
    assert_same(train_list(Noise(20), threads=threads), train_list(Noise(20)))
    source = Noise(20, size=8)
    assert_same(evaluate(source, threads=threads), evaluate(source))


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_a_restart_at_any_step_does_not_matter(start, repeats):
    restarted = train_list(Noise(20), start=start, repeats=repeats)
    assert_same(restarted, train_list(Noise(20), repeats=repeats)[start:])


def test_seed_and_step_change_the_draws():
    source = Noise(1)  # one image: all differences come from the crop
    batches = train_list(source, stop=6, size=1)
    batches += train_list(source, stop=6, size=1, seed=4)
    assert len({batch["image"].tobytes() for batch in batches}) == 12


def test_threads_end_with_the_iterator():
    before = set(threading.enumerate())
    batches = train_batches(Noise(20), 2, size=4, threads=2)
    assert set(threading.enumerate()) - before
    batches.close()
    batches = train_batches(Noise(20, bad=range(20)), 2, size=4, threads=2)
    with refused("cannot be read"):
        next(batches)
    assert not set(threading.enumerate()) - before


def test_reading_ahead_is_bounded():
    source = Noise(1000)
    batches = train_batches(source, 250, size=4, threads=2)
    next(batches)
    time.sleep(0.2)
    batches.close()
    assert 4 <= len(source.reads) <= 4 * (2 + batching.BATCHES_AHEAD)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 19])
@pytest.mark.parametrize("processes, devices", [(1, 1), (1, 4), (2, 2)])
def test_evaluation_sees_every_image_exactly_once(length, processes, devices):
    seen_indices = []
    for process in range(processes):
        placement = Placement(process, processes, devices, accumulation=3)
        batches = evaluate(Noise(length, size=8), placement=placement)
        assert len(batches) == -(-length // 8)
        for batch in batches:
            assert batch["image"].shape == (devices, 8 // processes // devices, 8, 8, 3)
            assert batch["mask"].dtype == np.float32
            assert batch["index"].dtype == batch["label"].dtype == np.int32
            live = batch["mask"] == 1
            assert ((batch["index"] < length) == live).all()
            assert (batch["image"][~live] == 0).all()
            np.testing.assert_array_equal(batch["label"][live], batch["index"][live])
            indices = batch["index"][live].tolist()
            expected = [Noise(length, size=8)[index].pixels for index in indices]
            np.testing.assert_array_equal([*batch["image"][live]], expected)
            seen_indices += indices
    assert sorted(seen_indices) == list(range(length))


def test_the_next_readable_image_replaces_an_unreadable_one():
    order = epoch_order(3, 0, 400).tolist()
    expected = order[:16]
    expected[2] = expected[3] = order[4]
    expected[9] = order[10]
    bad = {order[2], order[3], order[9]}
    assert field_values(train_list(Noise(400, bad), stop=2)) == expected
    order = epoch_order(3, 0, 104).tolist()
    last = train_list(Noise(104, {order[103]}), stop=13)[-1:]
    assert field_values(last) == order[96:103] + [order[0]]


def test_evaluation_masks_unreadable_images_and_counts_them():
    source = Noise(400, {5, 6, 399}, size=8)
    batches = evaluate(source)
    is_masked = np.equal(field_values(batches, "mask"), 0)
    assert np.flatnonzero(is_masked).tolist() == [5, 6, 399]
    assert field_values(batches, "index") == list(range(400))
    assert list(source.unreadable) == ["5.jpg", "6.jpg", "399.jpg"]
    with refused(".jpg cannot be read (no known", "as 4 of 300 images"):
        evaluate(Noise(300, {1, 50, 99, 200}, size=8))


def test_an_image_of_another_size_is_masked_or_named():
    """Nothing resizes it."""
    with refused("0.jpg: "):
        evaluate(Noise(16, size=9))
    batches = evaluate(Noise(16, size=9), strict=False)
    assert not any(field_values(batches, "mask"))
    assert not any(np.any(batch["image"]) for batch in batches)


def test_twenty_unreadable_images_in_a_row_stop_the_run():
    order = epoch_order(3, 0, 4000).tolist()
    assert len(train_list(Noise(4000, order[10:29]), stop=4)) == 4
    with refused(f"{order[10]}.jpg cannot", "as 20 of"):
        train_list(Noise(4000, order[10:30]), stop=4)
    source = Noise(4000, [*range(10), *range(3990, 4000)], size=8)
    for _ in range(2):
        assert sum(batch["mask"].sum() for batch in evaluate(source)) == 3980


def test_a_batch_larger_than_the_source_is_refused():
    with refused("batch_size"):
        train_batches(Noise(20), size=21)


def test_an_unreadable_image_is_reported_once_for_its_copies():
    order = epoch_order(3, 0, 400).tolist()
    source = Noise(400, {order[1], order[2]})
    assert field_values(repeated(source, 1, 12)) == [order[0]] * 3 + [order[3]] * 9
    assert list(source.unreadable) == [f"{order[1]}.jpg", f"{order[2]}.jpg"]
    # 20 in a row end a run: seven with three copies each do not.
    source = Noise(4000, epoch_order(3, 0, 4000)[:7].tolist())
    repeated(source, 1, 24)
    assert len(source.unreadable) == 7


def sampler_shares(order, workers):
    """An epoch's images on each of `workers` devices, by DeiT's sampler."""
    assigned = [index for index, _ in itertools.product(order, range(3))]
    total = math.ceil(len(order) * 3 / workers) * workers
    assigned += assigned[: total - len(assigned)]
    share = math.floor(math.floor(len(order) / 256) * 256 / workers)
    return [assigned[worker::workers][:share] for worker in range(workers)]


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("length", [256, 800])
def test_steps_have_deits_sampled_images(length, workers):
    batches = repeated(Noise(length, size=8), 2 * (length // 256), 256)
    steps = len(batches) // 2
    for epoch in range(2):
        shares = sampler_shares(epoch_order(3, epoch, length).tolist(), workers)
        m = 256 // workers
        assert {len(share) // m for share in shares} == {steps}
        for step in range(steps):
            expected = []
            for share in shares:
                expected += share[step * m : (step + 1) * m]
            seen = field_values([batches[epoch * steps + step]])
            assert collections.Counter(seen) == collections.Counter(expected)


def test_copies_are_neighbors_with_different_draws():
    batch = repeated(Noise(20), 1, 12)[0]
    assert len({image.tobytes() for image in batch["image"][0, 0]}) == 12
    first_order = epoch_order(3, 0, 20)
    second_order = epoch_order(3, 1, 20)
    labels = field_values(repeated(Noise(20), 3))
    assert labels == [*np.repeat(first_order, 3)[:16], *np.repeat(second_order, 3)[:8]]


def test_a_chunk_reads_an_image_once_for_its_copies():
    source = Noise(400)
    placement = Placement(1, 2, 2, accumulation=2)
    (batch,) = repeated(source, 1, 192, placement=placement)
    num_chunks = math.ceil(batch["label"].size / batching.CHUNK_IMAGES)
    distinct = len(np.unique(batch["label"]))
    assert distinct <= len(source.reads) < distinct + num_chunks
