import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.random import Draw
from imagepiece_jax.reduction.state import ReducerInputs


def image_keys(batch, seed=0):
    """One key per image. -> [batch]."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return fold(jax.random.key(seed), jnp.arange(batch))


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(image_keys, counts, train=False):
    tokens = jnp.zeros((len(image_keys), counts.n_in))
    inputs = ReducerInputs(x=tokens[:, :, None], size=tokens + 1, rng=image_keys)
    return Draw()(inputs, counts, train)


def test_every_set_of_tokens_is_equally_likely():
    """Two of five tokens make ten pairs; each is expected 400 times in 4,000."""
    drawn = draw(image_keys(4000), StepCounts(n_in=5, n_out=2))
    slots = np.asarray(drawn.slot_of_token)
    pairs, occurrences = np.unique(slots != DROPPED, axis=0, return_counts=True)
    assert len(pairs) == 10
    assert np.abs(occurrences - 400).max() < 4 * math.sqrt(4000 * 0.1 * 0.9)
