"""Contract of all methods, which models and figures rely on.

All of `METHODS` are tested, with default fields and with the `SETTINGS` below: a new
method is covered by its line in `METHODS`. chex's variants need absl's parameters.
"""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
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
from tests.helpers.reduction_steps import reducers, shortest

SETTINGS = [
    "imagepiece:merge_blocks=(0,2):prune_blocks=(1,):parity=1:size_weighting=False",
    "imagepiece:keep_rate=0.0:merge_ratio=1.0:candidate_ratio=1.0",
    "evit:fuse_token=True",
    "evit:keep_rate=0.0:blocks=(0,1)",
    "tome:r=99",
    "random:keep_rate=0.0",
    "grid_pooling:grid_size=1",
    "token_learner:num_tokens=25:block=0",
    "dynamicvit:keep_rate=0.0",
    "spvit:keep_rates=(0.5,):blocks=(1,)",
    "diffrate:prune=(20,26,9):merge=(20,12,9)",
    "diffrate:prune=(2,2,2):merge=(2,2,2)",
    "pitome:keep_rate=0.5:metric=token",
    "tofu:keep_rate=0.0",
    "mctf:r=0.35:blocks=(0,1,2)",
    "mctf:r=99",
    "dpc_knn:keep_rate=0.0:neighbors=99",
    "atc:linkage=single:size_weighting=False",
    "imagepiece_dynamicvit:mode=topk",
    "peaks:keep_rate=0.0",
    "peaks:score=class_and_mean:blocks=(0,1)",
    "peaks:score=energy",
    "imagepiece:score=mean",
]
# What has to be smaller than the default for the few tokens here.
SMALLER = {"grid_pooling": "grid_size=2", "tofu": "keep_rate=0.7"}
SMALLER |= {name: tiny_vit.SMALL[name] for name in ("diffrate", "dtem", "mctf")}
# Where patches are decides with these, not only what they are.
BY_POSITION = {"tome", "imagepiece_tome", "random", "grid_pooling", "tofu", "mctf"}
BY_POSITION |= {"dtem"}
# Tokens are mixtures of all patches: there are no groups, and sizes mean nothing.
SOFT = {"token_learner"}


def cases(names):
    """(name of the case, name of a method, Method), for `named_parameters`."""
    found = []
    for text in (*METHODS, *SETTINGS):
        label = re.sub(r"\W+", "_", text).strip("_")
        name = text.partition(":")[0]
        if text in SMALLER:
            text = f"{text}:{SMALLER[text]}"
        if name in names:
            found.append((label, name, Reduction.read(text).method))
    return found


CASES = cases(METHODS)
GRID = (5, 5)
D = 8
N0 = GRID[0] * GRID[1]
# Blocks of a model: the default of most is three steps, at 3, 6 and 9; of these it is
# a step in nearly every block.
FEW = dict.fromkeys(("tome", "diffrate", "pitome", "tofu", "mctf", "dtem"), 3)
FEW |= dict.fromkeys((name for name in METHODS if "imagepiece" in name), 4)


def plan_of(name, method, n0=N0):
    """Of steps that are all of one kind the first two: a third meets nothing new."""
    depth = FEW.get(name, 10)
    plan = method.plan(facts(depth, n0), prefix=1)
    alike = len(set(reducers(plan))) == 1 and name != "diffrate"  # of three amounts
    return shortest(plan) if alike else plan


@functools.cache
def image_keys(batch):
    """What reducers that draw are given: one key an image. -> [batch]."""
    with jax.ensure_compile_time_eval():  # whoever asks first, a traced test too
        draw = jax.vmap(jax.random.fold_in, (None, 0))
        return draw(jax.random.key(0), jnp.arange(batch))


def decide(reducer, inputs, counts):
    """Result of a reducer; one that learns has random parameters that leave no tie."""
    if not isinstance(reducer, nn.Module):
        return reducer(inputs, counts)

    if reducer not in _parameters:  # of one shape however many tokens there are
        init = functools.partial(reducer.init, inputs=inputs, counts=counts)
        _parameters[reducer] = tiny_vit.fill(jax.eval_shape(init, jax.random.key(0)))
    return reducer.apply(_parameters[reducer], inputs, counts)


