import functools
import types

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.common import parallel
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.models.config import Execution
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

# As one program, because single operations take longer.
correct_at = tiny_vit.compiled(accuracy.correct_at, static_argnums=2)


@pytest.mark.parametrize("k", [1, 5])
def test_correct_at_agrees_with_sorting(k):
    rng = np.random.default_rng(k)
    logits = rng.integers(0, 4, size=(200, 7)).astype(np.float32)  # many ties
    labels = rng.integers(0, 7, size=200)
    is_right = correct_at(logits, labels, k)
    assert is_right.dtype == bool
    for row, label, expected in zip(logits, labels, is_right, strict=True):
        best = sorted(range(7), key=lambda c: (-row[c], c))[:k]  # noqa: B023
        assert expected == (label in best)
    # A label with a NaN logit is never right.
    logits = np.array([[np.nan] * 3, [np.nan, 1, 0], [np.nan, 1, 0]], np.float32)
    expected = correct_at(logits, np.array([0, 0, 1]), 1)
    assert expected.tolist() == [False, False, True]


class Lookup:
    """Logits by the red value of an image's first pixel: row r of `table`."""

    config = types.SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    execution = Execution()

    def __init__(self, table):
        self.table = jnp.asarray(table, jnp.float32)

    def with_execution(self, **fields):
        return self

    def apply(self, variables, images, keys):
        # The pixels before normalization.
        red = images[:, 0, 0, 0] * self.config.std[0] + self.config.mean[0]
        rows = self.table[jnp.round(red * 255).astype(jnp.int32)]
        return types.SimpleNamespace(logits=rows * variables["scale"])


def batch_of(rows, labels, mask=None):
    """One device's batch: image i shows row rows[i]."""
    images = np.zeros((1, len(rows), 2, 2, 3), np.uint8)
    images[0, :, 0, 0, 0] = rows
    mask = np.ones(len(rows)) if mask is None else mask
    labels = np.asarray([labels], np.int32)
    batch = {"image": images, "label": labels, "mask": np.asarray([mask], np.float32)}
    return batch | {"index": np.zeros_like(labels)}


@functools.cache
def replicate_scale(scale):
    return parallel.replicate({"scale": np.float32(scale)})


@functools.cache
def lookup_step(table):
    """The step of a Lookup, shared by all tests of a table."""
    return accuracy.make_eval_step(Lookup(table))


def evaluate(table, batches, scale=1):
    variables = replicate_scale(scale)
    return accuracy.evaluate_model(lookup_step(table), variables, iter(batches))


# Row 0 ranks class 0 first and 6 last, row 1 the reverse, and row 2 is NaN.
TABLE = ((7, 6, 5, 4, 3, 2, 1), (1, 2, 3, 4, 5, 6, 7), (np.nan,) * 7)


def test_only_the_given_classes_compete():
    """Row 0 among classes 2, 4 and 6: 2 is first, and all three are among five."""
    step = accuracy.make_eval_step(Lookup(TABLE), classes=(2, 4, 6))
    images = batch_of([0, 0, 0, 1, 2], [2, 4, 6, 6, 2])
    (result,) = accuracy.evaluate_models(step, [replicate_scale(1)], [images])
    assert result.image_metrics["right"].tolist() == [True, False, False, True, False]
    assert result.image_metrics["right5"].tolist() == [True, True, True, True, False]
    row0 = np.log(np.exp([5, 3, 1]).sum()) - np.array([5, 3, 1])
    row1 = np.log(np.exp([3, 5, 7]).sum()) - 7
    assert_close(result.image_metrics["loss"][:4], np.array([*row0, row1]))
    assert np.isnan(result.image_metrics["loss"][4])


def test_metrics_of_two_batches_by_hand():
    """Images 3, 1 and 0, then 5 and 4. Image 0 is masked, and gives NaN."""
    first = batch_of([0, 1, 2], [0, 0, 0], [1, 1, 0]) | {"index": np.array([[3, 1, 0]])}
    second = batch_of([1, 0], [6, 4]) | {"index": np.array([[5, 4]])}
    result = evaluate(TABLE, [first, second])
    assert (result.images, result.acc1, result.acc5) == (4, 50.0, 75.0)
    image_metrics = result.image_metrics
    assert image_metrics["index"].tolist() == [1, 3, 4, 5]
    assert image_metrics["right"].tolist() == [False, True, False, True]
    assert image_metrics["right5"].tolist() == [False, True, True, True]
    total = np.log(np.exp(np.arange(1, 8)).sum())
    assert_close(image_metrics["loss"], total - [1, 7, 3, 7])
    assert result.loss == pytest.approx(total - 4.5, rel=1e-6)


def test_draws_depend_on_the_index_and_not_on_the_batch(traced_once):
    model = tiny_vit.model("random:keep_rate=0.5:blocks=(0,)", depth=2)
    variables = parallel.replicate(tiny_vit.variables(model))
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 20, 20, 3), np.uint8)

    def evaluate_copies(order, size):
        chex.clear_trace_counter()
        batches = []
        for indices in np.reshape(order, (-1, size)):
            batch = batch_of([0] * size, indices % tiny_vit.CLASSES)
            images = image.repeat(size, axis=1)
            batches.append(batch | {"image": images, "index": indices[None]})
        step = accuracy.make_eval_step(model, seed=3)
        return accuracy.evaluate_model(step, variables, batches).image_metrics

    order = np.arange(12)
    image_metrics = evaluate_copies(order, 6)
    reordered = evaluate_copies(order[::-1], 4)
    assert len(set(image_metrics["loss"][order % tiny_vit.CLASSES == 0].tolist())) == 2
    assert_close(reordered["loss"], image_metrics["loss"])
    np.testing.assert_array_equal(reordered["right"], image_metrics["right"])


def test_few_classes_no_images_and_nan():
    result = evaluate(((1, 2, 3),), [batch_of([0, 0], [2, 0])])
    assert (result.acc1, result.acc5) == (50.0, 100.0)
    result = evaluate(TABLE, [batch_of([0], [0], [0])])  # masked
    assert (result.images, result.acc1, result.loss) == (0, 0.0, 0.0)
    with refused("not finite"):
        evaluate(TABLE, [batch_of([0, 2], [0, 0])])


def test_throughput_leaves_the_first_batch_out(monkeypatch):
    """The first batch takes 100 s, and the other two 1 s each."""
    clock = types.SimpleNamespace(perf_counter=iter((0.0, 100.0, 102.0)).__next__)
    monkeypatch.setattr(accuracy, "time", clock)
    batches = [batch_of([0] * 3, [0] * 3) for _ in range(3)]
    assert evaluate(TABLE, batches).throughput == pytest.approx(6 / 2)


def test_several_sets_of_variables_share_one_pass():
    batches = [batch_of([0, 1, 1], [0, 6, 0]), batch_of([1, 0], [0, 0])]
    models = [replicate_scale(1), replicate_scale(-1)]  # -1 reverses ranks
    results = accuracy.evaluate_models(lookup_step(TABLE), models, iter(batches))
    for result, scale in zip(results, (1, -1), strict=True):
        alone = evaluate(TABLE, batches, scale)
        assert result.metrics | {"throughput": 0} == alone.metrics | {"throughput": 0}
    assert results[0].loss != results[1].loss
