import functools

import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import oracles, tiny_vit
from tests.reduction.test_reducers import tied_images


@functools.partial(tiny_vit.compiled, static_argnums=1)
def decide_all(inputs, merges):
    n = inputs.x.shape[1]
    return [Bipartite()(inputs, StepCounts(n, n - count)) for count in merges]


@pytest.mark.parametrize("n, num_prefix", [(2, 1), (8, 0), (19, 1), (19, 2)])
def test_groups_and_their_order_equal_the_slow_truth(n, num_prefix):
    _, metric = tied_images(num_prefix + n)
    x = metric[:, num_prefix:]
    inputs = ReducerInputs(x=x, size=x[..., 0], metric=x, num_prefix=num_prefix)
    merges = tuple({1, (n + 2) // 4, n // 2})
    for count, result in zip(merges, decide_all(inputs, merges), strict=True):
        assert result.n_out == n - count
        for slots, tokens in zip(result.slot_of_token, metric, strict=True):
            cosines = oracles.cosine(tokens, tokens)
            groups = oracles.bipartite(cosines, count, num_prefix)
            expected = oracles.bipartite_slots(groups, num_prefix)
            np.testing.assert_array_equal(slots, expected)


@pytest.mark.parametrize(
    "depth, r, inflection, published",
    [
        (12, 16, 0.0, [16] * 12),
        (12, 16, -1.0, [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]),
        (12, 16, 1.0, [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32]),
        (12, 16, -0.5, [24, 22, 21, 19, 18, 16, 15, 13, 12, 10, 9, 8]),
        (1, 8, -0.5, [12]),
    ],
)
def test_schedules_of_its_authors(depth, r, inflection, published):
    assert list(ToMe(r=r, inflection=inflection).removed_counts(depth)) == published
