import copy
import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from configs import base
from imagepiece_jax.common import parallel
from imagepiece_jax.common.rng import Purpose, sample_keys
from imagepiece_jax.data.augment import pipeline
from imagepiece_jax.data.config import AugmentConfig
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.losses import soft_cross_entropy
from imagepiece_jax.training.optimizer import create_adamw
from imagepiece_jax.training.train_step import init_state, train_step
from tests.helpers import small_runs
from tests.helpers.named_models import config
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

SIZE = 8
CLASSES = 10
BATCH = 8
HALF = (0.5,) * 3
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


def make_step(recipe=None, optimizer=None, seed=0, **fields):
    """A tiny model's step on one device, and its replicated first state."""
    execution = {"axis_name": parallel.DEVICE_AXIS}
    for name in ("axis_name", "drop_path_rate"):
        if name in fields:
            execution[name] = fields.pop(name)
    model = create_model(config("vit_mini", **DENSE | fields))
    model = model.with_execution(**execution)
    recipe = recipe or dataclasses.replace(PLAIN, seed=seed, log_every_steps=3)
    optimizer = optimizer or optax.sgd(0.1)
    variables = small_runs.draw_untrained(model, seed)
    state = init_state(variables, optimizer, recipe.ema_decay > 0)
    step = functools.partial(
        train_step, model=model, optimizer=optimizer, lr_schedule=rate, run=recipe
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
    # Fresh weights guess.
    assert abs(losses[0] - np.log(CLASSES)) < 0.1


def test_a_custom_loss_gets_the_step_number():
    def rising_loss(student, teacher, targets, run, model, step):
        outputs, _ = student
        loss = step * jnp.mean(soft_cross_entropy(outputs.logits, targets))
        return loss, {"at": step}

    step, state = make_step()
    step.keywords.update(loss=rising_loss)
    after, metrics = run(
        compile_once(step), state, [random_batch(i, micro=2) for i in range(3)]
    )
    assert [m["terms"]["at"] for m in metrics] == [0, 1, 2]
    assert metrics[0]["loss"] == 0 < metrics[1]["loss"] < metrics[2]["loss"]
    assert after.step == 3


def test_a_methods_terms_join_the_loss():
    def terms(outputs, teacher_outputs, plan):
        assert teacher_outputs is None
        return {"size": 0.5 * jnp.mean(outputs.logits**2)}

    _, (plain,) = run(*plain_step(), [random_batch(0)])
    step, state = make_step(with_loss(PLAIN, terms))
    _, (metrics,) = run(compile_once(step), state, [random_batch(0)])
    assert metrics["terms"]["size"] > 0
    assert_close(metrics["loss"], plain["loss"] + metrics["terms"]["size"], units=8)
    assert plain["terms"] == {}


def test_a_term_named_like_a_metric_is_refused():
    step, state = make_step()
    step.keywords.update(loss=lambda *_: (jnp.float32(1), {"lr": jnp.float32(1)}))
    with refused("loss", "a term 'lr'"):
        parallel.pmap(step)(state, random_batch(0))


def test_images_have_the_models_normalization():
    """NumPy computes the first loss from pixels; ImageNet's values would change it."""
    recipe = dataclasses.replace(PLAIN, label_smoothing=0.0)
    mean = (0.1, 0.5, 0.9)
    std = (0.01, 0.02, 0.03)
    step, state = make_step(recipe, mean=mean, std=std)
    images = random_batch(0)["image"][0, 0]
    labels = random_batch(0)["label"][0, 0]
    forward = jax.jit(create_model(config("vit_mini", **DENSE)).apply)
    variables = parallel.unreplicate(state).variables

    def cross_entropy(mean, std):
        pixels = (images / 255 - np.array(mean)) / np.array(std)
        logits = forward(variables, jnp.asarray(pixels, jnp.float32)).logits
        return -np.asarray(jax.nn.log_softmax(logits))[np.arange(BATCH), labels].mean()

    loss = run(compile_once(step), state, [random_batch(0)])[1][0]["loss"]
    assert_close(loss, cross_entropy(mean, std))
    assert abs(cross_entropy(IMAGENET_MEAN, IMAGENET_STD) - loss) > 1e-4


def test_micro_batches_give_the_whole_batchs_gradient():
    states = []
    for micro, seed in ((1, 0), (4, 0), (1, 1)):
        recipe = dataclasses.replace(PLAIN, seed=seed)
        step, state = make_step(recipe, depth=2, drop_path_rate=0.5)
        batches = [random_batch(0, micro), random_batch(1, micro)]
        states.append(run(compile_once(step), state, batches)[0])
    whole, split, other_seed = [state.params for state in states]
    chex.assert_trees_all_close(split, whole, atol=1e-6)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(other_seed, whole, atol=1e-6)
    assert int(states[1].step) == 2


def test_mixup_draws_one_lambda_and_changes_the_gradient():
    """A mixture of equal images is unchanged."""
    same = random_batch(0)
    same["image"][:] = same["image"][:, :, :1]
    same["label"][:] = 3
    step, state = make_step(dataclasses.replace(PLAIN, mixup=1.0))
    metrics = []
    for program in (compile_once(step), plain_step()[0]):
        metrics.append(
            [run(program, state, [one])[1][0] for one in (same, random_batch(0))]
        )
    (equal, mixed), (equal_plain, mixed_plain) = metrics
    assert_close(equal["loss"], equal_plain["loss"])
    assert abs(mixed["grad_norm"] - mixed_plain["grad_norm"]) > 1e-3


@struct.dataclass
class PoisonedOutputs:
    value: jax.Array
    root: jax.Array
    states: tuple = ()


class Poison:
    """A stand-in for a teacher that returns its variables."""

    def compute_outputs(self, variables, image):
        return PoisonedOutputs(**variables)


def poisoned_loss(outputs, teacher_outputs, plan):
    """Loss terms whose value, or gradient alone, is not finite on request."""
    size = jnp.sum(outputs.logits**2)
    return {
        "value": teacher_outputs.value * size,
        "root": jnp.sqrt(teacher_outputs.root * size),
    }


GOOD = {"value": 0.0, "root": 1.0}
BAD_LOSS = {"value": np.nan, "root": 1.0}
BAD_GRADIENT = {"value": 0.0, "root": 0.0}  # the root of 0 has an infinite slope
RATES = jnp.array([0.1, 5.0, 6.0, 7.0, 0.2])


@pytest.fixture(scope="module")
def poisoned_run():
    """A step function, and states and metrics of five steps; three are not finite."""
    fields = {"weight_decay": 0.1, "betas": (0.9, 0.99), "clip_grad_norm": 1.0}
    optim = dataclasses.replace(PLAIN, **fields)
    recipe = dataclasses.replace(PLAIN, ema_decay=0.75, log_every_steps=3)
    recipe = with_loss(recipe, poisoned_loss)
    optimizer = create_adamw(optim, lambda step: RATES[step])
    step, state = make_step(recipe, optimizer, stem="conv")
    step.keywords["teacher"] = Poison()
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
    for name, tree in (("params", second.params), ("batch_stats", second.batch_stats)):
        old = getattr(first, name)
        expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, old, tree)
        chex.assert_trees_all_close(second.ema[name], expected, atol=1e-6)
    differences = jax.tree.map(np.subtract, first.batch_stats, second.batch_stats)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(differences))


