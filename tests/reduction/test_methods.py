"""The contract of every method.

A new method's line in `METHODS` covers it. Methods run with default fields and with the
`SETTINGS` below.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.reduction import contract, moves, provenance
from imagepiece_jax.reduction.block_plan import plan_blocks
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reducers import ATTENTION_SCORES
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import oracles, tiny_vit
from tests.helpers.named_models import facts
from tests.helpers.reduction_steps import plan_reducers, shortest_plan

SETTINGS = [
    "imagepiece:merge_blocks=(0,2):prune_blocks=(1,):parity=1:size_weighting=False",
    "imagepiece:keep_rate=0.0:merge_ratio=1.0:candidate_ratio=1.0",
    "evit:fuse_token=True",
    "evit:keep_rate=0.0:blocks=(0,1)",
    "tome:r=99",
    "grid_pooling:grid_size=1",
    "token_learner:num_tokens=25:block=0",
    "spvit:keep_rates=(0.5,):blocks=(1,)",
    "diffrate:prune=(20,26,9):merge=(20,12,9)",
    "diffrate:prune=(2,2,2):merge=(2,2,2)",
    "pitome:keep_rate=0.5:metric=token",
    "tofu:keep_rate=0.0",
    "mctf:r=0.35:blocks=(0,1,2):score=class",
    "mctf:r=99",
    "dpc_knn:keep_rate=0.0:neighbors=99",
    "atc:linkage=single:size_weighting=False",
    "imagepiece_dynamicvit:mode=topk",
    "peaks:keep_rate=0.0",
]
# The default is too large for the few tokens here.
SMALLER = {"grid_pooling": "grid_size=2", "tofu": "keep_rate=0.7"}
SMALLER |= {name: tiny_vit.SMALL[name] for name in ("diffrate", "dtem", "mctf")}
# These methods also decide by a patch's position.
BY_POSITION = {"tome", "imagepiece_tome", "random", "grid_pooling", "tofu", "mctf"}
BY_POSITION |= {"dtem"}
# Tokens mix all patches, so groups and sizes mean nothing.
SOFT = {"token_learner"}

CASES = {}  # {a method's name or one of SETTINGS: (the name, Method)}
for text in (*METHODS, *SETTINGS):
    whole_text = f"{text}:{SMALLER[text]}" if text in SMALLER else text
    CASES[text] = text.partition(":")[0], Reduction.read(whole_text).method
DEFAULTS = [name for name in METHODS if name != "none"]

GRID = (5, 5)
D = 8
N0 = GRID[0] * GRID[1]
# Most methods have three steps by default, in blocks 3, 6 and 9. These methods have a
# step in nearly every block, so few blocks suffice.
FEW = dict.fromkeys(("tome", "diffrate", "pitome", "tofu", "mctf", "dtem"), 3)
FEW |= dict.fromkeys((name for name in METHODS if "imagepiece" in name), 4)


def short_plan(name, method, n0=N0):
    """A method's plan, with at most two steps of one kind."""
    depth = FEW.get(name, 10)
    plan = method.plan(facts(depth, n0), num_prefix=1)
    is_uniform = len(set(plan_reducers(plan))) == 1
    # DiffRate's steps differ.
    return shortest_plan(plan) if is_uniform and name != "diffrate" else plan


def image_keys(batch):
    return jax.random.split(jax.random.key(0), batch)


def decide_filled(reducer, inputs, counts):
    """A reducer's result. Random parameters of a learned reducer leave no tie."""
    if not isinstance(reducer, nn.Module):
        return reducer(inputs, counts)
    if reducer not in _parameters:  # shapes do not depend on the token count
        init = functools.partial(reducer.init, inputs=inputs, counts=counts)
        _parameters[reducer] = tiny_vit.fill(jax.eval_shape(init, jax.random.key(0)))
    return reducer.apply(_parameters[reducer], inputs, counts)


_parameters = {}


def run_plan(plan, x, keys):
    """All states, beginning with the initial one, and all results. x [B, 1 + n0, D].

    Blocks do nothing. Scores and metric are functions of the tokens.
    """
    states = [initial_state(x)]
    results = []
    grid = GRID
    for block, layer in enumerate(plan):
        if layer.counts:
            inputs = step_inputs(states[-1], block_keys(keys, block), grid)
            results.append(decide_filled(layer.step.reducer, inputs, layer.counts))
            states.append(moves.apply_result(states[-1], results[-1]))
            grid = None
    return states, results


def patch_slots(results):
    return jax.tree.map(np.asarray, provenance.list_token_maps(results, 3, N0))


def block_keys(keys, block):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, block)


def step_inputs(state, keys, grid=None):
    """ReducerInputs with scores and features computed from the tokens."""
    x = state.image_rows(state.x)
    scores = jax.nn.softmax(4 * x[..., 0].astype(jnp.float32))
    return ReducerInputs(
        x=x,
        size=state.image_rows(state.size),
        attn_size=state.image_rows(state.effective_size),
        metric=x,
        **dict.fromkeys(ATTENTION_SCORES, scores),
        key=x,
        rng=keys,
        grid=grid,
        num_prefix=state.num_prefix,
        num_heads=2,
    )


def random_tokens(dtype="float32", seed=0):
    """Three images of a class token and N0 patches. -> [3, 1 + N0, D]."""
    return np.random.default_rng(seed).normal(size=(3, 1 + N0, D)).astype(dtype)


