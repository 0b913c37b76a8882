"""Agreement up to rounding: other sums and exps pass, injected faults do not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from tests.near_ties import (
    EPS,
    Comparison,
    OneReduction,
    random_inputs,
    reductions,
)

N = 48
HEADS = 6
WIDTH = 64


class OtherOrder(OneReduction):
    """Sums in another order, and an exp that is 2 ulp off."""

    def scores(self, query, key, size):
        scores = super().scores(query[..., ::-1], key[..., ::-1], size)
        off = jax.random.uniform(jax.random.key(0), scores.shape, minval=-1, maxval=1)
        return scores * (1 + 2 * EPS * off)

    def metric(self, key):
        return super().metric(key[:, :, ::-1, ::-1])


class SwappedCandidates(OneReduction):
    """In one image the last token kept and the first token dropped are swapped."""

    def scores(self, query, key, size):
        scores = super().scores(query, key, size)
        swapped = jnp.argsort(-scores[0])[self.n_out - 1 : self.n_out + 1]
        return scores.at[0, swapped].set(scores[0, swapped[::-1]])


class DroppedHead(OneReduction):
    """The last head is ignored."""

    def __call__(self, query, key, x, size):
        return super().__call__(query[:, :, :-1], key[:, :, :-1], x, size)


@functools.cache
def inputs():
    """Those of 128 images; drawing them takes longer than comparing reductions."""
    return random_inputs(5, 128, N, HEADS, WIDTH, "float32")


def compared(other, reduction, arrays):
    comparison = Comparison()
    comparison.add(reduction, other(**dataclasses.asdict(reduction)), arrays)
    return comparison


@pytest.mark.parametrize("reduction", reductions(N), ids=lambda r: r.rule)
def test_rounding_is_no_fault(reduction):
    comparison = compared(OtherOrder, reduction, inputs())
    assert comparison.agrees, comparison


PRUNE, RETOKENIZE, BIPARTITE, JOIN = reductions(N)


@pytest.mark.parametrize(
    "other, reduction, images",
    [
        (SwappedCandidates, PRUNE, 128),  # the share that differs says nothing
        (DroppedHead, PRUNE, 4),
        (DroppedHead, RETOKENIZE, 4),
        (DroppedHead, BIPARTITE, 4),
        (DroppedHead, JOIN, 4),
    ],
)
def test_faults_are_found(other, reduction, images):
    arrays = [array[:images] for array in inputs()]
    comparison = compared(other, reduction, arrays)
    assert not comparison.agrees
    assert max(comparison.gaps) > 1
