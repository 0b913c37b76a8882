import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.state import Assignment, Masking, initial_state
from tests.helpers import masked_models, oracles, oracles_learned, tiny_vit
from tests.helpers.random_gradients import draw_normal
from tests.helpers.rounding import assert_close


def image_keys(batch, seed=0):
    return masked_models.keys(batch, seed)["reducer"]


@pytest.mark.parametrize("n, dim", [(1, 8), (7, 12), (5, 11)])
def test_scores_equal_the_oracle(n, dim):
    x = draw_normal(3, n, dim)
    net = token_selector.KeepScores()
    variables = tiny_vit.fill(jax.eval_shape(net.init, jax.random.key(0), x))
    run = tiny_vit.jit(net.apply)
    mask = (draw_normal(3, n, seed=1) > 0).astype(np.float32)
    mask[2] = 0  # nothing is live there
    for live in (None, mask):
        scores = run(variables, x, live)
        assert scores.dtype == jnp.float32
        for image in range(3):
            image_mask = None if live is None else live[image]
            expected = oracles_learned.keep_scores(
                variables["params"], x[image], image_mask
            )
            np.testing.assert_allclose(scores[image], expected, rtol=2e-5, atol=2e-5)
    half_scores = run(variables, x.astype(jnp.bfloat16), None)
    assert half_scores.dtype == jnp.float32
    assert_close(jnp.exp(half_scores).sum(-1), 1, units=8)


draw_mask = jax.jit(token_selector.draw_mask)


def draw(scores, mask=None, seed=0):
    return draw_mask(scores, mask, image_keys(len(scores), seed))


def test_draws_keep_as_often_as_the_scores_say():
    chance = np.float32([0.1, 0.5, 0.9, 1e-9])
    scores = np.log(np.stack([chance, 1 - chance], axis=-1))
    count = 3000
    keep = np.asarray(draw(np.broadcast_to(scores, (count, 4, 2))))
    assert set(np.unique(keep)) == {0.0, 1.0}
    deviation = np.sqrt(chance * (1 - chance) / count)
    np.testing.assert_allclose(keep.mean(0), chance, atol=1e-6 + 4 * deviation.max())
    assert keep[:, 3].max() == 0


def test_draws_have_the_gradient_of_a_softmax():
    scores = draw_normal(2, 5, 2)
    weight = draw_normal(2, 5, seed=1)

    def hard_sum(scores):
        return jnp.sum(weight * draw(scores))

    def soft_sum(scores):
        noise = token_selector.draw_gumbel_noise(image_keys(2), (5, 2))
        return jnp.sum(weight * jax.nn.softmax(scores + noise)[..., 0])

    gradient = tiny_vit.jit(jax.grad(hard_sum))(scores)
    expected = tiny_vit.jit(jax.grad(soft_sum))(scores)
    assert np.abs(expected).min() > 1e-5
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def outputs(tokens, logits, results=(), mask=None, prefix=1):
    """The Outputs that a loss reads."""
    tokens = jnp.asarray(tokens, jnp.float32)
    state = initial_state(tokens, prefix).replace(mask=mask)
    return Outputs(jnp.asarray(logits), None, tokens, state, results, ())


@pytest.mark.parametrize(
    "prefix, teacher_prefix, packages", [(1, 1, 0), (0, 0, 1), (2, 1, 0)]
)
def test_token_loss_is_over_live_tokens(prefix, teacher_prefix, packages):
    """A package stands last and is live, but is not in the loss."""
    a = draw_normal(2, prefix + 4 + packages, 3)
    b = draw_normal(2, 4 + teacher_prefix, 3, seed=1)
    mask = np.float32([[1, 0, 1, 0], [0, 0, 1, 0]])
    image, token = np.nonzero(mask)
    differences = (
        np.float64(a)[image, prefix + token] - b[image, teacher_prefix + token]
    )
    results = (Masking(mask, append=jnp.zeros((2, 3))),) * packages
    live = np.hstack([mask, np.ones((2, packages), np.float32)])
    student = outputs(a, draw_normal(2, 5), results, jnp.asarray(live), prefix)
    teacher = outputs(b, draw_normal(2, 5), prefix=teacher_prefix)
    loss = float(token_selector.token_loss(student, teacher))
    assert loss == pytest.approx(np.mean(differences**2), rel=1e-5)


def test_the_teachers_tokens_are_merged_and_dropped_alike():
    first_slots = np.array([[0, 1, 0, -1, 2], [2, 2, -1, 0, 1]], np.int32)
    second_slots = np.array([[0, -1, 1], [1, 0, 1]], np.int32)
    results = (
        Assignment(slot_of_token=jnp.asarray(first_slots), n_out=3),
        Masking(jnp.ones((2, 3))),
        Assignment(slot_of_token=jnp.asarray(second_slots), n_out=2),
    )
    a = draw_normal(2, 3, 4)
    b = draw_normal(2, 6, 4, seed=1)
    mask = jnp.asarray([[1, 0], [1, 1]], jnp.float32)
    expected_losses = []
    for image in range(2):
        rows, size = oracles.apply_map(b[image, 1:], np.ones(5), first_slots[image])
        rows, size = oracles.apply_map(rows, size, second_slots[image])
        error = (a[image, 1:] - rows) ** 2
        expected_losses += [error[t].mean() for t in range(2) if mask[image, t]]

    @tiny_vit.jit
    def run(a, b):
        student = outputs(a, draw_normal(2, 5), results, mask)
        return token_selector.token_loss(student, outputs(b, draw_normal(2, 5)))

    assert float(run(a, b)) == pytest.approx(np.mean(expected_losses), rel=1e-5)