@functools.cache
def case_program(name, method):
    def run(x, keys):
        return run_plan(short_plan(name, method), x, keys)

    chex.clear_trace_counter()  # it counts by source line, over all cases
    return jax.jit(chex.assert_max_traces(run, n=1))


ORDER = np.random.default_rng(1).permutation(N0)


def permute_patches(x):
    return np.concatenate([x[:, :1], x[:, 1:][:, ORDER]], axis=1)


def walk(name, method, x=None, images=slice(None)):
    """States and results of a case, as NumPy arrays."""
    x = random_tokens() if x is None else x
    run = case_program(name, method)
    return jax.tree.map(np.asarray, run(x[images], image_keys(3)[images]))


def each_case(texts):
    cases = [CASES[text] for text in texts]
    return pytest.mark.parametrize("name, method", cases, ids=texts)


@each_case(CASES)
def test_promises_hold_after_every_step(name, method):
    plan = short_plan(name, method)
    # Else equal models would differ, and jit would compile each.
    assert short_plan(name, dataclasses.replace(method)) == plan
    x = random_tokens()
    states, results = walk(name, method)
    contract.check_results(plan, results)
    counts = [layer.counts for layer in plan if layer.counts]
    assert bool(counts) == (name != "none")
    assert states[-1].x.shape[1] == plan[-1].mlp_tokens
    before, *slots = patch_slots(results)
    assert any(slot is None for slot in slots) == (name in SOFT)
    for state, slot, count in zip(states[1:], slots, counts, strict=True):
        chex.assert_shape(state.x, (3, 1 + count.n_out, D))
        prefix = (state.x[:, 0], state.size[:, 0])
        chex.assert_trees_all_equal(prefix, (x[:, 0], np.ones(3, np.float32)))
        if name in SOFT:
            assert (state.size == 1).all()
            continue
        assert (slot[before == DROPPED] == DROPPED).all()
        for source, size in zip(slot, state.size, strict=True):
            patches = oracles.count_sources(source, count.n_out)
            assert patches.min() >= 1
            np.testing.assert_array_equal(size[1:], patches)
        before = slot


@each_case([text for text in CASES if CASES[text][0] not in BY_POSITION])
def test_permuted_patches_keep_their_groups(name, method):
    (*_, plain), results = walk(name, method)
    (*_, moved), permuted = walk(name, method, permute_patches(random_tokens()))
    if name in SOFT:
        assert np.abs(plain.x - moved.x).max() < 1e-5
        return
    for image in range(3):
        a = patch_slots(results)[-1][image][ORDER]
        b = patch_slots(permuted)[-1][image]
        np.testing.assert_array_equal(a == DROPPED, b == DROPPED)
        np.testing.assert_array_equal(a[:, None] == a, b[:, None] == b)
        kept = np.flatnonzero(b != DROPPED)
        pair = (moved.x[image, 1 + b[kept]], plain.x[image, 1 + a[kept]])
        chex.assert_trees_all_close(*pair, rtol=1e-4, atol=1e-5)


@each_case(DEFAULTS)
def test_large_tokens_stay_finite(name, method):
    """Squares of an image times 1e30 overflow; tokens stay finite."""
    x = random_tokens()
    states, _ = walk(name, method, x=x * np.float32(1e30))
    limit = 2.1 * 1e30 * np.linalg.norm(x, axis=-1).max()
    assert all(np.abs(state.x).max() < limit for state in states)


@each_case(CASES)
def test_images_are_reduced_independently(name, method):
    """Their order does not matter, and other values need no new trace."""
    order = np.array([1, 2, 0])  # reversed, a mirror would not show
    expected = jax.tree.map(lambda a: a[order], walk(name, method))
    reordered = walk(name, method, images=order)
    # Tokens are up to 5. A processor may sum each row in another order, which costs
    # about ten roundings of 6e-7. Another image would differ by 1.
    chex.assert_trees_all_close(reordered, expected, rtol=1e-5, atol=1e-5)


@each_case(DEFAULTS)
@pytest.mark.slow
def test_gradients_in_bfloat16_are_finite(name, method):
    """Every image's patches have gradients; the class token has its own alone."""
    plan = shortest_plan(short_plan(name, method))
    x = random_tokens(jnp.bfloat16)
    probe = random_tokens(jnp.bfloat16, seed=2)[:, : plan[-1].mlp_tokens]

    def loss(x):
        states, _ = run_plan(plan, x, image_keys(3))
        return jnp.sum(states[-1].x * probe)

    gradient = np.asarray(jax.jit(jax.grad(loss))(x))
    chex.assert_type(gradient, jnp.bfloat16)
    chex.assert_tree_all_finite(gradient)
    np.testing.assert_array_equal(gradient[:, 0], probe[:, 0])
    assert (np.abs(gradient[:, 1:]).max(axis=(1, 2)) > 0).all()


NOTHING = {"keep_rate": 1.0, "merge_ratio": 0.0, "r": 0, "keep_rates": (1.0,) * 3}
NOTHING |= {"prune": (197,) * 3, "merge": (197,) * 3}


@pytest.mark.parametrize("name", sorted({*METHODS} - {"grid_pooling", *SOFT}))
def test_a_method_that_reduces_nothing_is_the_dense_plan(name):
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    method = METHODS[name](**{k: v for k, v in NOTHING.items() if k in fields})
    plan = short_plan(name, method, n0=196)
    dense = plan_blocks(len(plan), 196, ())
    tokens = [(layer.counts, layer.mlp_tokens) for layer in plan]
    assert tokens == [(layer.counts, layer.mlp_tokens) for layer in dense]
