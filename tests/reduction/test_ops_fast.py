"""Reductions in the form that is fast on GPUs, against their usual form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.reduction import moves, ops
from imagepiece_jax.reduction.state import Assignment, SlotIndex, TokenState
from tests import compiling
from tests.models import tiny
from tests.near_ties import OneReduction, assert_agrees, random_inputs, reductions

N = 60
HEADS = 2
WIDTH = 16
FEW = OneReduction("join", N - 8)
ALL = (*reductions(N), FEW)


def inputs(images, dtype):
    return random_inputs(0, images, N, HEADS, WIDTH, dtype)


@pytest.mark.parametrize("reduction", ALL, ids=lambda r: f"{r.rule}{r.n_out}")
def test_tokens_leave_as_usual_but_for_near_ties(reduction):
    assert_agrees(reduction, inputs(128, "bfloat16"))


@pytest.mark.parametrize("reduction", ALL[1:], ids=lambda r: f"{r.rule}{r.n_out}")
def test_many_images_are_decided_as_usual(reduction, monkeypatch):
    """Where a GPU needs longer to move tokens than to start kernels."""
    monkeypatch.setattr(ops, "FEW_NUMBERS", 0)
    assert_agrees(reduction, inputs(64, "bfloat16"))


@pytest.mark.parametrize("prefix", [0, 2])
def test_pairs_of_tokens_with_another_prefix(prefix):
    reduction = OneReduction("bipartite", N + 1 - prefix - 13, num_prefix=prefix)
    assert_agrees(reduction, inputs(64, "bfloat16"))


def test_a_model_with_sizes_in_a_direction_answers_as_usual():
    """By class attention and mean keys, which products read with the prefix."""
    fields = "merge_ratio=0.06:merge_blocks=(0,1):prune_blocks=(2,):prop_attn=True"
    vit = tiny.pretrained(f"imagepiece_tome:{fields}")
    options = {"dtype": "bfloat16", "sizes": "direction", "batch_size": 4}
    exact, fast = (
        np.asarray(optimize(vit, reductions=form, **options)(tiny.images(4)))
        for form in ("exact", "fast")
    )
    np.testing.assert_allclose(fast, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", reductions(196), ids=lambda r: r.rule)
def test_a_gpu_decides_as_usual_but_for_near_ties(reduction):
    """The first step of DeiT-S."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here")
    assert_agrees(reduction, random_inputs(1, 256, 196, 6, 64, "bfloat16"))


@pytest.mark.parametrize("reduction", ALL, ids=lambda r: f"{r.rule}{r.n_out}")
def test_programs_in_float32_stay_as_they_are(reduction):
    fast = dataclasses.replace(reduction, fast=True)
    arrays = inputs(1, "float32")
    usual, other = (jax.make_jaxpr(form)(*arrays) for form in (reduction, fast))
    assert str(usual) == str(other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sizes_of_many_digits_count_in_full(dtype):
    """Tokens of opposite signs and sizes of 12 digits, whose first ones cancel."""
    if dtype == "float16":
        compiling.needs_float16()
    n = 30
    x = np.zeros((1, n + 1, 4), np.float32)
    x[0, 1:] = np.where(np.arange(n) % 2, -1, 1)[:, None]
    size = np.ones((1, n + 1), np.float32)
    size[0, 1:] = np.where(np.arange(n) % 2, 2047, 2049)
    keep = jnp.zeros((1, 1), jnp.int32)
    absorbed = jnp.arange(1, n, dtype=jnp.int32)[None]
    target = jnp.zeros_like(absorbed)
    index = SlotIndex(keep, absorbed, target, target)
    result = Assignment(jnp.zeros((1, n), jnp.int32), index=index, n_out=1)
    state = TokenState(x=jnp.asarray(x, dtype), size=jnp.asarray(size))
    with ops.fast():
        moved = moves.apply(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(dtype).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)
