import copy
import dataclasses
import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from imagepiece_jax.common import parallel
from imagepiece_jax.data.config import AugmentConfig
from imagepiece_jax.models.create import create_model
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.losses import soft_cross_entropy
from imagepiece_jax.training.optimizer import create_adamw
from imagepiece_jax.training.train_step import init_state, train_step
from tests.helpers import small_runs
from tests.helpers.named_models import config
from tests.helpers.oracles import log_softmax
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

SIZE = 8
CLASSES = 10
BATCH = 8
DENSE = dict(image_size=SIZE, num_classes=CLASSES, depth=1, embed_dim=8, num_heads=2)


def run_config(**fields):
    config = base.get_config()
    config.update_from_flattened_dict(fields)
    return RunConfig.from_config(config)


PLAIN = run_config(
    **{"model.name": "vit_mini", "image_size": SIZE, "num_classes": CLASSES},
    **{"mixup": 0.0, "cutmix": 0.0, "ema_decay": 0.0},
    **{"augment.layers": 0, "augment.erase_prob": 0.0},
)


def rate(step):
    return 0.1 + 0.0 * step


def with_loss(recipe, loss):
    method = copy.copy(recipe.reduction.method)
    object.__setattr__(method, "loss", loss)
    reduction = dataclasses.replace(recipe.reduction, method=method)
    return dataclasses.replace(recipe, reduction=reduction)


def make_step(recipe=None, optimizer=None, drop_path_rate=0.0, **fields):
    """A tiny model's step on one device, and its replicated first state."""
    model = create_model(config("vit_mini", **DENSE | fields))
    model = model.with_execution(drop_path_rate=drop_path_rate)
    recipe = recipe or dataclasses.replace(PLAIN, log_every_steps=3)
    optimizer = optimizer or optax.sgd(0.1)
    variables = small_runs.draw_untrained(model, seed=0)
    state = init_state(variables, optimizer, recipe.ema_decay > 0)
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, lr_schedule=rate, config=recipe
    )
    return step, parallel.replicate(state)


def random_batch(seed, micro=1):
    """A random batch of one device, in `micro` micro-batches."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (1, micro, BATCH // micro, SIZE, SIZE, 3), np.uint8)
    label = rng.integers(0, CLASSES, (1, micro, BATCH // micro), np.int32)
    return {"image": image, "label": label}


def compile_once(step):
    """Compile a step, which may be traced once."""

    @chex.assert_max_traces(n=1)
    def traced_once(state, batch):
        return step(state, batch)

    chex.clear_trace_counter()
    return parallel.pmap(traced_once)


def run(program, state, batches):
    metrics = []
    for batch in batches:
        state, step_metrics = program(state, batch)
        metrics.append(parallel.unreplicate(step_metrics))
    return parallel.unreplicate(state), metrics


@functools.cache
def plain_step():
    """A compiled step without random numbers, and its first state."""
    step, state = make_step()
    return compile_once(step), state


def test_a_logged_step_ends_its_window():
    _, metrics = run(*plain_step(), [random_batch(i) for i in range(5)])
    assert [m["window"]["samples"] for m in metrics] == [8, 16, 24, 8, 16]
    losses = [m["loss"] for m in metrics]
    sums = [m["window"]["loss"] / BATCH for m in metrics]
    assert_close(sums[2], sum(losses[:3]), units=8)
    assert_close(sums[4], sum(losses[3:]), units=8)


def test_a_custom_loss_gets_the_step_number():
    def loss(outputs, teacher_outputs, targets, config, model, step):
        return jnp.mean(outputs.logits**2), {"at": step}

    step, state = make_step()
    step.keywords.update(loss=loss)
    batches = [random_batch(seed, micro=2) for seed in range(3)]
    _, metrics = run(compile_once(step), state, batches)
    assert [m["terms"]["at"] for m in metrics] == [0, 1, 2]


def test_a_methods_terms_join_the_loss():
    def terms(outputs, teacher_outputs, plan):
        assert teacher_outputs is None
        return {"size": 0.5 * jnp.mean(outputs.logits**2)}

    _, (plain,) = run(*plain_step(), [random_batch(0)])
    step, state = make_step(with_loss(PLAIN, terms))
    _, (metrics,) = run(compile_once(step), state, [random_batch(0)])
    assert metrics["terms"]["size"] > 0
    assert_close(metrics["loss"], plain["loss"] + metrics["terms"]["size"], units=8)


def test_a_term_named_like_a_metric_is_refused():
    step, state = make_step()
    step.keywords.update(loss=lambda *_: (jnp.float32(1), {"lr": jnp.float32(1)}))
    with refused("loss", "a term 'lr'"):
        parallel.pmap(step)(state, random_batch(0))


AUGMENT = AugmentConfig(
    layers=1, prob=1.0, magnitude=9.0, magnitude_std=0.5, erase_prob=0.5
)


def test_draws_depend_on_seed_step_and_global_place_alone():
    """Four micro-batches have the whole batch's augmentations, loss and gradient."""
    figures = []
    for micro, seed in ((1, 0), (4, 0), (1, 1)):
        recipe = dataclasses.replace(PLAIN, seed=seed, augment=AUGMENT)
        # Weights stay.
        step, state = make_step(recipe, optax.sgd(0.0), depth=2, drop_path_rate=0.5)
        _, metrics = run(compile_once(step), state, [random_batch(0, micro)] * 2)
        figures.append([[m["loss"], m["grad_norm"]] for m in metrics])
    whole, in_parts, other_seed = np.array(figures)
    np.testing.assert_allclose(in_parts, whole, rtol=1e-5)
    assert np.abs(whole - other_seed).min() > 1e-5  # loss and gradient
    assert np.abs(whole[0] - whole[1]).min() > 1e-5


