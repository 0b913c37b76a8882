"""Does every method keep the promises that model, pictures and unmerge rely on?

All of `METHODS` are tested, with default fields and with the `VARIANTS` below: a new
method is covered by its line in `METHODS`.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.reduction import flops, ops
from imagepiece_jax.reduction.methods import METHODS, steps
from imagepiece_jax.reduction.schedule import build
from imagepiece_jax.reduction.tokens import DROPPED, Taps, start
from tests import oracles

VARIANTS = {
    "imagepiece": [
        {"schedule": "A", "order": "ascending", "parity": 1, "size_weighting": False},
        {"prune_blocks": (), "merge_ratio": 0.15},
        {"keep_rate": 0.0, "merge_ratio": 1.0, "candidate_ratio": 1.0},
    ],
    "evit": [{"fuse_token": True}, {"keep_rate": 0.0, "blocks": (0, 1)}],
}
CASES = [
    pytest.param(name, fields, id=f"{name} {fields or ''}".strip())
    for name in METHODS
    for fields in ({}, *VARIANTS.get(name, ()))
]
DEPTH, N0, D = 10, 19, 8


def plan_of(name, fields, n0=N0):
    return build(DEPTH, n0, METHODS[name].recipe(DEPTH, **fields))


def walk(plan, x, form=None):
    """States after each step of `plan`. x [B, 1 + n0, D]; the blocks do nothing.

    Scores and metric are functions of the tokens themselves, as in a real model.
    """
    states = [start(x, trace_source=True)]
    for layer in plan:
        if layer.counts:
            x, size = states[-1].x[:, 1:], states[-1].size[:, 1:]
            scores = jax.nn.softmax(4 * x[..., 0].astype(jnp.float32))
            taps = Taps(x=x, size=size, metric=x, cls_attn=scores)
            result = layer.step.reducer(taps, layer.counts)
            states.append(ops.apply(states[-1], result, form))
    return states


def random_tokens(dtype="float32", seed=0):
    """Three images of N0 tokens behind a class token. -> [3, 1 + N0, D]."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(3, 1 + N0, D)), dtype)


