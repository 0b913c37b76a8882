import pytest

from configs import deit_s_evit
from imagepiece_jax.reduction.methods.evit import EViT
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.train_step import list_step_counts


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


def test_a_warm_up_compiles_75_programs():
    """With one dropped and one fused token the counts are the dense ones."""
    config = deit_s_evit.get_config()
    config.reduction += ":fuse_token=True"
    run = RunConfig.from_config(config)
    models = [run.create_train_model(epoch) for epoch in range(config.epochs)]
    tokens = {tuple(layer.mlp_tokens for layer in model.plan) for model in models}
    assert len(tokens) == 74
    assert len(set(map(list_step_counts, models))) == 75
    assert models[-1].plan == run.create_model().plan
    assert not any(layer.counts for layer in models[0].plan)
