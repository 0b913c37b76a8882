import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels.ranking import find_first_largest, rank_tokens
from tests.helpers import oracles, tiny_vit

NAN = np.nan
INF = np.inf


@pytest.mark.parametrize(
    "scores",
    [
        [0.3, 0.1, 0.2],
        [0.5, 0.5, 0.5, 0.5],
        [NAN, 0.1, NAN, -INF, INF, 0.1],
        [NAN, NAN],
        [-0.0, 0.0, -0.0],
        [7.0],
    ],
)
def test_rank_breaks_ties_by_index_and_puts_nan_last(scores):
    ranks = rank_tokens(jnp.asarray([scores], jnp.float32))
    assert ranks.dtype == jnp.int32
    assert ranks[0].tolist() == oracles.rank_by_score(scores).tolist()


def test_the_first_of_the_largest_in_very_large_images():
    """Columns have 17 bits; NaN counts as minus infinity."""
    values = np.zeros((1, 3, 100_000), np.float32)
    values[0, 0, [90_007, 99_000]] = values[0, 1, [70_000, 95_000]] = 1.0
    values[0, 1, 5] = values[0, 2] = np.nan
    largest, columns = tiny_vit.compiled(find_first_largest)(values)
    assert columns.tolist() == [[90_007, 70_000, 0]]
    assert largest.tolist() == [[1, 1, -np.inf]]
