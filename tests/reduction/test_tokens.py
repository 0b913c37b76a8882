"""Applying a reduction, and the map from patches to tokens, against slow loops."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from imagepiece_jax.reduction import provenance, tokens
from imagepiece_jax.reduction.layer_plan import Counts
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.methods.random import Draw
from imagepiece_jax.reduction.methods.token_pooling import KMeans, KMedoids
from imagepiece_jax.reduction.reducers import Bipartite, TopK
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, Taps, TokenState, start
from tests import oracles
from tests.models import tiny
from tests.rounding import assert_close

FORMS = ("gather", "one_hot")

apply = tiny.compiled(tokens.apply, static_argnames="form")
index_of = tiny.compiled(tokens.slot_index, static_argnums=(1, 2))
NAN, INF = np.nan, np.inf


def random_maps(rng, batch, n, n_out, drop=0.2):
    """Slot maps onto 0..n_out - 1 of `batch` images. -> [batch, n] int32."""
    dest = rng.integers(n_out, size=(batch, n))
    dest = np.where(rng.random((batch, n)) < drop, DROPPED, dest)
    for row in dest:
        row[rng.permutation(n)[:n_out]] = np.arange(n_out)
    return dest.astype(np.int32)


def test_start_is_one_patch_a_token():
    x = np.zeros((2, 6, 3), np.float32)
    state = start(x, num_prefix=2)
    assert state.size.tolist() == [[1.0] * 6] * 2
    assert state.size.dtype == jnp.float32


def test_the_prefix_is_not_an_array():
    """A traced prefix would make shapes depend on data."""
    state = TokenState(x=np.zeros((1, 3, 2)), size=np.ones((1, 3)), num_prefix=2)
    assert len(jax.tree.leaves(state)) == 2
    again = jax.eval_shape(lambda given: given, state)
    assert again.num_prefix == 2


@functools.partial(tiny.compiled, static_argnums=2)
def move_all(state, steps, form):
    """The state after each of several steps, as one program."""
    move = functools.partial(tokens.apply, form=form)
    return list(itertools.accumulate(steps, move, initial=state))[1:]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_stack_of_reductions_stays_honest(form, drop):
    """Sizes are counts of patches, features their means, slots none empty."""
    rng = np.random.default_rng(3)
    patches = rng.normal(size=(3, 24, 4))
    x = np.concatenate([rng.normal(size=(3, 1, 4)), patches], axis=1)
    whole = np.tile(np.arange(24), (3, 1))
    first = TokenState(x=np.float32(x), size=np.ones((3, 25), np.float32))
    steps = [
        Assignment(dest=random_maps(rng, 3, n, n_out, drop), n_out=n_out)
        for n, n_out in ((24, 15), (15, 15), (15, 8), (8, 3), (3, 1))
    ]
    slots = iter(provenance.patch_slots(steps, 3, 24)[1:])
    for state, step in zip(move_all(first, steps, form), steps, strict=True):
        n_out = step.n_out
        for image in range(3):
            whole[image] = oracles.compose(step.dest[image], whole[image])
            counts = oracles.count_sources(whole[image], n_out)
            assert counts.min() >= 1
            np.testing.assert_array_equal(state.size[image, 1:], counts)
            means, _ = oracles.apply_map(
                patches[image], np.ones(24), whole[image], n_out=n_out
            )
            np.testing.assert_allclose(state.x[image, 1:], means, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(next(slots), whole)
    kept = (whole != DROPPED).sum(axis=1)
    np.testing.assert_array_equal(state.size[:, 1:].sum(axis=1), kept)
    assert drop or (kept == 24).all()


def random_map(rng, n, n_out, drop=0.3):
    """A slot map onto 0..n_out - 1: some tokens dropped, some slots with several."""
    dest = np.where(rng.random(n) < drop, DROPPED, rng.integers(n_out, size=n))
    dest[rng.permutation(n)[:n_out]] = np.arange(n_out)
    return dest


def busiest(dest):
    """Slots with several sources, the most of any image. [B, n] -> int."""
    return max(int((np.bincount(row[row >= 0]) > 1).sum()) for row in dest)


def make(n, n_out, prefix=1, weighted=False, mean=True, dtype=np.float32, seed=0):
    """(state, assignment) with three images of random tokens, sizes and slot maps."""
    rng = np.random.default_rng(seed)
    dest = np.stack([random_map(rng, n, n_out) for _ in range(3)]).astype(np.int32)
    state = TokenState(
        x=rng.normal(size=(3, prefix + n, 4)).astype(dtype),
        size=rng.integers(1, 5, size=(3, prefix + n)).astype(np.float32),
        num_prefix=prefix,
    )
    weight = rng.uniform(0.1, 2.0, (3, n)).astype(np.float32)
    return state, Assignment(
        dest=dest,
        weight=weight if weighted else None,
        n_out=n_out,
        mean=mean,
        index=index_of(dest, n_out),
    )


def expected(state, assignment):
    """The oracle's tokens and sizes for the images of a `make` pair, with prefix."""
    prefix, xs, sizes = state.num_prefix, [], []
    for b in range(state.x.shape[0]):
        x, size = np.asarray(state.x[b], float), np.asarray(state.size[b])
        weight = None if assignment.weight is None else assignment.weight[b]
        moved, added = oracles.apply_map(
            x[prefix:],
            size[prefix:],
            np.asarray(assignment.dest[b]),
            weight,
            assignment.n_out,
            assignment.mean,
        )
        xs.append(np.concatenate([x[:prefix], moved]))
        sizes.append(np.concatenate([size[:prefix], added]))
    return np.stack(xs), np.stack(sizes)


