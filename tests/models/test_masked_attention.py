"""Attention of masked training: only a masked token attends to itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.attention import masked_attend
from tests import oracles_learned
from tests.models import tiny
from tests.rounding import assert_close

attend = tiny.compiled(masked_attend)


def shares(logits, mask, **options):
    """Attention weights of one head whose logits are given. [N, N] -> [N, N]."""
    n = len(logits)
    query = np.float32(logits)[None, :, None] * np.float32(n**0.5)
    each = np.eye(n, dtype=np.float32)[None, :, None]  # key and value j: unit vectors
    return attend(query, each, each, np.float32(mask)[None], **options)[0, :, 0]


def random_heads(length, dtype="float32", seed=0):
    """Query, key, value of two images with two heads of width 4."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 2, length, 2, 4)).astype(jnp.dtype(dtype))


LOGITS = [[1, 2, 0], [0, 0, 0], [3, 1, 2]]


def test_rows_by_hand():
    """The middle token is masked: it still sees itself, and all others alike."""
    first, second, third = shares(LOGITS, [1, 0, 1])
    np.testing.assert_allclose(first[[0, 2]], [0.731058, 0.268942], atol=4e-6)
    np.testing.assert_allclose(second, [1 / 3] * 3, rtol=4e-6)
    np.testing.assert_allclose(third[[2, 0]], [0.268941, 0.731058], atol=4e-6)
    # What eps / N leaves to the masked one: eps / 3 / 0.503215 and eps / 3 / 1.367879.
    np.testing.assert_allclose([first[1], third[1]], [6.6e-7, 2.4e-7], rtol=2e-2)


@pytest.mark.parametrize("live", [(1, 1, 1), (1, 0, 0), (0, 0, 1), (0, 0, 0)])
def test_every_row_is_a_distribution(live):
    np.testing.assert_allclose(shares(LOGITS, live).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_it_equals_the_oracle(length):
    query, key, value = random_heads(length)
    mask = np.random.default_rng(1).integers(2, size=(2, length)).astype(np.float32)
    got, first = attend(query, key, value, mask), attend(query[:, :1], key, value, mask)
    for image in range(2):
        arrays = (np.asarray(a[image], float) for a in (query, key, value))
        want = oracles_learned.masked_attention(*arrays, mask[image])
        np.testing.assert_allclose(got[image], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(first[image], want[:1], rtol=1e-5, atol=1e-6)


def test_nothing_masked_is_plain_attention():
    query, key, value = random_heads(6)
    got = attend(query, key, value, np.ones((2, 6), np.float32))
    want = tiny.compiled(jax.nn.dot_product_attention)(query, key, value)
    assert_close(got, want)


def test_a_size_counts_as_so_many_copies():
    """Proportional attention: log 3 on a key is the key three times."""
    thrice = np.float32([[np.log(3.0), 0.0, 0.0]])
    row = shares(LOGITS, [1, 1, 1], key_bias=thrice)[0]
    weights = np.array([3 * np.e, np.e**2, 1])
    np.testing.assert_allclose(row, weights / weights.sum(), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_masked_and_far_apart_stays_finite(dtype):
    """Logits of thousands, nothing live: values and all gradients are numbers."""
    heads, mask = random_heads(5) * 60, np.zeros((2, 5), np.float32)
    heads = heads.astype(jnp.dtype(dtype))

    def total(heads, mask):
        out = masked_attend(*heads, mask)
        assert out.dtype == dtype
        return jnp.sum(out.astype(jnp.float32) ** 2)

    run = tiny.compiled(jax.value_and_grad(total, argnums=(0, 1)))
    chex.assert_tree_all_finite(run(heads, mask))


def test_the_mask_has_a_gradient():
    """A live token that more is seen of moves the output: by finite differences."""
    query, key, value = random_heads(4)
    mask = np.float32([[1, 0.5, 1, 0], [1, 1, 0, 1]])

    def total(mask):
        return jnp.sum(jnp.sin(masked_attend(query, key, value, mask)))

    run, slope = tiny.compiled(total), tiny.compiled(jax.grad(total))(mask)
    for token in range(4):
        step = np.zeros((2, 4), np.float32)
        step[:, token] = 1e-2
        wanted = (run(mask + step) - run(mask - step)) / 2e-2
        np.testing.assert_allclose(slope[:, token].sum(), wanted, rtol=1e-3, atol=2e-3)
    assert (np.abs(slope) > 1e-3).any(axis=1).all()
