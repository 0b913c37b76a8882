import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.kernels import forms
from imagepiece_jax.kernels.similarity import all_cosines
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.peaks import KeepPeaks
from imagepiece_jax.reduction.state import ReducerInputs, TokenState
from tests.helpers import oracles, oracles_peaks, tiny_vit
from tests.helpers.reduction_steps import vectors
from tests.helpers.rounding import assert_close


def reduce_once(x, score, size, patches, n_out, mask=None, fast=False):
    """Reduce x [B, n, D] once: (cosines, Assignment, the new TokenState).

    A class token of ones stands before x.
    """
    front = ((0, 0), (1, 0))
    state = TokenState(
        x=jnp.pad(jnp.asarray(x), (*front, (0, 0)), constant_values=1),
        size=jnp.pad(jnp.float32(patches), front, constant_values=1),
        attn_size=jnp.pad(jnp.float32(size), front, constant_values=1),
        mask=mask,
    )
    inputs = ReducerInputs(
        x=state.image_rows(state.x),
        size=state.image_rows(state.size),
        attn_size=state.image_rows(state.attn_size),
        cls_and_mean_attn=jnp.asarray(score, jnp.float32),
        mask=mask,
        all_x=state.x if fast else None,
    )
    counts = StepCounts(n_in=inputs.x.shape[1], n_out=n_out)
    with forms.fast_forms(fast):
        result = KeepPeaks(score="class_and_mean")(inputs, counts)
        cosines = all_cosines(inputs.x, inputs.all_x)
        return cosines, result, moves.apply_result(state, result)


compiled_step = tiny_vit.compiled(reduce_once, static_argnames=("n_out", "fast"))


KINDS = ("random", "few", "equal", "alike", "zero", "unattended", "opposite")


def all_kinds(n, seed=0):
    """One image per kind: x [7, n, 6], score, size and patches [7, n]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(len(KINDS), n, 6))
    axes = np.eye(6)[rng.integers(6, size=(2, n))] * rng.choice([-1, 1], (2, n, 1))
    x[1:3] = axes * rng.choice([0.001, 1.0], (2, n, 1))  # three sizes of cosine
    x[3] = x[3, :1]
    x[4, : (n + 1) // 2] = 0.0
    x[6] = x[6, :1] * rng.choice([-1.0, 1.0], (n, 1))
    score = rng.dirichlet(np.ones(n), len(KINDS))
    score[1] = rng.choice([0.0, 0.25, 0.5], n)
    score[2] = 1 / 32
    score[3:5] = rng.choice([0.125, 0.25], (2, n))
    score[5, rng.permutation(n)[2:]] = 0.0
    patches = rng.integers(1, 5, (len(KINDS), n))
    size = patches * rng.uniform(0.3, 1, (len(KINDS), n))
    return tuple(np.float32(a) for a in (x, score, size, patches))


@pytest.mark.parametrize(
    "n, n_out", [(1, 1), (2, 1), (3, 2), (30, 1), (30, 15), (30, 29)]
)
def test_a_step_equals_the_oracle(n, n_out):
    """The oracle gets the package's cosines, so both have the same ties."""
    arrays = all_kinds(n)
    cosines, result, after = compiled_step(*arrays, n_out=n_out)
    assert_close(after.x[:, 0], np.ones((len(KINDS), 6)))
    for image, (x, score, size, patches) in enumerate(zip(*arrays, strict=True)):
        assert_close(cosines[image], oracles.cosine(x, x), scale=1.0)
        decision = oracles_peaks.decide(score, cosines[image], n_out)
        np.testing.assert_array_equal(result.slot_of_token[image], decision.slot)
        rows = oracles_peaks.mean_weights(decision, score) @ x
        assert_close(after.x[image, 1:], rows, scale=1.0)
        sizes = oracles_peaks.attention_sizes(decision, size)
        assert_close(after.attn_size[image, 1:], sizes, scale=4.0)
        counted = np.bincount(decision.slot, patches)
        np.testing.assert_array_equal(after.size[image, 1:], counted)
        assert after.attn_size.min() > 0


