import functools

import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import RemoveCount, Step, plan_blocks
from imagepiece_jax.reduction.methods.tome import ToMe
from imagepiece_jax.reduction.reducers import Bipartite
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import oracles, tiny_vit
from tests.reduction.test_reducers import tied_images


@functools.partial(tiny_vit.compiled, static_argnums=1)
def decide_all(inputs, work):
    return [Bipartite()(inputs, counts) for counts in work]


def removal_counts(r, n):
    """Counts of a step that merges `r` of `n` tokens; None if it changes nothing."""
    (layer,) = plan_blocks(1, n, [Step(0, Bipartite(), RemoveCount(r))])
    return layer.counts


@pytest.mark.parametrize("n, num_prefix", [(1, 0), (2, 1), (8, 0), (19, 1), (19, 2)])
def test_groups_and_their_order_equal_the_slow_truth(n, num_prefix):
    _, metric = tied_images(num_prefix + n)
    similarity = [oracles.cosine(m, m) for m in metric]
    work = {}
    for r in (0, 1, n // 3, n // 2, n, 10 * n):
        counts = removal_counts(r, n)
        assert (counts is None) == (min(r, n // 2) == 0)
        if counts is not None:
            work.setdefault(counts, r)
    x = metric[:, num_prefix:]
    inputs = ReducerInputs(x=x, size=x[..., 0], metric=x, num_prefix=num_prefix)
    results = decide_all(inputs, tuple(work))
    for (counts, r), result in zip(work.items(), results, strict=True):
        assert result.slot_of_token.dtype == jnp.int32
        assert result.n_out == counts.n_out
        for image, dest in enumerate(np.asarray(result.slot_of_token)):
            pairs = oracles.bipartite(similarity[image], r, num_prefix)
            want = oracles.bipartite_slots(pairs, num_prefix)
            np.testing.assert_array_equal(dest, want, err_msg=f"r {r} image {image}")


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
