import numpy as np
import pytest

from imagepiece_jax.common.placement import Placement, device_samples
from tests.helpers.refused_calls import refused


@pytest.mark.parametrize("samples, devices", [(12, 3), (12, 4), (9, 3), (4, 4), (5, 1)])
def test_mixup_partners_are_in_mirrored_places(samples, devices):
    """Partners share a device, except middle samples of two mirrored devices."""
    placed = device_samples(samples, devices)
    m = samples // devices
    places = {sample: place for place, sample in np.ndenumerate(placed)}
    assert sorted(places) == list(range(samples))
    for sample, (d, k) in places.items():
        middle = m % 2 and k == m // 2
        partner = (devices - 1 - d if middle else d, m - 1 - k)
        assert places[samples - 1 - sample] == partner
    assert devices > 1 or placed.tolist() == [list(range(samples))]


def test_placement_splits_micro_batches_by_pairs():
    # 2 hosts of 2 devices, 2 accumulation steps, 16 images: m = 2
    first = Placement(0, 2, 2, 2).sample_positions(16)
    second = Placement(1, 2, 2, 2).sample_positions(16)
    assert first.tolist() == [[[0, 7], [8, 15]], [[1, 6], [9, 14]]]
    assert second.tolist() == [[[2, 5], [10, 13]], [[3, 4], [11, 12]]]


@pytest.mark.parametrize("batch_size", [12, 0, -8])
def test_batches_that_do_not_split_evenly_are_refused(batch_size):
    with refused("batch_size", "accumulation, 4 * 2"):
        Placement(0, 2, 2, 2).sample_positions(batch_size)


def test_samples_are_rounded_up_to_equal_shares():
    placement = Placement(process_count=2, num_local_devices=4)
    assert [placement.round_up(samples) for samples in (39, 40, 41)] == [40, 40, 48]
