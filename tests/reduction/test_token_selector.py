import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction import token_selector
from imagepiece_jax.reduction.state import Assignment, Masking, initial_state
from tests.helpers import masked_models, oracles, tiny_vit
from tests.helpers.random_gradients import draw_normal


def image_keys(batch):
    return masked_models.keys(batch)["reducer"]


def test_draws_have_the_gradient_of_a_softmax():
    scores = draw_normal(2, 5, 2)
    weight = draw_normal(2, 5, seed=1)
    keys = image_keys(2)

    def hard_sum(scores):
        return jnp.sum(weight * token_selector.draw_mask(scores, None, keys))

    def soft_sum(scores):
        noise = token_selector.draw_gumbel_noise(keys, (5, 2))
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
    differences = np.float64(a)[image, prefix + token]
    differences -= b[image, teacher_prefix + token]
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
