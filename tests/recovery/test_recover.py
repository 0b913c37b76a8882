import json
import signal

import chex
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.common import statistics
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.recovery import recover, recovery_images, recovery_step
from tests.helpers import (
    forked_processes,
    made_up_recoveries,
    oracles,
    recovery_trials,
    small_runs,
    tiny_vit,
)
from tests.helpers.recovery_trials import (
    held_out_logits,
    interrupt_step,
    noise,
    reduced_model,
    run_recovery,
)
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

pytestmark = pytest.mark.usefixtures("recoveries_compiled_once")


@pytest.fixture(scope="module")
def vit():
    return reduced_model()


@pytest.fixture(scope="module")
def better(vit):
    return run_recovery(vit, steps=40)


@pytest.fixture(scope="module")
def public():
    return tiny_vit.pretrained(depth=2)


def test_the_report_has_metrics_of_held_out_images(vit, better):
    (report,) = better.recovery.variants
    assert (report.images, report.held_out, report.steps) == (32, 16, 40)
    assert report.changed and report.after < 0.8 * report.before
    dense = held_out_logits(vit.with_reduction(None))
    logits = [held_out_logits(model) for model in (vit, better)]
    before, after = (oracles.kl(dense, row) for row in logits)
    assert [step for step, _ in report.curve] == [0, 4, 40]
    means = [value for _, value in report.curve]
    assert (means[0], means[-1]) == (report.before, report.after)
    assert report.before == report.off_the_shelf
    expected = [before.mean(), after.mean()]
    assert [report.before, report.after] == pytest.approx(expected, rel=1e-4)
    agreement = [100 * np.mean(row.argmax(-1) == dense.argmax(-1)) for row in logits]
    assert report.agreement == pytest.approx(agreement)


def test_the_interval_counts_stretches_of_neighbors(vit, monkeypatch):
    monkeypatch.setattr(recovery_images, "HELD_OUT_STRETCHES", 4)
    recovered = run_recovery(vit)
    (report,) = recovered.recovery.variants
    models = (vit.with_reduction(None), recovered, vit)
    dense, *logits = [held_out_logits(model, stretches=4) for model in models]
    stretch_means = [oracles.kl(dense, row).reshape(4, 4).mean(1) for row in logits]
    change = statistics.mean_difference(*stretch_means)
    assert report.interval == pytest.approx(change[1:], abs=1e-4 * report.before)