_parameters = {}


def walk(plan, x, keys=None):
    """(states, the one before any step first; results). x [B, 1 + n0, D].

    The blocks do nothing; scores and metric are functions of the tokens themselves.
    """
    states = [initial_state(x)]
    results = []
    grid = GRID
    keys = image_keys(len(x)) if keys is None else keys
    for block, layer in enumerate(plan):
        if layer.counts:
            inputs = inputs_of(layer, states[-1], keys_of(keys, block), grid)
            results.append(decide(layer.step.reducer, inputs, layer.counts))
            states.append(moves.apply_result(states[-1], results[-1]))
            grid = None
    return states, results


def slots_of(results):
    """Slots of the patches before the first step and after each; None if soft."""
    slots = provenance.trace_patches(results, 3, N0)
    return [None if each is None else np.asarray(each) for each in slots]


def keys_of(keys, block):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, block)


def inputs_of(layer, state, keys, grid=None):
    x = state.x[:, 1:]
    scores = jax.nn.softmax(4 * x[..., 0].astype(jnp.float32))
    return ReducerInputs(
        x=x,
        size=state.size[:, 1:],
        attn_size=state.effective_size[:, 1:],
        metric=x,
        **dict.fromkeys(ATTENTION_SCORES, scores),
        key=x,
        rng=keys,
        grid=grid,
        num_heads=2,
    )


def random_tokens(dtype="float32", seed=0):
    """Three images of N0 tokens behind a class token. -> [3, 1 + N0, D]."""
    return np.random.default_rng(seed).normal(size=(3, 1 + N0, D)).astype(dtype)


@functools.cache
def program(name, method):
    plan = plan_of(name, method)

    def run(x, keys):
        return walk(plan, x, keys=keys)

    chex.clear_trace_counter()  # it counts by source line: the other cases' traces too
    return chex.assert_max_traces(run, n=1)


DEFAULTS = [case for case in CASES if case[0] == case[1] != "none"]
ANYWHERE = cases(set(METHODS) - BY_POSITION)
# One reducer each that draws, merges, pools, sums and mixes.
KINDS = ("random", "tome", "grid_pooling", "evit_fuse_token_True", "token_learner")
ONE_OF_EACH_KIND = [case for case in CASES if case[0] in KINDS]
ORDER = np.random.default_rng(1).permutation(N0)


def permuted(x):
    return np.concatenate([x[:, :1], x[:, 1:][:, ORDER]], axis=1)


def first_step(name, method):
    """(function of inputs, inputs, result) of the first step of a case."""
    steps = enumerate(plan_of(name, method))
    block, layer = next((block, layer) for block, layer in steps if layer.counts)
    x = jnp.asarray(random_tokens())
    keys = image_keys(3)
    inputs = inputs_of(layer, initial_state(x), keys_of(keys, block), GRID)
    run = functools.partial(decide, layer.step.reducer, counts=layer.counts)
    _, (result, *_) = jax.jit(program(name, method))(x, keys)
    return run, inputs, jax.tree.map(np.asarray, result)


def stacked(tree, stack):
    """A batch for one device and its reverse for another, each a stack of one batch."""
    return jax.tree.map(lambda a: stack([a, a[::-1]])[:, None], tree)


