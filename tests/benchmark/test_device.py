"""Rates from simulated times."""

from imagepiece_jax.benchmark import device
from imagepiece_jax.common import timer


def test_peak_rates_are_those_of_the_fastest_product_and_of_the_copy(monkeypatch):
    seconds = iter([2.0, 4.0, 8.0])
    monkeypatch.setattr(timer, "measure", lambda jobs, rules: {"": [next(seconds)]})
    monkeypatch.setattr(device, "PEAK_SIZES", {"cpu": ((10, 20), 4000)})
    found = device.peak_rates("float32", timer.Rules())
    assert found == (2 * 20**3 / 4.0, 2 * 4000 / 8.0)
