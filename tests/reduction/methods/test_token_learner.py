import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.token_learner import MlpLearner
from imagepiece_jax.reduction.state import ReducerInputs
from tests.helpers import oracles, tiny_vit
from tests.helpers.reduction_steps import apply_learned, random_variables


def unit_size_inputs(x):
    return ReducerInputs(x=jnp.asarray(x), size=jnp.ones(x.shape[:2], jnp.float32))


# one token; fewer tokens than are learned; as many; more tokens
@pytest.mark.parametrize(
    "n, dtype", [(1, "bfloat16"), (3, "float32"), (5, "bfloat16"), (11, "float32")]
)
def test_weights_are_a_softmax_of_scores_over_tokens(n, dtype):
    learner = MlpLearner(num_tokens=5, bottleneck_dim=4)
    x = np.random.default_rng(0).normal(1, 2, (2, n, 6)).astype(jnp.dtype(dtype))
    counts = StepCounts(n, 5)
    variables = random_variables(learner, unit_size_inputs(x), counts)
    matrix = apply_learned(learner, variables, unit_size_inputs(x), counts).matrix
    assert matrix.shape == (2, 5, n)
    assert matrix.dtype == jnp.float32
    params = variables["params"]["scores"]
    for image in range(2):
        tokens = oracles.layer_norm(np.asarray(x[image], float), params["norm"])
        hidden = oracles.gelu(oracles.dense(tokens, params["fc1"]), "tanh")
        expected = oracles.softmax(oracles.dense(hidden, params["fc2"]).T)
        np.testing.assert_allclose(matrix[image], expected, atol=2e-6)


def test_initial_parameters_are_the_authors():
    learner = MlpLearner(num_tokens=16)
    x = unit_size_inputs(np.ones((1, 4, 384), np.float32))
    init = tiny_vit.compiled(learner.init, static_argnums=2)
    params = init(jax.random.key(0), x, StepCounts(4, 16))["params"]
    assert tiny_vit.count(params) == 26_448  # 2 * 384 + 384 * 64 + 64 + 64 * 16 + 16
    kernel = params["scores"]["fc1"]["kernel"]
    limit = np.sqrt(6 / sum(kernel.shape))  # Xavier, uniform
    assert 0.9 * limit < np.abs(kernel).max() <= limit
