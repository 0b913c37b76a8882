"""ToFu: published counts, pruned and fused tokens by hand."""

import numpy as np
import pytest

from imagepiece_jax.reduction.layer_plan import Counts
from imagepiece_jax.reduction.methods.tofu import Fuse, ToFu
from imagepiece_jax.reduction.reducers import Bipartite, Dropping
from imagepiece_jax.reduction.tokens import Taps, TokenState
from tests.reduction.tokens_by_angle import apply, costs, decide, vectors


@pytest.mark.parametrize(
    "rate, tokens, macs",
    [
        (0.9, "178 161 145 131 118 107 97 88 80 72 65 59", 699050112),
        (0.9125, "180 165 151 138 126 115 105 96 88 81 74 68", 742089984),
        (0.925, "183 170 158 147 136 126 117 109 101 94 87 81", 803710080),
        (0.95, "188 179 171 163 155 148 141 134 128 122 116 111", 930122496),
        (0.975, "193 189 185 181 177 173 169 165 161 157 154 151", 1087059072),
    ],
)
def test_counts_and_costs_are_its_authors(rate, tokens, macs):
    found = costs({"name": "tofu", "keep_rate": rate})
    assert found == ([int(n) for n in tokens.split()], macs)


def test_up_to_the_middle_block_it_drops():
    steps = ToFu().steps(12)
    assert [type(step.reducer) for step in steps] == [Dropping] * 7 + [Fuse] * 5


@pytest.mark.parametrize(
    "reducer, third, fifth",
    [
        (Dropping(Bipartite()), (1, 1), (0, 2)),
        (Fuse(), (7.0711, 1.4142), (0, 12)),
        (Fuse(rescale="mean"), (3.9223, 0.7845), (0, 6)),
    ],
)
def test_tokens_by_hand(reducer, third, fifth):
    """Token 4 leaves for 3, and 6 for 5."""
    key = vectors([0, 10, 14, 50, 47, 90, 88])
    x = [(1, 0), (2, 0), (0, 3), (1, 1), (4, 0), (0, 2), (0, 6)]
    x, size = np.float32([x]), np.ones((1, 7), np.float32)
    taps = Taps(x[:, 1:], size[:, 1:], size[:, 1:], key[:, 1:])
    result = decide(reducer, taps, Counts(n_in=6, n_out=4))
    after = apply(TokenState(x, size), result)
    want = [(1, 0), (0, 3), (2, 0), third, fifth]
    np.testing.assert_allclose(after.x[0], want, atol=1e-4)
    fused = isinstance(reducer, Fuse)
    assert after.size.tolist() == [[1, 1, 1, 1 + fused, 1 + fused]]
