"""SPViT: votes of the heads, and packages of what they drop."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagepiece_jax.models.config import create_model
from imagepiece_jax.reduction.layer_plan import Counts, build
from imagepiece_jax.reduction.methods.spvit import Selector, SPViT, package_weights
from imagepiece_jax.reduction.tokens import Assignment, Masking, Taps, apply, start
from tests import oracles, oracles_learned
from tests.models import masked, tiny

FIELDS = {"name": "spvit", "keep_rates": (0.6, 0.3), "blocks": (1, 2)}  # 25, 16, 9
BATCH, HEADS, D = 3, 3, 12


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(selector, counts, x, mask=None, seed=0):
    """(parameters, result) of a selector with random parameters."""

    def taps(x, mask):
        keys = jax.random.split(jax.random.key(seed), len(x))
        size = jnp.ones(x.shape[:2])
        return Taps(x=x, size=size, mask=mask, rng=keys, num_heads=HEADS)

    def init(key):
        return selector.init(key, taps(x, mask), counts)

    parameters = tiny.fill(jax.eval_shape(init, jax.random.key(0)))

    @tiny.compiled
    def call(parameters, x, mask):
        return selector.apply(parameters, taps(x, mask), counts)

    return parameters["params"], call(parameters, x, mask)


# Counts and sizes


@pytest.mark.parametrize(
    "rates, tokens",
    [
        ((0.617, 0.369, 0.137), [122, 75, 30]),
        ((0.7, 0.49, 0.343), [139, 99, 71]),
        ((0.0, 0.0, 0.0), [3, 3, 3]),  # one and a package: the next steps cannot shrink
        ((0.1, 0.001, 0.0), [21, 4, 4]),
    ],
)
def test_published_tokens_with_packages_and_class_token(rates, tokens):
    plan = build(12, 196, SPViT(keep_rates=rates).steps(12))
    assert [plan[block].attn_tokens for block in (3, 6, 9)] == tokens


def test_in_training_each_step_adds_its_package():
    plan = build(12, 196, SPViT().steps(12), masked=True)
    assert [plan[block].attn_tokens for block in (2, 3, 6, 9)] == [197, 198, 199, 200]


def test_a_step_that_changes_nothing_leaves_no_package():
    plan = build(12, 196, SPViT(keep_rates=(1.0, 0.5, 0.5)).steps(12))
    assert [plan[block].attn_tokens - 1 for block in (3, 6, 9)] == [196, 99, 99]
    assert plan[6].counts.stage == 1
    assert plan[3].counts is plan[9].counts is None


# LN 2 d, then d^2 + d, d^2 / 2 + d / 2, d^2 / 8 + d / 4, d / 2 + 2 at d = 64: 6,930;
# votes of H heads: H (H // 2) + H // 2 + (H // 2) H + H.
@pytest.mark.parametrize(
    "share_heads, each", [(True, 6_930 + 45), (False, 6 * 6_930 + 45)]
)
def test_parameters_of_a_selector(share_heads, each):
    reduction = {"name": "spvit", "share_heads": share_heads}
    reduction |= {"blocks": (0, 1), "keep_rates": (0.6, 0.3)}
    for is_masked in (False, True):
        model = create_model("deit_s", reduction=reduction, masked=is_masked, depth=2)
        params = tiny.shapes(model, 224)["params"]
        sizes = {k: tiny.count(v) for k, v in params.items() if "reducer" in k}
        assert sizes == {"reducer_0": each, "reducer_1": each}


# Package


def test_package_by_hand():
    """Of four tokens of the values 1 to 4 the second and the third are dropped."""
    probability, x = np.float32([[0.9, 0.2, 0.4, 0.6]]), np.arange(1.0, 5.0)
    dropped, weigh = (
        np.int32([[0, 1, 1, 0]]),
        jax.jit(package_weights, static_argnums=2),
    )
    for norm, value in (("none", 1.6), ("score", 2.666667), ("count", 2.5)):
        weight = weigh(probability, dropped, norm)
        assert float(weight[0] @ x) == pytest.approx(value, rel=3e-6)


@pytest.mark.parametrize("norm", ["none", "score", "count"])
def test_nothing_dropped_is_a_package_of_zeros_with_a_tame_gradient(norm):
    probability, before = np.full((1, 4), 0.5, np.float32), np.ones((1, 4), np.float32)

    def package(probability, keep):
        weight = package_weights(probability, before - keep, norm)
        return jnp.sum(weight * jnp.arange(1.0, 5.0)[None])

    run = tiny.compiled(jax.value_and_grad(package, argnums=(0, 1)))
    value, slopes = run(probability, before)
    assert float(value) == 0
    assert max(np.abs(slope).max() for slope in slopes) <= 4


# Selector


@pytest.mark.parametrize(
    "share_heads, norm",
    [(True, "none"), (True, "score"), (True, "count"), (False, "score")],
)
def test_evaluation_equals_the_oracle(share_heads, norm):
    """The best stay in order, then older packages, then the new one."""
    x = numbers(BATCH, 10, D)
    counts = Counts(n_in=10, n_out=6, stage=3)  # two packages: 3 + 2 + 1 stay
    parameters, result = run(Selector(share_heads, norm), counts, x)
    assert isinstance(result, Assignment) and result.n_out == 6
    move = tiny.compiled(lambda x, result: apply(start(x, num_prefix=0), result))
    state = move(x, result)
    for image in range(BATCH):
        tokens = x[image].astype(float)
        _, probability = oracles_learned.select(parameters, tokens, HEADS)
        dest = oracles.top_k(probability[:8], 3)
        dropped = np.append(dest == -1, [False, False])
        want = np.append(np.where(dest == -1, 5, dest), [3, 4])
        np.testing.assert_array_equal(result.dest[image], want)
        package = oracles_learned.package(probability, dropped, tokens, norm)
        rows = np.vstack([tokens[~dropped], package])
        np.testing.assert_allclose(state.x[image], rows, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(state.size[image], [1] * 5 + [5])


@pytest.mark.parametrize("norm", ["none", "score", "count"])
def test_training_equals_the_oracle(norm):
    """Two packages are among the tokens; what was masked is in no new package."""
    x, before = numbers(BATCH, 10, D), np.ones((BATCH, 10), np.float32)
    before[:, [1, 4]] = 0
    counts = Counts(n_in=10, n_out=11, stage=3)
    parameters, result = run(Selector(True, norm), counts, x, before)
    assert isinstance(result, Masking)
    keep = np.asarray(result.keep)
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert (keep[:, 8:] == 1).all() and (keep <= before).all()
    for image in range(BATCH):
        tokens = x[image].astype(float)
        _, probability = oracles_learned.select(
            parameters, tokens, HEADS, before[image]
        )
        dropped = before[image] > keep[image]
        assert dropped.any()
        want = oracles_learned.package(probability, dropped, tokens, norm)
        np.testing.assert_allclose(result.append[image], want, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_votes():
    """Over many images alike, tokens live as often as their mean log odds imply."""
    count = 2000
    x = np.broadcast_to(numbers(1, 4, D), (count, 4, D))
    parameters, result = run(Selector(), Counts(n_in=4, n_out=5), x)
    scores, _ = oracles_learned.select(parameters, x[0].astype(float), HEADS)
    share = np.exp(scores[:, 0]) / np.exp(scores).sum(axis=1)
    np.testing.assert_allclose(result.keep.mean(axis=0), share, atol=0.045)


def test_votes_that_underflow_still_count():
    x = numbers(BATCH, 5, D)
    parameters, _ = run(Selector(), Counts(n_in=5, n_out=3), x)
    parameters["vote_out"]["bias"] = np.float32([-300, -302, -301])
    size = np.ones((BATCH, 5), np.float32)

    @tiny.compiled
    @jax.value_and_grad
    def total(x):
        taps = Taps(x=x, size=size, num_heads=HEADS)
        selector, counts = Selector(), Counts(n_in=5, n_out=3)
        return jnp.sum(selector.apply({"params": parameters}, taps, counts).weight)

    value, slope = total(x)
    assert np.isfinite(value) and np.isfinite(slope).all()


@pytest.mark.parametrize("n", [1, 2])
def test_few_tokens(n):
    """Masked training of one or two patches; of the second, evaluation too."""
    x = numbers(BATCH, n, D)
    _, result = run(Selector(), Counts(n_in=n, n_out=n + 1), x)
    assert result.append.shape == (BATCH, D) and np.isfinite(result.append).all()
    _, result = run(Selector(), Counts(n_in=n + 1, n_out=n), numbers(BATCH, n + 1, D))
    for row in np.asarray(result.dest):
        assert set(row) == set(range(n))


# In the model


def test_packages_travel_at_the_end():
    """Evaluation removes tokens; training keeps all and grows by the packages."""
    model, trained = (tiny.model(FIELDS, masked=m) for m in (False, True))
    variables, images = tiny.variables(model), tiny.images()
    small = jax.eval_shape(model.apply, variables, images)
    assert small.state.x.shape == (3, 1 + 7 + 2, tiny.WIDTH)
    assert all((taps.num_heads == tiny.HEADS) for taps in small.taps)
    out = masked.train(trained)(variables, images, masked.keys())
    assert out.state.x.shape == (3, 1 + tiny.TOKENS + 2, tiny.WIDTH)
    first, second = out.results
    np.testing.assert_array_equal(out.taps[1].x.shape, (3, tiny.TOKENS + 1, tiny.WIDTH))
    np.testing.assert_array_equal(second.keep[:, tiny.TOKENS :], 1)
    np.testing.assert_array_equal(out.state.mask[:, :-1], second.keep)
    np.testing.assert_array_equal(out.state.mask[:, -1], 1)


# Loss


def masks_of(*masks):
    """Outputs that carry nothing but masks, one a stage."""
    results = tuple(Masking(np.float32(mask)) for mask in masks)
    tokens, logits = np.zeros((2, 5, 3), np.float32), np.zeros((2, 4), np.float32)
    first = Taps(x=tokens[:, 1:], size=np.ones((2, 4), np.float32))
    return types.SimpleNamespace(
        results=results,
        taps=(first,),
        tokens=tokens,
        logits=logits,
        state=start(tokens),
    )


def test_the_ratio_is_of_the_whole_batch_without_packages():
    """Shares .5 and .75 of four are .625 together: (.625 - .7)^2, and (.25 - .3)^2."""
    first = [[1, 1, 0, 0], [1, 1, 1, 0]]
    second = [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1]]  # the fifth is a package
    out = masks_of(first, second)
    steps = SPViT(keep_rates=(0.7, 0.3), blocks=(1, 2)).steps(3)
    plan = build(3, 10, steps, masked=True)  # shares of more tokens, the same targets
    terms = SPViT(ratio_weight=1.0).loss(out, out, plan)
    assert float(terms["ratio"]) == pytest.approx((0.075**2 + 0.05**2) / 2, rel=1e-5)
    assert float(terms["kl"]) == float(terms["tokens"]) == 0


def test_a_few_steps_bring_the_shares_to_their_targets():
    """All terms together, from most tokens live; as at first, only selectors learn."""
    model, teacher = tiny.model(FIELDS, masked=True), tiny.model(depth=1)
    params = tiny.variables(model)["params"]
    for block in (1, 2):
        score = params[f"reducer_{block}"]["scores"]["score"]
        score["kernel"] *= np.float32(0.1)
        score["bias"] = np.float32([1.5, -1.5])
    taught = tiny.jit(teacher.apply)({"params": params}, tiny.images())
    selectors = {k: v for k, v in params.items() if k.startswith("reducer_")}
    optimizer = optax.adam(0.02)

    def objective(selectors, seed):
        keys = {"reducer": jax.random.split(jax.random.key(seed), 3)}
        variables = {"params": params | selectors}
        out = model.apply(variables, tiny.images(), True, keys)
        terms = SPViT().loss(out, taught, model.plan)
        keeps = [jnp.mean(result.keep[:, : tiny.TOKENS]) for result in out.results]
        return sum(terms.values()), (terms["ratio"], *keeps)

    @tiny.jit
    def step(selectors, state, seed):
        slope, seen = jax.grad(objective, has_aux=True)(selectors, seed)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(selectors, updates), state, seen

    state, history = jax.jit(optimizer.init)(selectors), []
    for seed in range(80):
        selectors, state, seen = step(selectors, state, seed)
        history.append(seen)
    history = np.array(history, float)
    assert history[-10:, 0].mean() < 0.2 * history[:10, 0].mean()
    np.testing.assert_allclose(history[-10:, 1:].mean(axis=0), [0.6, 0.3], atol=0.12)


# Groups and mistakes


def test_the_backbone_is_slow_until_the_schedule_is_slower():
    method = SPViT()
    group = method.param_groups("blocks_0/attn/q/kernel")
    assert group.frozen_epochs == 5
    assert float(group.lr(jnp.float32(5e-4), 1e-3)) == pytest.approx(1e-5)
    assert float(group.lr(jnp.float32(2e-6), 1e-3)) == pytest.approx(2e-6)
    assert group == method.param_groups("head/kernel")
    assert method.param_groups("reducer_9/vote_in/kernel").lr is None
    assert method.param_groups("cls_token").frozen_epochs == math.inf
    assert SPViT.needs_teacher
