"""Hooks of a method in training: its loss and its own rates."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import deit_s_evit
from imagepiece_jax.reduction.methods.method import ParamGroup
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.config import RunConfig
from tests.rounding import assert_close
from tests.training.test_train_step import PLAIN, batch, make, run, with_loss

PARAMS = {
    "head": {"kernel": jnp.ones((2, 2))},
    "reducer_3": {"kernel": jnp.ones((2, 2))},
    "cls_token": jnp.ones((1, 1, 2)),
}


def rate(step):
    return 0.5 + 0.0 * step


def group_of(path):
    """The predictor at the schedule's rate, the backbone slower and later."""
    if path.startswith("reducer"):
        return None
    if path == "cls_token":
        return ParamGroup(frozen_epochs=math.inf)
    return ParamGroup(lr=lambda lr, peak: jnp.minimum(0.25 * peak, lr), frozen_epochs=2)


def test_groups_scale_the_updates_of_the_optimizer():
    """Two steps an epoch, frozen for two epochs: updates from step 4 on."""
    groups = optimizer.scale_by_group(group_of, rate, peak=1.0, steps_per_epoch=2)
    tx = optax.chain(optax.sgd(rate), groups)
    state = tx.init(PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    moved = []
    for _ in range(6):
        updates, state = tx.update(grads, state, PARAMS)
        first = (jax.tree.leaves(updates[name])[0].ravel()[0] for name in PARAMS)
        moved.append([*map(float, first)])
    head, reducer, token = np.transpose(moved)
    assert (reducer == -0.5).all()
    assert (token == 0.0).all()
    assert head.tolist() == [0.0] * 4 + [-0.25] * 2


def test_clipping_does_not_count_what_never_moves():
    optim = dataclasses.replace(PLAIN.optim, clip_grad_norm=1.0)
    _, tx = optimizer.create_optimizer(optim, 2, group_of)
    moved = []
    for frozen in (0.0, 1000.0):
        params = PARAMS
        state = tx.init(params)
        for size in (1.0, 2.0, 0.1):
            grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), PARAMS)
            grads["cls_token"] *= frozen
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        moved.append(params)
    chex.assert_trees_all_equal(*moved)
    assert (moved[0]["reducer_3"]["kernel"] < 1.0).all()


def terms(outputs, teacher_outputs, plan):
    assert teacher_outputs is None
    return {"size": 0.5 * jnp.mean(outputs.logits**2)}


def test_own_terms_join_the_loss():
    step, state = make()
    _, plain = run(step, state, [batch(0)])
    step, state = make(with_loss(PLAIN, terms))
    _, more = run(step, state, [batch(0)])
    own = more[0]["terms"]["size"]
    assert own > 0
    assert_close(more[0]["loss"], plain[0]["loss"] + own, units=8)
    assert plain[0]["terms"] == {}


def test_the_model_of_an_epoch_has_that_epochs_rate():
    config = deit_s_evit.get_config("deit_ti")

    def last_tokens(epoch):
        run = RunConfig.from_config(config)
        return run.create_train_model(epoch).plan[-1].mlp_tokens

    # 196 * .85 = 166.6, 167 * .85 = 141.95, 142 * .85 = 120.7, each rounded up.
    assert [last_tokens(epoch) for epoch in (0, 60, 110)] == [197, 122, 69]
    config.reduction = "evit"
    assert last_tokens(0) == 69