def test_equal_seeds_give_equal_bits(vit):
    models = [run_recovery(vit, seed=seed) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(models[0].variables, models[1].variables)
    curves = [model.recovery.variants[0].curve for model in models]
    assert curves[0] == curves[1] != curves[2]


ELSEWHERE = """
import json, sys
from tests.helpers.recovery_trials import reduced_model, run_recovery
(report,) = run_recovery(reduced_model()).recovery.variants
json.dump(report.curve, open(sys.argv[1], "w"))
"""


@pytest.mark.slow
def test_several_devices_give_a_close_curve(tmp_path):
    """They sum in another order, and every step enlarges earlier rounding."""
    file = tmp_path / "curve.json"
    words = ["-c", ELSEWHERE, str(file)]
    process = forked_processes.fork(words, env=small_runs.environment(devices=4))
    curve = np.array(run_recovery(reduced_model()).recovery.variants[0].curve)
    assert forked_processes.statuses([process], timeout=300) == [0]
    assert_close(np.array(json.loads(file.read_text())), curve, units=2**13)
    # The loss changes, so close curves say something.
    assert abs(curve[-1, 1] / curve[0, 1] - 1) > 0.02


def test_a_dense_model_continues_from_its_recovered_costs():
    better = made_up_recoveries.recovered(tiny_vit.pretrained(None), reductions=(0.5,))
    vits = recover.list_students(better)
    assert [vit.recovered_variant is None for vit in vits] == [True, False, True]


def test_a_recovered_model_learns_a_new_cost_and_its_own_again(vit, better):
    """The original dense model teaches. Earlier recoveries stay."""
    merging = "tome:r=10"
    second = run_recovery(better.with_reduction(merging), steps=24)
    alone = run_recovery(vit.with_reduction(merging), steps=24)
    chex.assert_trees_all_equal(second.variables, alone.variables)
    first = second.with_reduction(recovery_trials.DROPPING)
    chex.assert_trees_all_equal(first.variables, better.variables)
    third = run_recovery(first, steps=24)
    assert second.recovery.variants[0] in third.recovery.variants
    (newest,) = [c for c in third.recovery.variants if c.reduction.name == "evit"]
    oldest = better.recovery.variants[0]
    assert newest.before == pytest.approx(oldest.after, rel=1e-5)
    assert newest.off_the_shelf == pytest.approx(oldest.before, rel=1e-5)
    chex.assert_trees_all_equal(third.with_reduction(None).variables, vit.variables)


def test_learning_fewer_parameters_keeps_the_other_values(vit):
    first = run_recovery(vit)
    before = first.recovery.variants[0].values
    second = run_recovery(first, steps=40, parameters="norms", seed=1)
    (report,) = second.recovery.variants
    assert report.changed and report.values.keys() == before.keys()
    for path, value in before.items():
        if "norm" not in path:
            np.testing.assert_array_equal(report.values[path], value)


def test_a_dense_model_learns_three_costs(public):
    recovered = run_recovery(public, seed=2)
    chex.assert_trees_all_equal(recovered.variables, public.variables)
    variants = recovered.recovery.variants
    assert [round(variant.share, 1) for variant in variants] == [0.6, 0.5, 0.4]
    teacher = held_out_logits(public)
    for variant in variants:
        reduced = recovered.with_reduction(variant.reduction)
        distance = oracles.kl(teacher, held_out_logits(reduced)).mean()
        assert variant.changed and variant.after == pytest.approx(distance, rel=1e-4)
    # A cost learns as if alone.
    alone = run_recovery(public.with_reduction(variants[1].reduction), seed=2)
    half = recovered.with_reduction(variants[1].reduction)
    chex.assert_trees_all_equal(half.variables, alone.variables)


def test_a_model_without_a_class_token_learns_by_its_patches():
    """Images that are not square are cropped to the model's shape."""
    fields = {"class_token": False, "pool": "mean", "num_classes": 0}
    vit = reduced_model(recovery_trials.MERGING, image_size=(16, 24), **fields)
    vit = vit.with_preprocessing(crop=0.875)
    (report,) = run_recovery(vit, noise(side=40), steps=24).recovery.variants
    assert report.measure == "change" and report.changed


def test_reductions_that_cannot_learn_are_refused():
    with refused("reduction", "has selectors"):
        run_recovery(tiny_vit.pretrained("dynamicvit:keep_rate=0.5:blocks=(1,)"))
    with refused("reduction", "keeps all tokens"):
        run_recovery(tiny_vit.pretrained("tome:r=0"))
    recover.check_recoverable(tiny_vit.pretrained("none:prop_attn=True"))  # dense


def test_a_model_without_finite_outputs_is_refused():
    vit = reduced_model()
    vit.variables["params"]["norm"]["bias"][:] = np.nan
    with refused("outputs are not finite"):
        imagepiece_jax.recover(vit, noise(), steps=1)


def test_a_recovered_model_knows_its_learned_images(vit, tmp_path):
    images = noise(80)
    first = run_recovery(vit, images[:48])
    (once,) = first.recovery.variants
    assert len(once.learned) == 8 * once.images
    first = imagepiece_jax.load(imagepiece_jax.save(first, tmp_path / "w"))
    assert first.recovery.variants[0].learned == once.learned
    second = imagepiece_jax.recover(first, images, steps=1)
    (twice,) = second.recovery.variants
    split = recovery_images.split_images(as_source(images), 16, once.learned)
    assert twice.learned == once.learned + split.digests
    held_out = recovery_images.read_digests(split.held_out)
    assert len(held_out) == 16 and not any(x in once.learned for x in held_out)
    with refused("have not trained the model"):
        imagepiece_jax.recover(first, images[:40], steps=1)


def test_the_rate_rises_shortly_and_falls_to_0(vit, monkeypatch):
    taken = interrupt_step(monkeypatch, step=0)
    (report,) = run_recovery(vit, steps=80).recovery.variants
    rates = [rate for _, rate in taken]
    assert len(rates) == 1 + 80
    assert rates[0] == 0  # the compiling step
    highest = 0.002 * 0.5**0.5
    assert report.lr == pytest.approx(highest)
    shares = (np.arange(80) + 0.5) / 80
    expected = highest * (1 + np.cos(np.pi * shares)) / 2
    expected[:4] *= shares[:4] / 0.05
    assert_close(np.array(rates[1:]), expected)


def test_diverging_training_restarts(vit, monkeypatch, caplog):
    """The first attempt's third loss is NaN; the second is far off after a tenth."""
    taken = interrupt_step(monkeypatch, step=0)
    train_step = recovery_step.StudentFit.train_step
    measure = recovery_step.StudentFit.measure_held_out

    def train_badly(self, *args):
        loss = train_step(self, *args)
        return loss * np.nan if len(taken) == 1 + 3 else loss

    def measure_badly(self, *args):
        measured = measure(self, *args)
        if len(taken) == 1 + 3 + 4:
            measured["distance"] = measured["distance"] * 3
        return measured

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", train_badly)
    monkeypatch.setattr(recovery_step.StudentFit, "measure_held_out", measure_badly)
    recovered = run_recovery(vit, steps=40)
    (report,) = recovered.recovery.variants
    assert report.lr == pytest.approx(0.002 * 0.5**0.5 / 4**2)
    assert report.steps == 40
    assert len(taken) == 1 + 3 + 4 + 40  # the first compiles
    assert caplog.text.count("diverged") == 1
    monkeypatch.undo()
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 0.002 / 4**2)
    second = run_recovery(vit, steps=40)
    chex.assert_trees_all_equal(second.variables, recovered.variables)


