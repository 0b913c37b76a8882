import copy
import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from configs import base
from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.optimizer import (
    create_adamw,
    create_optimizer,
    decay_mask,
    learning_rate,
    moving_average,
    scale_by_group,
)
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close

STEPS = 1251  # 1281167 images // 1024
DEIT = RunConfig.from_config(base.get_config())
TABLE = [(0, 1e-6), (1, 2.008e-4), (4, 8.002e-4)]
TABLE += [(5, 9.99322e-4), (150, 5.05e-4), (299, 1.00271e-5)]
PRINTED_UNITS = 50  # half a unit of six digits' last one, 5e-6, and float32


def deit_rate(step, **changes):
    return learning_rate(step, dataclasses.replace(DEIT, **changes), STEPS)


def test_rate_at_the_start_of_an_epoch():
    for epoch, lr in TABLE:
        assert_close(deit_rate(epoch * STEPS), lr, units=PRINTED_UNITS)
        steps = (epoch + 1) * STEPS + np.array([0, 1, STEPS - 1])
        rates = deit_rate(steps, lr_offset=1)
        assert_close(rates, np.full(3, lr), units=PRINTED_UNITS)
    assert deit_rate(0, lr_offset=1) == np.float32(1e-6)


def test_rate_changes_within_epochs_and_ends_at_the_minimum():
    epochs = np.array([1, 700, 5 * STEPS - 1, 5 * STEPS + 1, 100_000]) / STEPS
    epochs = np.concatenate([epochs, [300, 301, 450]])
    rise = 1e-6 + epochs * (1e-3 - 1e-6) / 5
    angle = math.pi * np.minimum(epochs, 300) / 300
    fall = 1e-5 + (1e-3 - 1e-5) * (1 + np.cos(angle)) / 2
    rates = jax.jit(deit_rate)(np.rint(epochs * STEPS).astype(int))
    assert_close(rates, np.where(epochs < 5, rise, fall), units=4)
    # The peak is proportional to the batch.
    rate = deit_rate(0, warmup_epochs=0, batch_size=128)
    assert_close(rate, 1.25e-4, units=4)


def test_only_kernels_decay():
    """2-D biases and scalars do not decay."""
    arch = {"dist_token": True, "registers": 4, "layer_scale": True}
    reduction = "spvit:blocks=(1,):keep_rates=(0.6,)"
    model = tiny_vit.model(reduction, stem="conv", arch=arch, depth=2)
    params = tiny_vit.shapes(model)["params"]
    params |= {"attn": {"bias": np.zeros((2, 2))}, "temperature": np.zeros(())}
    mask = traverse_util.flatten_dict(decay_mask(params), sep="/")
    assert {"cls_token", "dist_token", "reg_token", "pos_embed"} <= mask.keys()
    assert mask == {path: path.endswith("/kernel") for path in mask}


def slow_adamw(params, gradients, rates, optim):
    """Loshchilov & Hutter, algorithm 2, in float64 with torch's lr on the decay."""
    params = {name: p.astype(np.float64) for name, p in params.items()}
    b1, b2 = optim.betas
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, (grads, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in grads.values()))
        shrink = min(1.0, (optim.clip_grad_norm or math.inf) / norm)
        for name, g in grads.items():
            g = g.astype(np.float64) * shrink
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            m_hat = m[name] / (1 - b1**t)
            v_hat = v[name] / (1 - b2**t)
            decay = optim.weight_decay if name == "kernel" else 0.0
            moved = m_hat / (np.sqrt(v_hat) + optim.eps)
            params[name] -= lr * (moved + decay * params[name])
    return params


@pytest.mark.parametrize("clip_norm", [0.0, 1.5])
def test_adamw_equals_a_slow_one(clip_norm):
    rng = np.random.default_rng(0)

    def draw(scale):
        kernel, bias = rng.normal(size=(3, 4)), rng.normal(size=4)
        return {"kernel": np.float32(scale * kernel), "bias": np.float32(scale * bias)}

    params = draw(1.0)
    gradients = [draw(scale) for scale in (1.0, 0.1, 3.0, 1e-4, 1.0)]
    rates = [1e-3, 1e-1, 3e-2, 2e-2, 1e-2]
    optim = dataclasses.replace(
        DEIT, weight_decay=0.5, betas=(0.9, 0.999), eps=1e-4, clip_grad_norm=clip_norm
    )
    expected = slow_adamw(params, gradients, rates, optim)

    optimizer = create_adamw(optim, lambda step: jnp.asarray(rates)[step])
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name, value in params.items():
        assert_close(value, expected[name], units=128)


def test_a_moving_average_keeps_equal_values():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert (moving_average({"x": x}, {"x": x}, 0.99996)["x"] == x).all()


PARAMS = {
    "head": {"kernel": jnp.ones((2, 2))},
    "reducer_3": {"kernel": jnp.ones((2, 2))},
    "cls_token": jnp.ones((1, 1, 2)),
}


def parameter_group(path):
    """The reducer follows the schedule; the backbone is slower and starts later."""
    if path.startswith("reducer"):
        return None
    if path == "cls_token":
        return ParamGroup(frozen_epochs=math.inf)
    return ParamGroup(lr=lambda lr, peak: jnp.minimum(0.25 * peak, lr), frozen_epochs=2)


def half_rate(step):
    return 0.5 + 0.0 * step


def test_groups_scale_the_optimizers_updates():
    """With two steps per epoch and two frozen epochs, updates begin at step 4."""
    groups = scale_by_group(parameter_group, half_rate, peak_lr=1.0, steps_per_epoch=2)
    tx = optax.chain(optax.sgd(half_rate), groups)
    state = tx.init(PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(6):
        updates, state = tx.update(grads, state, PARAMS)
        assert (updates["reducer_3"]["kernel"] == -0.5).all()
        assert (updates["cls_token"] == 0.0).all()
        assert (updates["head"]["kernel"] == (0.0 if step < 4 else -0.25)).all()


def test_clipping_ignores_frozen_parameters():
    method = copy.copy(DEIT.reduction.method)
    object.__setattr__(method, "param_groups", parameter_group)
    reduction = dataclasses.replace(DEIT.reduction, method=method)
    optim = dataclasses.replace(DEIT, clip_grad_norm=1.0, reduction=reduction)
    _, tx = create_optimizer(optim, 2)
    results = []
    for frozen_scale in (0.0, 1000.0):
        params = PARAMS
        state = tx.init(params)
        for size in (1.0, 2.0, 0.1):
            grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), PARAMS)
            grads["cls_token"] *= frozen_scale
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        results.append(params)
    chex.assert_trees_all_equal(*results)
    assert (results[0]["reducer_3"]["kernel"] < 1.0).all()