WEIGHTS = [(False, True), (True, True), (True, False), (False, False)]
MOVES = [  # n, n_out, weighted, mean
    *((7, 3, *weights) for weights in WEIGHTS),
    (1, 1, False, True),
    (1, 1, False, False),
    (2, 1, True, True),
    (19, 12, False, True),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, n_out, weighted, mean", MOVES)
def test_apply_equals_the_oracle(n, n_out, weighted, mean, form):
    state, assignment = make(n, n_out, weighted=weighted, mean=mean)
    got = apply(state, assignment, form=form)
    x, size = expected(state, assignment)
    np.testing.assert_allclose(got.x, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got.size, size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [True, False])
def test_apply_in_bfloat16_rounds_once(mean, form):
    state, assignment = make(7, 3, weighted=True, mean=mean, dtype=jnp.bfloat16)
    got = apply(state, assignment, form=form)
    assert got.x.dtype == jnp.bfloat16
    assert got.size.dtype == jnp.float32
    x, size = expected(state, assignment)
    np.testing.assert_allclose(np.asarray(got.x, float), x, rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(got.size, size)


@pytest.mark.parametrize("weighted, mean", WEIGHTS)
def test_many_absorbed_tokens_are_a_product(weighted, mean):
    """More than are summed one by one; features and gradients are the same."""
    n, n_out = 3 * tokens.FEW, tokens.FEW
    state, assignment = make(n, n_out, weighted=weighted, mean=mean)
    got = apply(state, assignment, form="gather")
    np.testing.assert_allclose(
        got.x, expected(state, assignment)[0], rtol=1e-5, atol=1e-5
    )
    probe = random_probe(*got.x.shape)
    by_gather, by_product = (
        gradients(state, assignment, probe, form) for form in FORMS
    )
    assert_close(by_gather, by_product)


def test_sizes_are_exact_past_what_bfloat16_can_count():
    state, assignment = make(7, 1, dtype=jnp.bfloat16)
    state = state.replace(size=np.full_like(state.size, 129.0))
    assignment = assignment.replace(dest=np.zeros((3, 7), np.int32), index=None)
    np.testing.assert_array_equal(apply(state, assignment).size[:, 1], 7 * 129)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_prefix_is_never_touched(prefix, form):
    state, assignment = make(7, 3, prefix=prefix)
    got = apply(state, assignment, form=form)
    chex.assert_shape(got.x, (3, prefix + 3, 4))
    assert got.num_prefix == prefix
    np.testing.assert_array_equal(got.x[:, :prefix], state.x[:, :prefix])
    np.testing.assert_array_equal(got.size[:, :prefix], state.size[:, :prefix])
    np.testing.assert_allclose(got.x, expected(state, assignment)[0], rtol=1e-5)


@pytest.mark.parametrize("n, n_out", [(7, 3), (19, 12), (5, 5), (60, 20)])
def test_groups_are_only_an_upper_bound(n, n_out):
    """As many as there are, as any map can have (None), and more than there can be."""
    state, assignment = make(n, n_out)

    @tiny.compiled
    def move(state, assignment):
        indexes = [
            tokens.slot_index(assignment.dest, n_out, groups)
            for groups in (busiest(dest), None, n)
        ]
        return tokens.apply(state, assignment, "one_hot"), [
            tokens.apply(state, assignment.replace(index=index)) for index in indexes
        ]

    dest = assignment.dest
    want, moved = move(state, assignment)
    for got in moved:
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_in_its_slot_keeps_its_bits(form):
    """w / w is 1: a mean over one token is that token, not a rounding of it."""
    state, _ = make(7, 7)
    dest = np.tile(np.int32([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    got = apply(state, Assignment(dest=dest, n_out=5), form=form)
    np.testing.assert_array_equal(got.x[:, [1, 3, 4, 5]], state.x[:, [1, 4, 6, 7]])


def test_without_form_apply_gathers_where_it_can():
    state, assignment = make(7, 3)
    unknown = assignment.replace(index=None)
    for given, form in ((assignment, "gather"), (unknown, "one_hot")):
        default, named = (
            str(jax.make_jaxpr(tokens.apply, static_argnums=2)(state, given, chosen))
            for chosen in (None, form)
        )
        assert default == named


@pytest.mark.parametrize("form", FORMS)
def test_a_slot_is_live_if_any_of_its_tokens_is(form):
    """A slot with a live and a masked token, one with two masked, one with a live one.

    The last token is live, and dropped.
    """
    state = TokenState(
        x=np.zeros((1, 7, 1), np.float32),
        size=np.ones((1, 7), np.float32),
        mask=np.float32([[1, 0, 0, 1, 0, 1]]),
    )
    dest = np.int32([[0, 0, 1, 2, 1, DROPPED]])
    moved = apply(state, Assignment(dest=dest, n_out=3), form=form)
    assert moved.mask.tolist() == [[1, 0, 1]]


def test_a_bad_value_in_a_dropped_token_stays_there():
    """The gather reads survivors only; a product would spread 0 * inf."""
    state, _ = make(7, 7)
    dest = np.tile(np.int32([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    state.x[:, 1 + 4] = np.inf
    got = apply(state, Assignment(dest=dest, n_out=5), form="gather")
    assert np.isfinite(got.x).all()


# Transforms


class MovesTest(chex.TestCase):
    @chex.variants(with_pmap=True)
    @parameterized.named_parameters((form, form) for form in FORMS)
    def test_stacks_are_moved_as_each_batch(self, form):
        pair = make(7, 3, weighted=True)
        both = pair, apply(*pair, form=form)
        stack, want = jax.tree.map(lambda a: np.stack([a, a[::-1]])[:, None], both)
        move = functools.partial(tokens.apply, form=form)
        got = self.variant(jax.vmap(move), **tiny.ON_DEVICES)(*stack)
        chex.assert_trees_all_close(got, want, rtol=1e-6)

    @chex.variants(without_jit=True, with_device=True)
    @pytest.mark.slow
    def test_without_jit(self):
        """The gather is tested so with a model."""
        pair = make(7, 3, weighted=True)
        got = self.variant(functools.partial(tokens.apply, form="one_hot"))(*pair)
        want = apply(*pair, form="one_hot")
        chex.assert_trees_all_close(got, want, rtol=1e-6)


def test_apply_is_traced_once():
    chex.clear_trace_counter()
    move = tiny.compiled(chex.assert_max_traces(tokens.apply, n=1))
    for seed in (0, 1):
        state, assignment = make(7, 3, weighted=True, seed=seed)
        got = move(state, assignment)
        np.testing.assert_allclose(got.x, expected(state, assignment)[0], rtol=1e-5)


# Gradients


@functools.partial(tiny.compiled, static_argnames="form")
def gradients(state, assignment, probe, form):
    """Gradients of sum(tokens * probe): of x and, where there is one, of weight."""

    def loss(x, weight):
        moved = tokens.apply(
            state.replace(x=x), assignment.replace(weight=weight), form
        )
        return jnp.sum(moved.x.astype(jnp.float32) * probe)

    return jax.grad(loss, argnums=(0, 1))(state.x, assignment.weight)


def finite_differences(state, assignment, probe, step=1e-5):
    """The same from the oracle, in float64 by central differences."""
    x, weight = np.asarray(state.x, float), assignment.weight
    free = [x] if weight is None else [x, np.asarray(weight, float)]
    slopes = [np.zeros_like(a) for a in free]

    def loss():
        moved = expected(
            state.replace(x=free[0]),
            assignment.replace(weight=None if weight is None else free[1]),
        )
        return float((moved[0] * np.asarray(probe, float)).sum())

    for values, slope in zip(free, slopes, strict=True):
        for i in np.ndindex(values.shape):
            held = values[i]
            values[i] = held + step
            up = loss()
            values[i] = held - step
            slope[i] = (up - loss()) / (2 * step)
            values[i] = held
    return slopes if len(slopes) == 2 else (*slopes, None)


def random_probe(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("weighted, mean", WEIGHTS)
def test_gradients_are_the_slopes(weighted, mean):
    """The gather's own backward rule, plain differentiation of the product, slopes."""
    state, assignment = make(5, 3, weighted=weighted, mean=mean)
    probe = random_probe(3, 4, 4)
    by_gather = gradients(state, assignment, probe, "gather")
    by_product = gradients(state, assignment, probe, "one_hot")
    slopes = finite_differences(state, assignment, probe)
    assert_close(by_gather, by_product)
    for gradient, slope in zip(by_gather, slopes, strict=True):
        assert (gradient is None) == (slope is None)
        if slope is not None:
            np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_bfloat16_are_finite_and_close(form):
    state, assignment = make(5, 3, weighted=True, dtype=jnp.bfloat16)
    probe = random_probe(3, 4, 4)
    got = gradients(state, assignment, probe, form)
    want = finite_differences(state, assignment, probe)
    assert got[0].dtype == jnp.bfloat16
    for gradient, slope in zip(got, want, strict=True):
        gradient = np.asarray(gradient, float)
        assert np.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, slope, rtol=2**-6, atol=2**-6)


# The compiled program


def primitives(jaxpr):
    """Names of all primitives of a jaxpr, however deep."""
    found = set()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found.add(equation.primitive.name)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                found |= primitives(inner)
    return found


SLOW = {"sort", "top_k", "cumsum", "scatter", "scatter-add", "scatter_add"}


def test_the_walk_finds_slow_primitives_at_any_depth():
    def program(x):
        nested = jax.jit(lambda y: jnp.cumsum(jnp.sort(y)))
        return jax.lax.cond(True, nested, lambda y: y.at[0].set(1.0), x)

    found = primitives(jax.make_jaxpr(jax.jit(program))(jnp.ones(3)))
    assert {"sort", "cumsum", "scatter"} <= found


@pytest.mark.parametrize(
    "reducer, counts",
    [
        (TopK(), Counts(n_in=7, n_out=3)),
        (TopK(fuse=True), Counts(n_in=7, n_out=3)),
        (Retokenize(), Counts(n_in=7, n_out=5, candidates=4)),
        (Bipartite(), Counts(n_in=7, n_out=5)),
        (Draw(), Counts(n_in=7, n_out=3)),
        (KMedoids(), Counts(n_in=7, n_out=3)),
        (KMeans(), Counts(n_in=7, n_out=3)),
    ],
    ids=str,
)
def test_reducing_needs_no_sort_scatter_or_cumsum(reducer, counts):
    """On GPUs each is a chain of kernels, or not deterministic; backward included."""
    state = jax.tree.map(jnp.asarray, make(7, 3)[0])
    keys = jax.random.split(jax.random.key(0), len(state.x))

    def loss(x, cls_attn):
        taps = Taps(
            x=x[:, 1:],
            size=state.size[:, 1:],
            metric=x[:, 1:],
            cls_attn=cls_attn,
            attn_columns=cls_attn,
            rng=keys,
        )
        result = reducer(taps, counts)
        return tokens.apply(state.replace(x=x), result, "gather").x.sum()

    both = jax.value_and_grad(loss, argnums=(0, 1))
    found = primitives(jax.make_jaxpr(both)(state.x, state.size[:, 1:]))
    assert "gather" in found
    assert not found & SLOW
