import pytest

from imagepiece_jax.reduction.methods.evit import EViT


@pytest.mark.parametrize(
    "epoch, rate",
    [(0, 1), (10, 1), (35, 0.95607), (60, 0.85), (85, 0.74393), (109, 0.70007)]
    + [(110, 0.7), (299, 0.7)],
)
def test_keep_rate_of_an_epoch(epoch, rate):
    """10 epochs at 1, then a half cosine of 0 or 100 epochs to 0.7."""
    method = EViT(rate_warmup_start=10, rate_warmup_epochs=100)
    assert abs(method.rate_at(epoch) - rate) < 5e-6
    for options in ({}, {"rate_warmup_start": 10, "rate_warmup_epochs": 0}):
        assert EViT(**options).rate_at(epoch) == 0.7
