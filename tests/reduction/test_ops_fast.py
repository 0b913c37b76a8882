"""Reductions in the form that is fast on GPUs, against their usual form."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.inference.optimize import optimize
from imagepiece_jax.kernels import choice
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction import moves
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
    monkeypatch.setattr(choice, "FEW_NUMBERS", 0)
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
    index = SlotIndex(keep=keep, absorbed=absorbed, target=target, partner=target)
    result = Assignment(jnp.zeros((1, n), jnp.int32), index=index, n_out=1)
    state = TokenState(x=jnp.asarray(x, dtype), size=jnp.asarray(size))
    with choice.fast():
        moved = moves.apply(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(dtype).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)


@pytest.mark.parametrize("chosen", [False, True])
def test_clusters_move_by_one_product_of_two_bytes(chosen):
    """Plain means of all tokens of a cluster, and of one chosen token each."""
    rng = np.random.default_rng(0)
    n, n_out = 30, 8
    dest = np.stack([rng.permutation(np.arange(n) % n_out) for _ in range(3)])
    first = np.stack([np.isin(np.arange(n), np.unique(d, True)[1]) for d in dest])
    state = TokenState(
        x=jnp.asarray(rng.normal(size=(3, 1 + n, 4)), jnp.bfloat16),
        size=jnp.asarray(rng.integers(1, 9, (3, 1 + n)), jnp.float32),
    )
    weight = jnp.asarray(first) if chosen else None
    result = Assignment(jnp.asarray(dest), weight, n_out=n_out, by_size=False)

    def move(state):
        with choice.fast():
            return moves.apply(state, result)

    program = jax.jit(move).lower(state)
    products = re.findall(r"dot_general .*: \((.*)\) ->", program.as_text())
    assert len(products) == 1
    assert "f32" not in products[0]
    moved = program.compile()(state)
    x, size = (np.asarray(a, float)[:, 1:] for a in (state.x, state.size))
    for image, slot in np.ndindex(3, n_out):
        members = dest[image] == slot
        taken = members & first[image] if chosen else members
        mean = x[image, taken].mean(axis=0)
        np.testing.assert_allclose(
            np.asarray(moved.x[image, 1 + slot], float), mean, rtol=2**-8, atol=1e-6
        )
        assert moved.size[image, 1 + slot] == size[image, members].sum()


@pytest.mark.parametrize(
    "reduction",
    [
        "dpc_knn:blocks=(1,)",
        "token_pooling:blocks=(1,)",
        "atc:blocks=(1,):size_weighting=False",
    ],
)
def test_clusters_need_no_product_of_float32(reduction, monkeypatch):
    model = tiny.model(reduction).with_execution(dtype=jnp.dtype("bfloat16"))
    shapes = variable_shapes(model)
    monkeypatch.delattr(moves, "_mixed")
    with choice.fast():
        jax.eval_shape(model.apply, shapes, tiny.images(2))
