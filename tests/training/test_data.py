"""Images of a run and their batches: what cannot be trained is refused."""

import pytest

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.data import check_training
from tests.runs import configured


def test_mixing_needs_pairs():
    message = "config.batch_size is 6, which makes micro-batches of 3; they must be "
    placement = Placement(accumulation=2)
    for on in ({"mixup": 0.8}, {"cutmix": 1.0}):
        config = configured(batch_size=6, grad_accum_steps=2, **on)
        with pytest.raises(InputError, match=message):
            check_training(RunConfig.from_config(config), placement)
        config.mixup_prob = 0.0
        check_training(RunConfig.from_config(config), placement)
    config = configured(batch_size=6, grad_accum_steps=2)
    check_training(RunConfig.from_config(config), placement)