def test_mixup_changes_the_gradient():
    step, state = make_step(dataclasses.replace(PLAIN, mixup=1.0))
    norms = [
        run(program, state, [random_batch(0)])[1][0]["grad_norm"]
        for program in (compile_once(step), plain_step()[0])
    ]
    assert abs(norms[0] - norms[1]) > 1e-3


def poisoned_loss(outputs, poison, plan):
    """Loss terms whose value, or gradient alone, is not finite on request."""
    size = jnp.sum(outputs.logits**2)
    return {"value": poison["value"] * size, "root": jnp.sqrt(poison["root"] * size)}


GOOD = {"value": 0.0, "root": 1.0}
BAD_LOSS = {"value": np.nan, "root": 1.0}
BAD_GRADIENT = {"value": 0.0, "root": 0.0}  # the root of 0 has an infinite slope
RATES = jnp.array([0.1, 5.0, 6.0, 7.0, 0.2])


@pytest.fixture(scope="module")
def poisoned_run():
    """A step function, and states and metrics of five steps; three are not finite."""
    fields = {"weight_decay": 0.1, "betas": (0.9, 0.99), "clip_grad_norm": 1.0}
    fields |= {"ema_decay": 0.75, "log_every_steps": 3}
    recipe = with_loss(dataclasses.replace(PLAIN, **fields), poisoned_loss)
    optimizer = create_adamw(recipe, lambda step: RATES[step])
    step, state = make_step(recipe, optimizer, stem="conv")
    # A stand-in for a teacher that returns its variables.
    teacher = types.SimpleNamespace(compute_outputs=lambda variables, _: variables)
    step.keywords["teacher"] = teacher
    compiled = parallel.pmap(step)

    def advance(state, poison, seed):
        poison = {name: np.float32(value) for name, value in poison.items()}
        return compiled(state, random_batch(seed), parallel.replicate(poison))

    states = [parallel.unreplicate(state)]
    metrics = []
    for seed, poison in enumerate([GOOD, BAD_LOSS, BAD_GRADIENT, BAD_LOSS, GOOD]):
        state, fields = advance(state, poison, seed)
        states.append(parallel.unreplicate(state))
        metrics.append(parallel.unreplicate(fields))
    return advance, states, metrics


def test_weights_and_statistics_have_a_moving_average(poisoned_run):
    _, (first, second, *_), _ = poisoned_run
    for name, average in second.ema.items():
        trees = getattr(first, name), getattr(second, name)
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, *trees)
        chex.assert_trees_all_close(average, expected, atol=1e-6)
    differences = jax.tree.map(np.subtract, first.batch_stats, second.batch_stats)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(differences))


def test_a_nonfinite_step_changes_nothing(poisoned_run):
    _, (_, *states), metrics = poisoned_run
    assert [bool(np.isfinite(m["loss"])) for m in metrics[1:3]] == [False, True]
    assert not np.isfinite(metrics[2]["grad_norm"])
    for state in states[1:4]:
        for name in ("params", "batch_stats", "ema"):
            chex.assert_trees_all_equal(getattr(state, name), getattr(states[0], name))
    assert [int(m["skipped"]) for m in metrics] == [0, 1, 2, 3, 0]


def test_a_step_after_skipped_ones_ignores_them(poisoned_run):
    """Moments and their count continue the first step's; the rate is the fifth's."""
    advance, (_, *states), _ = poisoned_run

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    def at_fifth_step(node):
        return optax.ScaleByScheduleState(np.int32(4)) if is_schedule(node) else node

    opt_state = jax.tree.map(at_fifth_step, states[0].opt_state, is_leaf=is_schedule)
    fifth = states[0].replace(step=np.int32(4), opt_state=opt_state)
    expected = parallel.unreplicate(advance(parallel.replicate(fifth), GOOD, 4)[0])
    for name in ("params", "batch_stats", "ema", "opt_state"):
        chex.assert_trees_all_equal(getattr(states[4], name), getattr(expected, name))


def test_a_window_counts_skipped_steps_without_their_metrics(poisoned_run):
    _, _, metrics = poisoned_run
    windows = [m["window"] for m in metrics]
    assert [w["samples"] for w in windows] == [8, 8, 8, 0, 8]
    assert [w["skipped"] for w in windows] == [0, 1, 2, 1, 1]
    assert_close(windows[4]["loss"] / 8, metrics[4]["loss"], units=4)
    assert windows[2]["loss"] == windows[0]["loss"]
    assert windows[3]["loss"] == 0


def test_cross_entropy_is_computed_in_float32():
    logits = jnp.bfloat16(np.random.default_rng(0).normal(size=(2, 10)))
    targets = np.float32(0.01 + 0.9 * np.eye(10)[[4, 0]])
    expected = -(targets * log_softmax(np.float64(logits))).sum(axis=1)
    assert_close(soft_cross_entropy(logits, targets), expected, units=34)