def test_a_nonfinite_step_changes_nothing(poisoned_run):
    _, (_, *states), metrics = poisoned_run
    assert np.isnan(metrics[1]["loss"])
    assert np.isfinite(metrics[2]["loss"])
    assert not np.isfinite(metrics[2]["grad_norm"])
    for state in states[1:4]:
        for name in ("params", "batch_stats", "ema"):
            chex.assert_trees_all_equal(getattr(state, name), getattr(states[0], name))
    assert [int(state.step) for state in states] == [1, 2, 3, 4, 5]
    assert [int(m["skipped"]) for m in metrics] == [0, 1, 2, 3, 0]
    assert (states[4].params["head"]["bias"] != states[0].params["head"]["bias"]).any()


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
    for step in (0, 4):
        assert_close(windows[step]["loss"] / 8, metrics[step]["loss"], units=4)
    assert windows[2]["loss"] == windows[0]["loss"]
    assert windows[3]["loss"] == 0


AUGMENT = AugmentConfig(
    layers=1, prob=1.0, magnitude=9.0, magnitude_std=0.5, erase_prob=0.5
)


def test_draws_depend_on_step_and_global_place_alone():
    """Neighbors do not matter; two micro-batches are one batch in two parts."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)

    @jax.jit
    def augment(pixels, positions, step):
        keys = functools.partial(sample_keys, 3, step, positions, Purpose.AUGMENT)
        return pipeline.augment_batch(pixels, AUGMENT, HALF, HALF, keys)

    first = augment(pixels, np.arange(BATCH), 5)
    order = np.array([6, 1, 7, 0, 3, 2, 5, 4])
    np.testing.assert_array_equal(augment(pixels[order], order, 5), first[order])
    same = np.repeat(pixels[:1], BATCH, 0)
    copies = augment(same, np.arange(BATCH), 5)
    assert len({np.asarray(image).tobytes() for image in copies}) == BATCH
    np.testing.assert_array_equal(copies[0], first[0])
    assert (augment(same, np.arange(BATCH), 6) != copies).any((1, 2, 3)).all()

    gradients = []
    for micro in (1, 2):
        step, state = make_step(dataclasses.replace(PLAIN, seed=3, augment=AUGMENT))
        gradients.append(run(compile_once(step), state, [random_batch(0, micro)])[1])
    (whole,), (split,) = gradients
    assert_close(split["loss"], whole["loss"], units=8)


def test_smoothed_targets_by_hand():
    """C = 10, smoothing .1: target .91 and .01; logits ln 3 on class 4, else 0."""
    logits = np.zeros((2, 10), np.float32)
    logits[:, 4] = math.log(3)
    targets = np.full((2, 10), 0.01, np.float32)
    targets[0, 4] = targets[1, 0] = 0.91
    losses = soft_cross_entropy(logits, targets)
    # log_softmax: ln 3 - ln 12 on class 4, -ln 12 elsewhere.
    right = math.log(12) - 0.91 * math.log(3)
    wrong = math.log(12) - 0.01 * math.log(3)
    assert_close(losses, [right, wrong], units=34)
    large = soft_cross_entropy(np.array([[1e4, 0.0]]), np.array([[0.5, 0.5]]))
    assert_close(large, [5e3], units=1)
    with pytest.raises((AssertionError, TypeError)):  # labels instead of targets
        soft_cross_entropy(np.zeros((2, 3)), np.zeros(2))


def test_the_loss_is_float32_for_bfloat16_inputs():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 9)) * 4, jnp.bfloat16)
    targets = jnp.asarray(rng.dirichlet(np.ones(9), size=6), jnp.bfloat16)
    losses = soft_cross_entropy(logits, targets)
    assert losses.dtype == jnp.float32
    z = np.asarray(logits, np.float64)
    y = np.asarray(targets, np.float64)
    expected = (y * (np.log(np.exp(z).sum(-1, keepdims=True)) - z)).sum(-1)
    assert_close(losses, expected)
