import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.attention import AttentionPool
from imagepiece_jax.reduction.block_plan import StepCounts
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reducers import Ranking, shift_shares, uniqueness_scores
from imagepiece_jax.reduction.state import ReducerInputs, initial_state
from tests.helpers import named_models, oracles, tiny_vit
from tests.helpers.rounding import assert_close

SHORT = tiny_vit.with_fields(
    tiny_vit.IMAGEPIECE, merge_blocks=(0,), prune_blocks=(1,)
)  # 25, 23, 19
# PiToMe's published code gives these energies for unit keys at these angles.
ANGLES = np.radians([0, 8, 20, 24, 90, 96, 150, 200])
ENERGIES = {
    0.75: [-0.2344, -0.2057, -0.1745, -0.1673, -0.2502, -0.2656, -0.4123, -0.5544],
    0.25: [0.1195, 0.1598, 0.2119, 0.2260, 0.1525, 0.1253, -0.0932, -0.3152],
}


def slow_energy(keys, margin):
    """PiToMe's energy by float64 loops. [n, d] -> [n]."""
    units = [key / np.sqrt(sum(key**2)) for key in np.asarray(keys, float)]
    energies = []
    for unit in units:
        margins = [sum(unit * other) - margin for other in units]
        energies.append(np.mean([x if x > 0 else np.exp(x) - 1 for x in margins]))
    return np.array(energies)


def energy_shares(energy):
    return (1 - energy) / sum(1 - energy)


@pytest.mark.parametrize("margin", ENERGIES)
def test_energy_equals_the_published_one(margin):
    keys = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    energy = np.array(ENERGIES[margin])
    np.testing.assert_allclose(slow_energy(keys, margin), energy, atol=6e-5)
    run = tiny_vit.compiled(uniqueness_scores, static_argnums=1)
    (scores,) = run(np.float32(3 * keys[None]), margin)
    np.testing.assert_allclose(scores, energy_shares(energy), atol=2e-5)
    assert list(np.argsort(scores)) == list(np.argsort(-energy))


def run_model(arch, reduction, **options):
    """(model, variables, ReducerInputs per step) of a tiny model of two blocks."""
    model = tiny_vit.model(reduction, arch=arch, depth=2, **options)
    variables = tiny_vit.variables(model)
    run = tiny_vit.compiled(lambda *args: model.apply(*args).reducer_inputs)
    return model, variables, run(variables, tiny_vit.images(2))


@pytest.mark.parametrize(
    "reduction, blocks",
    [
        (SHORT, (0, 1)),
        # A step before block 1 reads the keys and the margin of block 0.
        ("token_pooling:blocks=(1,):keep_rate=0.6", (0,)),
    ],
)
def test_energy_scores_are_over_the_blocks_keys(reduction, blocks):
    """The margin falls from 3/4 with depth; the prefix is left out."""
    model, _, all_inputs = run_model(
        None, tiny_vit.with_fields(reduction, score="energy")
    )
    steps = [layer for layer in model.plan if layer.counts]
    for block, layer, inputs in zip(blocks, steps, all_inputs, strict=True):
        scores = layer.step.reducer.token_scores(inputs, layer.counts)
        for image in range(2):
            energy = slow_energy(inputs.key[image], 0.75 * (1 - block / 2))
            np.testing.assert_allclose(scores[image], energy_shares(energy), atol=1e-6)


def test_probe_scores_are_the_heads_attention_to_the_blocks_tokens():
    """Merged tokens count by size, as in the head."""
    arch = Architecture(class_token=False, pool="map", registers=2)
    _, variables, all_inputs = run_model(arch, f"{SHORT}:score=probe", prop_attn=True)
    assert [inputs.x.shape[1] for inputs in all_inputs] == [25, 23]
    pool = variables["params"]["attn_pool"]
    query = oracles.dense(pool["latent"][0], pool["q"]).reshape(1, tiny_vit.HEADS, -1)
    for inputs in all_inputs:
        for image in range(2):
            x = oracles.layer_norm(inputs.x[image], variables["params"]["norm"])
            key = oracles.dense(x, pool["k"]).reshape(len(x), tiny_vit.HEADS, -1)
            bias = np.log(inputs.size[image])
            _, weights = oracles.attention(query, key, key, bias)
            expected = weights[:, 0].mean(axis=0)
            probe = inputs.probe[image]
            np.testing.assert_allclose(probe, expected, rtol=1e-4, atol=1e-6)
    assert all_inputs[-1].size.max() > 1