@pytest.mark.parametrize("n_out", [4, 7, 11])
def test_masked_tokens_leave_first_and_add_nothing(n_out):
    """Nine of twelve tokens are live, and reduce as if they were alone.

    With more slots, masked tokens fill the last slots and stay masked.
    """
    n = 12
    arrays = [a[:1] for a in all_kinds(n)]
    arrays[1][0, [2, 7]] = 0.5, 0.6  # must not be read
    mask = np.ones((1, n), np.float32)
    mask[0, [2, 5, 7]] = 0
    live = np.flatnonzero(mask[0])
    left = min(n_out, 9)
    _, alone, after_alone = compiled_step(*(a[:, live] for a in arrays), n_out=left)
    _, result, after = compiled_step(*arrays, n_out=n_out, mask=mask)
    np.testing.assert_array_equal(result.slot_of_token[:, live], alone.slot_of_token)
    assert_close(after.x[:, : 1 + left], after_alone.x)
    assert_close(after.attn_size[:, : 1 + left], after_alone.attn_size)
    assert after.mask.tolist() == [[1] * left + [0] * (n_out - left)]
    chex.assert_tree_all_finite(after)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_unattended_tokens_have_a_plain_mean(dtype, fast):
    """A mean's weights are no products of tiny numbers, also for small tokens.

    Beside an attended token in their slot, they have no weight.
    """
    x = vectors([0, 1, 2, 90, 91, 92, 180, 181], 2.0**-8).astype(dtype)
    score = np.float32([[0, 0, 0, 0, 0.5, 0, 0, 0]])
    ones = np.ones((1, 8), np.float32)
    cosines, result, after = compiled_step(x, score, ones, ones, n_out=3, fast=fast)
    decision = oracles_peaks.decide(score[0], cosines[0], 3)
    np.testing.assert_array_equal(result.slot_of_token[0], decision.slot)
    expected = oracles_peaks.mean_weights(decision, score[0]) @ np.float64(x[0])
    atol = 4 * float(jnp.finfo(dtype).eps) * 2.0**-8
    np.testing.assert_allclose(np.float64(after.x[0, 1:]), expected, rtol=0, atol=atol)
    assert after.x.dtype == dtype


def test_means_pass_gradients_to_tokens_and_scores_get_none():
    """Unattended tokens get gradients, too; attention sizes get none."""
    x, score, size, patches = all_kinds(30)
    probe = np.random.default_rng(2).normal(size=(len(KINDS), 13, 6)).astype(np.float32)

    def objective(x, score):
        cosines, _, after = reduce_once(x, score, size, patches, n_out=12)
        return jnp.sum(after.x * probe) + jnp.sum(after.attn_size), cosines

    slopes = jax.grad(objective, argnums=(0, 1), has_aux=True)
    (slope, slope_of_score), cosines = tiny_vit.compiled(slopes)(x, score)
    np.testing.assert_array_equal(slope_of_score, 0)
    for image in range(len(KINDS)):
        decision = oracles_peaks.decide(score[image], cosines[image], 12)
        matrix = oracles_peaks.mean_weights(decision, score[image])
        assert_close(slope[image], matrix.T @ probe[image, 1:])


@pytest.mark.parametrize("score", ["class", "mean", "class_and_mean"])
def test_a_model_equals_the_oracle(score):
    """Attention counts merged tokens by their sizes, and so do the scores."""
    model = tiny_vit.model(f"peaks:blocks=(1,2):keep_rate=0.6:score={score}")
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2)
    out = tiny_vit.compiled(model.apply)(variables, images)
    params = jax.tree.map(lambda a: np.asarray(a, float), variables["params"])
    options = {"patch": tiny_vit.PATCH, "heads": tiny_vit.HEADS, "name": score}
    for image, pixels in enumerate(np.asarray(images, float)):
        counts = {1: 15, 2: 9}
        logits, size, steps = oracles_peaks.forward(params, pixels, counts, **options)
        assert_close(out.logits[image], logits, units=128)
        assert_close(out.state.effective_size[image], size, units=128)
        for result, oracle_step in zip(out.results, steps, strict=True):
            slots = oracle_step.decision.slot
            np.testing.assert_array_equal(result.slot_of_token[image], slots)
            assert_close(result.weight[image], oracle_step.score, units=128)
        np.testing.assert_array_equal(out.state.size[image, 1:], steps[-1].patches)
