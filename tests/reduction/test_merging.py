"""Applying a reduction to tokens, against slow loops, in every form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.layer_plan import Counts
from imagepiece_jax.reduction.merging import apply as apply_result
from imagepiece_jax.reduction.merging import slot_index
from imagepiece_jax.reduction.methods.imagepiece import Retokenize
from imagepiece_jax.reduction.methods.random import Draw
from imagepiece_jax.reduction.methods.token_pooling import KMeans, KMedoids
from imagepiece_jax.reduction.reducers import Bipartite, TopK
from imagepiece_jax.reduction.tokens import DROPPED, Assignment, Taps, TokenState
from tests import oracles

FORMS = ("gather", "one_hot")

# Compiling is what takes the time here: leave out what only makes programs faster.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
apply = jit(apply_result, static_argnames="form")
index_of = jit(slot_index, static_argnums=(1, 2))
NAN, INF = np.nan, np.inf


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
        x=jnp.asarray(rng.normal(size=(3, prefix + n, 4)), dtype),
        size=jnp.asarray(rng.integers(1, 5, size=(3, prefix + n)), jnp.float32),
        source=jnp.asarray(np.tile(np.arange(n, dtype=np.int32), (3, 1))),
        num_prefix=prefix,
    )
    weight = jnp.asarray(rng.uniform(0.1, 2.0, (3, n)), jnp.float32)
    return state, Assignment(
        dest=jnp.asarray(dest),
        weight=weight if weighted else None,
        n_out=n_out,
        mean=mean,
        index=index_of(jnp.asarray(dest), n_out),
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
    np.testing.assert_array_equal(got.source, assignment.dest)  # one token a patch


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


def test_sizes_are_exact_past_what_bfloat16_can_count():
    state, assignment = make(7, 1, dtype=jnp.bfloat16)
    state = state.replace(size=jnp.full_like(state.size, 129.0))
    assignment = assignment.replace(dest=jnp.zeros((3, 7), jnp.int32), index=None)
    np.testing.assert_array_equal(apply(state, assignment).size[:, 1], 7 * 129)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_the_prefix_is_never_touched(prefix, form):
    state, assignment = make(7, 3, prefix=prefix)
    got = apply(state, assignment, form=form)
    assert got.x.shape == (3, prefix + 3, 4)
    assert got.num_prefix == prefix
    np.testing.assert_array_equal(got.x[:, :prefix], state.x[:, :prefix])
    np.testing.assert_array_equal(got.size[:, :prefix], state.size[:, :prefix])
    np.testing.assert_allclose(got.x, expected(state, assignment)[0], rtol=1e-5)


@pytest.mark.parametrize("n, n_out", [(7, 3), (19, 12), (5, 5)])
def test_groups_are_only_an_upper_bound(n, n_out):
    """As many as there are, as any map can have (None), and more than there can be."""
    state, assignment = make(n, n_out)
    want = apply(state, assignment, form="one_hot")
    for groups in (busiest(np.asarray(assignment.dest)), None, n):
        index = index_of(assignment.dest, n_out, groups)
        got = apply(state, assignment.replace(index=index))
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_alone_in_its_slot_keeps_its_bits(form):
    """w / w is 1: a mean over one token is that token, not a rounding of it."""
    state, _ = make(7, 7)
    dest = jnp.tile(jnp.asarray([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    got = apply(state, Assignment(dest=dest, n_out=5), form=form)
    np.testing.assert_array_equal(got.x[:, [1, 3, 4, 5]], state.x[:, [1, 4, 6, 7]])


def test_without_form_apply_gathers_where_it_can():
    state, assignment = make(7, 3)
    unknown = assignment.replace(index=None)
    for given, form in ((assignment, "gather"), (unknown, "one_hot")):
        default, named = (
            str(jax.make_jaxpr(apply_result, static_argnums=2)(state, given, chosen))
            for chosen in (None, form)
        )
        assert default == named


@pytest.mark.parametrize("form", FORMS)
def test_a_slot_is_live_if_any_of_its_tokens_is(form):
    """A slot with a live and a masked token, one with two masked, one with a live one.

    The last token is live, and dropped.
    """
    state = TokenState(
        x=jnp.zeros((1, 7, 1)),
        size=jnp.ones((1, 7)),
        mask=jnp.asarray([[1.0, 0, 0, 1, 0, 1]]),
    )
    dest = jnp.asarray([[0, 0, 1, 2, 1, DROPPED]])
    moved = apply(state, Assignment(dest=dest, n_out=3), form=form)
    assert moved.mask.tolist() == [[1, 0, 1]]


def test_no_source_map_is_asked_for_none_is_made():
    state, assignment = make(7, 3)
    assert apply(state.replace(source=None), assignment).source is None


def test_a_bad_value_in_a_dropped_token_stays_there():
    """The gather reads survivors only; a product would spread 0 * inf."""
    state, _ = make(7, 7)
    dest = jnp.tile(jnp.asarray([0, 1, 1, 2, DROPPED, 3, 4]), (3, 1))
    state = state.replace(x=state.x.at[:, 1 + 4].set(jnp.inf))
    got = apply(state, Assignment(dest=dest, n_out=5), form="gather")
    assert jnp.isfinite(got.x).all()


# Transforms


def move(form, state, assignment):
    return apply_result(state, assignment, form)


@pytest.mark.parametrize("form", FORMS)
def test_apply_is_the_same_mapped_and_stacked(form):
    pair = make(7, 3, weighted=True)
    stacked = jax.tree.map(lambda a: jnp.stack([a, a[::-1]])[None], pair)
    got = jax.pmap(jax.vmap(functools.partial(move, form)))(*stacked)
    plain = apply(*pair, form=form)
    want = jax.tree.map(lambda a: jnp.stack([a, a[::-1]])[None], plain)
    chex.assert_trees_all_close(got, want, rtol=1e-6)


@pytest.mark.slow
def test_apply_is_the_same_without_jit():
    """The gather is tested so with a model."""
    pair = make(7, 3, weighted=True)
    want = apply(*pair, form="one_hot")
    chex.assert_trees_all_close(move("one_hot", *pair), want, rtol=1e-6)


def test_apply_is_traced_once():
    chex.clear_trace_counter()
    move = jax.jit(chex.assert_max_traces(apply_result, n=1))
    for seed in (0, 1):
        state, assignment = make(7, 3, weighted=True, seed=seed)
        got = move(state, assignment)
        np.testing.assert_allclose(got.x, expected(state, assignment)[0], rtol=1e-5)


# Gradients


@functools.partial(jit, static_argnames="form")
def gradients(state, assignment, probe, form):
    """Gradients of sum(tokens * probe): of x and, where there is one, of weight."""

    def loss(x, weight):
        moved = apply_result(
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
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("weighted, mean", WEIGHTS)
def test_gradients_are_the_slopes(weighted, mean):
    """The gather's own backward rule, plain differentiation of the product, slopes."""
    state, assignment = make(5, 3, weighted=weighted, mean=mean)
    probe = random_probe(3, 4, 4)
    by_gather = gradients(state, assignment, probe, "gather")
    by_product = gradients(state, assignment, probe, "one_hot")
    slopes = finite_differences(state, assignment, probe)
    chex.assert_trees_all_close(by_gather, by_product, rtol=1e-5, atol=1e-6)
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
    state, _ = make(7, 3)

    def loss(x, cls_attn):
        taps = Taps(
            x=x[:, 1:],
            size=state.size[:, 1:],
            metric=x[:, 1:],
            cls_attn=cls_attn,
            attn_columns=cls_attn,
            rng=jax.random.split(jax.random.key(0), len(x)),
        )
        result = reducer(taps, counts)
        return apply_result(state.replace(x=x), result, "gather").x.sum()

    both = jax.value_and_grad(loss, argnums=(0, 1))
    found = primitives(jax.make_jaxpr(both)(state.x, state.size[:, 1:]))
    assert "gather" in found
    assert not found & SLOW
