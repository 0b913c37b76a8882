"""Short timings for the tests' cards."""

import pytest

from imagepiece_jax.common.timer import Timing
from imagepiece_jax.exporters import card


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch):
    monkeypatch.setattr(card, "CARD_TIMING", Timing(warmup=1, repeats=2, seconds=0.0))