class MethodsTest(chex.TestCase):
    """What holds for every method, whatever is in the images and however it is run."""

    def walk(self, name, method, x=None, images=slice(None)):
        run = self.variant(program(name, method))
        x = random_tokens() if x is None else x
        both = run(jnp.asarray(x[images]), image_keys(3)[images])
        return jax.tree.map(np.asarray, both)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*CASES)
    def test_promises_hold_after_every_step(self, name, method):
        plan = plan_of(name, method)
        x = random_tokens()
        states, results = self.walk(name, method)
        contract.check_results(plan, results)
        counts = [layer.counts for layer in plan if layer.counts]
        assert bool(counts) == (name != "none")
        assert states[-1].x.shape[1] == plan[-1].mlp_tokens
        before, *slots = slots_of(results)
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

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*ANYWHERE)
    def test_a_permutation_of_patches_moves_groups_and_nothing_else(self, name, method):
        (*_, plain), results = self.walk(name, method)
        (*_, moved), others = self.walk(name, method, permuted(random_tokens()))
        if name in SOFT:
            assert np.abs(plain.x - moved.x).max() < 1e-5
            return
        first = slots_of(results)[-1]
        second = slots_of(others)[-1]
        for image in range(3):
            a = first[image][ORDER]
            b = second[image]
            np.testing.assert_array_equal(a == DROPPED, b == DROPPED)
            np.testing.assert_array_equal(a[:, None] == a, b[:, None] == b)
            kept = np.flatnonzero(b != DROPPED)
            pair = moved.x[image, 1 + b[kept]], plain.x[image, 1 + a[kept]]
            chex.assert_trees_all_close(*pair, rtol=1e-4, atol=1e-5)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*DEFAULTS)
    def test_large_tokens_stay_finite(self, name, method):
        """Though their squares overflow, as those of an image times 1e30 do."""
        x = random_tokens()
        states, _ = self.walk(name, method, x=x * np.float32(1e30))
        limit = 2.1 * 1e30 * np.linalg.norm(x, axis=-1).max()
        assert all(np.abs(state.x).max() < limit for state in states)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*CASES)
    def test_images_do_not_know_of_each_other(self, name, method):
        """Nor does their order matter; other values are served by the same trace."""
        order = np.array([1, 2, 0])  # turned around, a mirror would not show
        want = jax.tree.map(lambda a: a[order], self.walk(name, method))
        got = self.walk(name, method, images=order)
        # Tokens are up to 5, and a processor may add up each row of a batch in another
        # order, which costs some ten roundings of 6e-7; another image differs by 1.
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)

    @chex.variants(with_pmap=True)
    @parameterized.named_parameters(*ONE_OF_EACH_KIND)
    def test_stacked_batches_are_decided_as_each_of_them(self, name, method):
        run, inputs, want = first_step(name, method)
        got = self.variant(jax.vmap(run), **tiny_vit.ON_DEVICES)(
            stacked(inputs, jnp.stack)
        )
        want = stacked(want, np.stack)
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*DEFAULTS)
    @pytest.mark.slow
    def test_gradients_in_bfloat16_are_finite(self, name, method):
        """They reach the patches of every image; the class token gets its own alone."""
        plan = shortest(plan_of(name, method))
        x = random_tokens(jnp.bfloat16)
        probe = random_tokens(jnp.bfloat16, seed=2)[:, : plan[-1].mlp_tokens]
        slope = jax.grad(lambda x: jnp.sum(walk(plan, x)[0][-1].x * probe))
        slope = np.asarray(self.variant(slope)(x))
        chex.assert_type(slope, jnp.bfloat16)
        chex.assert_tree_all_finite(slope)
        np.testing.assert_array_equal(slope[:, 0], probe[:, 0])
        assert (np.abs(slope[:, 1:]).max(axis=(1, 2)) > 0).all()


def test_two_devices_are_there():
    """Else chex skips its variant with_pmap."""
    chex.assert_devices_available(2, "cpu")


NOTHING = {"keep_rate": 1.0, "merge_ratio": 0.0, "r": 0, "keep_rates": (1.0,) * 3}
NOTHING |= {"prune": (197,) * 3, "merge": (197,) * 3}


@pytest.mark.parametrize("name", sorted({*METHODS} - {"grid_pooling", *SOFT}))
def test_a_method_that_reduces_nothing_is_the_dense_plan(name):
    fields = {field.name for field in dataclasses.fields(METHODS[name])}
    method = METHODS[name](**{k: v for k, v in NOTHING.items() if k in fields})
    plan = plan_of(name, method, n0=196)
    dense = plan_blocks(len(plan), 196, ())
    tokens = [(layer.counts, layer.mlp_tokens) for layer in plan]
    assert tokens == [(layer.counts, layer.mlp_tokens) for layer in dense]
