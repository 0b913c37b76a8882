"""The layout of a batch over devices."""

import pytest

from imagepiece_jax.common.layout import device_samples


@pytest.mark.parametrize("samples, devices", [(12, 3), (12, 4), (9, 3), (4, 4), (5, 1)])
def test_mixup_partners_are_in_mirrored_places(samples, devices):
    """On one device, but for the middle ones of two mirrored devices."""
    held = device_samples(samples, devices)
    m = samples // devices
    places = {held[d, k]: (d, k) for d in range(devices) for k in range(m)}
    assert sorted(places) == list(range(samples))
    for sample, (d, k) in places.items():
        middle = m % 2 and k == m // 2
        partner = (devices - 1 - d if middle else d, m - 1 - k)
        assert places[samples - 1 - sample] == partner
    assert devices > 1 or held.tolist() == [list(range(samples))]