@functools.cache
def program(name, *items):
    """Compiled states after each step of a case: one program for all tests."""
    plan = plan_of(name, dict(items))
    chex.clear_trace_counter()  # it counts by source line: the other cases' traces too
    traced = chex.assert_max_traces(lambda x: walk(plan, x), n=1)
    return jax.jit(traced, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name, fields", CASES)
def test_promises_hold_after_every_step(name, fields):
    """Plan and state agree, no slot is empty, sizes are counts, the prefix rests."""
    plan, x = plan_of(name, fields), random_tokens()
    states = program(name, *fields.items())(x)
    counts = [layer.counts for layer in plan if layer.counts]
    assert len(states) == 1 + len(counts)
    assert bool(counts) == (name != "none")
    assert states[-1].x.shape[1] == plan[-1].mlp_tokens
    before = np.asarray(states[0].source)
    for state, count in zip(states[1:], counts, strict=True):
        assert state.x.shape == (3, 1 + count.n_out, D)
        np.testing.assert_array_equal(state.x[:, 0], x[:, 0])
        np.testing.assert_array_equal(state.size[:, 0], 1)
        source = np.asarray(state.source)
        assert (source[before == DROPPED] == DROPPED).all()
        for image in range(3):
            patches = oracles.count_sources(source[image], count.n_out)
            assert patches.min() >= 1
            np.testing.assert_array_equal(state.size[image, 1:], patches)
        before = source


@pytest.mark.parametrize("name, fields", CASES)
def test_a_permutation_of_patches_moves_groups_and_nothing_else(name, fields):
    run, x = program(name, *fields.items()), random_tokens()
    order = np.random.default_rng(1).permutation(N0)
    plain = run(x)[-1]
    moved = run(jnp.concatenate([x[:, :1], x[:, 1:][:, order]], axis=1))[-1]
    for image in range(3):
        a, b = np.asarray(plain.source[image])[order], np.asarray(moved.source[image])
        np.testing.assert_array_equal(a == DROPPED, b == DROPPED)
        np.testing.assert_array_equal(a[:, None] == a, b[:, None] == b)
        kept = np.flatnonzero(b != DROPPED)
        np.testing.assert_allclose(
            moved.x[image, 1 + b[kept]],
            plain.x[image, 1 + a[kept]],
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("name, fields", CASES)
def test_one_trace_serves_all_values(name, fields):
    """A second trace would raise: see `program`."""
    run = program(name, *fields.items())
    a, b = (run(random_tokens(seed=seed))[-1].x for seed in (0, 1))
    assert not np.array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", CASES)
def test_stacked_on_a_mapped_device_the_same_comes_out(name, fields):
    """pmap over one device of vmap over an extra axis, against plain jit."""
    plan, x = plan_of(name, fields), random_tokens()
    plain = program(name, *fields.items())(x)[-1]
    run = jax.pmap(jax.vmap(lambda x: walk(plan, x)[-1]))
    both = run(jnp.stack([x, x[::-1]])[None])
    want = jax.tree.map(lambda a: jnp.stack([a, a[::-1]])[None], plain)
    chex.assert_trees_all_close(both, want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", CASES)
def test_gradients_in_bfloat16_are_finite(name, fields):
    """They reach the patches of every image; the class token gets its own alone."""
    plan, x = plan_of(name, fields), random_tokens(jnp.bfloat16)
    probe = random_tokens(jnp.bfloat16, seed=2)[:, : plan[-1].mlp_tokens]
    slope = jax.jit(jax.grad(lambda x: jnp.sum(walk(plan, x)[-1].x * probe)))(x)
    assert slope.dtype == jnp.bfloat16
    assert jnp.isfinite(slope).all()
    np.testing.assert_array_equal(slope[:, 0], probe[:, 0])
    assert (jnp.abs(slope[:, 1:]).max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize("fields", VARIANTS["imagepiece"])
def test_merging_alone_loses_no_patch(fields):
    *_, last = program("imagepiece", *fields.items())(random_tokens())
    whole = fields.get("prune_blocks") == ()
    np.testing.assert_array_equal(last.size[:, 1:].sum(axis=1) == N0, np.full(3, whole))
    assert (last.source != DROPPED).all() == whole


# Recipes: which blocks, which fields


@pytest.mark.parametrize(
    "schedule, depth, merge, prune",
    [
        ("B", 12, (0, 1, 3, 4, 6, 7), (2, 5, 8)),
        ("A", 12, (1, 2, 4, 5, 7, 8), (3, 6, 9)),
        ("B", 4, (0, 1), (2,)),
        ("A", 4, (1, 2), (3,)),
        ("B", 6, (0, 1), (2,)),
        ("B", 8, (0, 1, 3, 4), (2, 5)),
        ("B", 16, (0, 1, 3, 4, 6, 7, 9, 10), (2, 5, 8, 11)),
    ],
)
def test_imagepiece_merges_twice_and_prunes_once_a_cycle(schedule, depth, merge, prune):
    found = METHODS["imagepiece"].recipe(depth, schedule=schedule)
    rules = {step.block: step.rule for step in found}
    assert rules == {**dict.fromkeys(merge, "merge"), **dict.fromkeys(prune, "keep")}
    assert all(step.site == "mid" for step in found)
    build(depth, 196, found)


def test_named_blocks_override_the_schedule():
    found = METHODS["imagepiece"].recipe(
        3, merge_blocks=(1,), prune_blocks=(0, 2), merge_ratio=0.15, keep_rate=0.6
    )
    assert [(step.block, step.rule) for step in found] == [
        (0, "keep"),
        (1, "merge"),
        (2, "keep"),
    ]
    assert [step.amount for step in found] == [0.6, (0.15, 0.3, "all"), 0.6]


def test_a_schedule_needs_four_blocks():
    with pytest.raises(InputError, match="depth of 4.*found 3.*merge_blocks"):
        METHODS["imagepiece"].recipe(3)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("none", {}),
        ("imagepiece", {"keep_rate": 1.0, "merge_ratio": 0.0}),
        ("imagepiece", {"keep_rate": 1.0, "candidate_ratio": 0.0}),
        ("evit", {"keep_rate": 1.0}),
        ("evit", {"keep_rate": 1.0, "fuse_token": True}),
    ],
)
def test_a_method_that_reduces_nothing_is_the_dense_plan(name, fields):
    plan, dense = plan_of(name, fields, n0=196), plan_of("none", {}, n0=196)
    assert [layer.counts for layer in plan] == [None] * DEPTH
    assert flops.macs(plan, 384, 6) == flops.macs(dense, 384, 6)
    x = random_tokens()
    np.testing.assert_array_equal(walk(plan, x)[-1].x, x)


RATE_FIELDS = [
    (name, field)
    for name, method in METHODS.items()
    for field in inspect.signature(method.recipe).parameters
    if field.endswith(("_rate", "_ratio"))
]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
@pytest.mark.parametrize("name, field", RATE_FIELDS)
def test_a_rate_outside_zero_to_one_is_named(name, field, value):
    with pytest.raises(InputError, match=rf"reduction\.{field} is .*0 to 1"):
        METHODS[name].recipe(DEPTH, **{field: value})


def test_rates_are_found():
    """The test above finds its fields by their names: it must find these."""
    assert ("evit", "keep_rate") in RATE_FIELDS
    for field in ("keep_rate", "merge_ratio", "candidate_ratio"):
        assert ("imagepiece", field) in RATE_FIELDS


@pytest.mark.parametrize(
    "name, field", [("imagepiece", "prune_blocks"), ("evit", "blocks")]
)
@pytest.mark.parametrize("blocks", [(12,), (-1,), (3, 3)])
def test_blocks_that_do_not_fit_are_refused(name, field, blocks):
    found = METHODS[name].recipe(DEPTH, **{field: blocks})
    with pytest.raises(InputError, match=rf"block {blocks[0]}\b"):
        build(DEPTH, 196, found)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("schedule", "C", "'A'.*'B'"),
        ("merge_base", "some", "'all'.*'candidates'"),
        ("order", "random", "'descending'.*'ascending'"),
        ("parity", 2, "0.*1"),
        ("metric", "keys", "'key'.*'query'.*'value'.*'token'"),
    ],
)
def test_an_unknown_choice_lists_the_known_ones(field, value, allowed):
    with pytest.raises(InputError, match=rf"{field} is {value!r}.*{allowed}"):
        METHODS["imagepiece"].recipe(DEPTH, **{field: value})


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="'tokenizer'.*evit.*imagepiece.*none"):
        steps(DEPTH, name="tokenizer")
    with pytest.raises(InputError, match="keep_ratio.*'evit'.*keep_rate.*fuse_token"):
        steps(DEPTH, name="evit", keep_ratio=0.7)
    assert steps(DEPTH, name="evit") == METHODS["evit"].recipe(DEPTH)