def test_the_shift_is_how_far_attention_moves_a_token():
    """Block 1's attention moves the merged tokens that block 0 returns."""
    arch = Architecture(registers=2, layer_scale=True)
    model = tiny_vit.model(f"{SHORT}:score=shift", arch=arch, depth=2)

    @tiny_vit.compiled
    def run(variables, images):
        out = model.apply(variables, images, with_states=True)
        return out.reducer_inputs[1], out.states[0].x

    inputs, x = run(tiny_vit.variables(model), tiny_vit.images(2))
    block_input = np.float64(x)[:, arch.prefix :]
    distances = np.linalg.norm(inputs.x - block_input, axis=2)
    expected = distances / distances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(inputs.shift, expected, rtol=1e-3, atol=1e-6)
    assert np.ptp(expected) > 0.003


def test_shares_of_live_shifts_have_gradients_at_zero():
    change = np.float32([[[3, 4], [0, 0], [6, 8], [0, 1]]])
    live = np.float32([[1, 1, 0, 1]])
    first_share = jax.value_and_grad(lambda change: shift_shares(change, live)[0, 0])
    share, gradient = tiny_vit.compiled(first_share)(change)
    assert_close(share, 5 / 6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "name, fields, score",
    [
        ("imagepiece", {}, "class"),
        ("imagepiece", {"class_token": False}, "received"),
        ("token_pooling", {}, "received"),
        ("peaks", {}, "class_and_mean"),
        ("peaks", {"pool": "mean"}, "mean"),  # the head does not read the class token
    ],
)
def test_default_scores_fit_the_model(name, fields, score):
    model = named_models.facts(**fields)
    assert METHODS[name]().score_for(model) == score
    assert METHODS[name](score="energy").score_for(model) == "energy"


def fill_module(module, x):
    """Random variables of a module that reads tokens x, two of them prefix tokens."""
    state = initial_state(x, 2)
    return tiny_vit.fill(jax.eval_shape(module.init, jax.random.key(0), x, state))


@pytest.mark.parametrize(
    "score", ["received", "energy", "class", "mean", "class_and_mean"]
)
def test_masked_tokens_change_no_other_score(score):
    """Scores equal those without masked tokens. Two of seven tokens are the prefix."""
    module = tiny_vit.attention(12, 3)
    reducer = Ranking(score=score)
    x = np.random.default_rng(0).normal(size=(1, 7, 12)).astype(np.float32)
    variables = fill_module(module, x)
    mask = np.float32([[1, 0, 1, 0, 1]])
    live = np.flatnonzero(np.append([1, 1], mask))

    def scores(x, mask=None):
        state = initial_state(x, 2).replace(mask=mask)
        _, attention_inputs = module.apply(variables, x, state, reducer.attention_reads)
        image = (x[:, 2:], state.size[:, 2:])
        inputs = ReducerInputs(*image, mask=mask, **attention_inputs)
        return reducer.token_scores(inputs, StepCounts(5, 4, progress=1 / 3))

    masked_scores = tiny_vit.compiled(scores)(x, mask)
    masked_scores = np.where(mask > 0.5, masked_scores, 0)
    live_scores = tiny_vit.compiled(scores)(x[:, live])
    assert_close(masked_scores[:, live[2:] - 2], live_scores)
    np.testing.assert_array_equal(masked_scores[:, [1, 3]], 0)


@pytest.mark.parametrize(
    "prop_attn, include", [(True, True), (True, False), (False, True)]
)
def test_the_pool_reads_a_live_token_of_three_patches_as_three_tokens(
    prop_attn, include
):
    """The pool reads both prefix tokens, or neither, and no masked token."""
    parts = {"pool": "map", "pool_include_prefix": include}
    config = tiny_vit.imagenet_vit((), 12, 3, mlp_ratio=2.0, **parts).config
    pool = AttentionPool(config, prop_attn=prop_attn)
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype(np.float32)
    variables = fill_module(pool, x)
    sizes = np.array([1, 1, 3, 1, 5, 1, 2])
    state = initial_state(x, 2).replace(size=np.float32([sizes] * 2))
    run_pool = tiny_vit.compiled(pool.apply, static_argnames="method")
    for mask in (None, np.float32([[1, 0, 1, 0, 1]] * 2)):
        live = range(7) if mask is None else [0, 1, 2, 4, 6]
        live_x = x[:, live]
        masked = state.replace(mask=mask)
        repeated = np.repeat(live_x, sizes[live] if prop_attn else 1, axis=1)
        expected = run_pool(variables, repeated, initial_state(repeated, 2))
        pooled = run_pool(variables, x, masked)
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
    live_state = initial_state(live_x, 2).replace(size=state.size[:, live])
    scores = run_pool(variables, x, masked, method="probe_scores")
    expected = run_pool(variables, live_x, live_state, method="probe_scores")
    np.testing.assert_allclose(scores[:, ::2], expected, rtol=1e-4, atol=1e-6)