def test_training_that_always_diverges_leaves_the_weights(vit, monkeypatch):
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 1e12)
    recovered = run_recovery(vit, steps=8)
    chex.assert_trees_all_equal(recovered.variables, vit.variables)


def test_ctrl_c_before_anything_is_better_leaves_the_weights(vit, monkeypatch, caplog):
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 1e6)  # far too high
    interrupt_step(monkeypatch, 10)
    stopped = run_recovery(vit, steps=40)
    (report,) = stopped.recovery.variants
    assert report.stopped and not report.changed
    chex.assert_trees_all_equal(stopped.variables, vit.variables)
    assert caplog.text.count("nothing is better") == 1


@pytest.mark.parametrize("step", [14, 6])
def test_ctrl_c_keeps_finished_costs(public, monkeypatch, caplog, step):
    train_step = recovery_step.StudentFit.train_step

    def train_first_cost(self, pixels, lr):
        if len(taken) > 9:  # the second cost changes no number
            lr = 0.0
        return train_step(self, pixels, lr)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", train_first_cost)
    taken = interrupt_step(monkeypatch, step)
    handler = signal.getsignal(signal.SIGINT)
    stopped = run_recovery(public, seed=2)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(taken) == step
    (report,) = stopped.recovery.variants
    assert report.changed and report.stopped == (step == 6)
    assert report.curve[-1] == (min(step - 1, 8), report.after)
    assert "so far are kept" in caplog.text


def test_costs_share_the_minutes_and_progress_is_in_seconds(public, monkeypatch):
    """Only steps count: compiling and measuring take longer than all 180 s."""
    taken = interrupt_step(monkeypatch, step=0)
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    recovery_trials.slow_down(monkeypatch, clock, "train_step", 5.0, first=200.0)
    recovery_trials.slow_down(monkeypatch, clock, "measure_held_out", 200.0)
    shown = recovery_trials.record_progress(monkeypatch)
    recovered = run_recovery(public, steps=None, minutes=3.0)
    variants = recovered.recovery.variants
    assert [variant.steps for variant in variants] == [12, 12, 12]
    assert sum(variant.seconds for variant in variants) == pytest.approx(clock[0])
    assert taken[-1][1] < 0.01 * variants[-1].lr  # the rate ends near 0
    assert [n for bar, n in shown if bar.total == 180] == [*range(5, 181, 5)]
