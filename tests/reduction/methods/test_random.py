import math

import numpy as np

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.random import Draw
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import masked_models
from tests.helpers.reduction_steps import decide


def test_every_set_of_tokens_is_equally_likely():
    """Two of five tokens make ten pairs; each is expected 400 times in 4,000."""
    tokens = np.zeros((4000, 5, 1), np.float32)
    keys = masked_models.keys(4000)["reducer"]
    inputs = ReducerInputs(x=tokens, size=tokens[..., 0] + 1, rng=keys)
    drawn = decide(Draw(), inputs, StepCounts(n_in=5, n_out=2))
    slots = np.asarray(drawn.slot_of_token)
    pairs, occurrences = np.unique(slots != DROPPED, axis=0, return_counts=True)
    assert len(pairs) == 10
    assert np.abs(occurrences - 400).max() < 4 * math.sqrt(4000 * 0.1 * 0.9)
