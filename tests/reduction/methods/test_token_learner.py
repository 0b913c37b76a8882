"""TokenLearner against its authors' definitions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods.token_learner import MlpLearner
from imagepiece_jax.reduction.state import ReducerInputs
from tests import oracles
from tests.models import tiny
from tests.reduction.steps import apply_learned, random_variables


def inputs_of(x):
    x = jnp.asarray(x)
    return ReducerInputs(x=x, size=jnp.ones(x.shape[:2], jnp.float32))


def weigh(learner, params, x):
    """The Mixing matrix of a learner with `params`. x [B, n, D] -> [B, S, n]."""
    counts = StepCounts(x.shape[1], learner.num_tokens)
    return apply_learned(learner, {"params": params}, inputs_of(x), counts).matrix


def parameters(learner, x):
    """Random values for all parameters of a learner."""
    counts = StepCounts(x.shape[1], learner.num_tokens)
    return random_variables(learner, inputs_of(x), counts)["params"]


def tokens(n, width=6, batch=2, seed=0):
    values = np.random.default_rng(seed).normal(1, 2, size=(batch, n, width))
    return values.astype(np.float32)


def slow_scores(x, params):
    """[n, D] -> [n, S]."""
    hidden = oracles.dense(oracles.layer_norm(x, params["norm"]), params["fc1"])
    return oracles.dense(oracles.gelu(hidden, "tanh"), params["fc2"])


# one token; fewer tokens than are learned; as many; more
@pytest.mark.parametrize(
    "n, dtype",
    [(1, "bfloat16"), (3, "float32"), (5, "bfloat16"), (11, "float32")],
)
def test_weights_are_a_softmax_over_tokens_of_the_scores(n, dtype):
    learner = MlpLearner(num_tokens=5, bottleneck_dim=4)
    x = tokens(n)
    x = x.astype(jnp.dtype(dtype))
    params = parameters(learner, x)
    matrix = weigh(learner, params, x)
    assert matrix.shape == (2, 5, n)
    assert matrix.dtype == jnp.float32
    for image in range(2):
        scores = slow_scores(np.asarray(x[image], float), params["scores"])
        want = oracles.softmax(scores.T)
        np.testing.assert_allclose(matrix[image], want, atol=2e-6)


def test_parameters_and_where_they_start():
    learner = MlpLearner(num_tokens=16)
    x = inputs_of(np.ones((1, 4, 384), np.float32))
    init = tiny.compiled(learner.init, static_argnums=2)
    params = init(jax.random.key(0), x, StepCounts(4, 16))["params"]
    assert tiny.count(params) == 26_448  # 2 * 384 + 384 * 64 + 64 + 64 * 16 + 16
    for name in ("fc1", "fc2"):
        kernel = params["scores"][name]["kernel"]
        limit = np.sqrt(6 / sum(kernel.shape))  # Xavier, uniform
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert not params["scores"][name]["bias"].any()


@pytest.mark.parametrize("class_token", [False, True])
def test_in_a_model_it_takes_the_place_of_all_tokens(class_token):
    model = tiny.model("token_learner:num_tokens=4:block=1", class_token=class_token)
    variables = tiny.variables(model)
    assert set(variables["params"]) >= {"reducer_1", "blocks_1"}
    out = tiny.compiled(model.apply)(variables, tiny.images())
    state = out.state
    (result,) = out.results
    (inputs,) = out.reducer_inputs
    chex.assert_shape(state.x, (3, class_token + 4, tiny.WIDTH))
    assert (np.asarray(state.size) == 1).all()
    learner = model.plan[1].step.reducer
    params = variables["params"]["reducer_1"]
    learned = weigh(learner, params, inputs.x)
    np.testing.assert_allclose(result.matrix, learned, atol=1e-6)
    assert np.isfinite(out.logits).all()
