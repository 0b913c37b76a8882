import signal

import chex
import numpy as np
import pytest

from imagepiece_jax.recovery import recover, recovery_step
from tests.helpers.recovery_trials import (
    interrupt_step,
    record_progress,
    run_recovery,
    slow_down,
)
from tests.helpers.rounding import assert_close

pytestmark = pytest.mark.usefixtures("recoveries_compiled_once")


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


@pytest.mark.parametrize("kind, restarts", [("twice", 1), ("nan", 2)])
def test_diverging_training_restarts(vit, monkeypatch, caplog, kind, restarts):
    """At a quarter of the rate, with one warning."""
    taken = interrupt_step(monkeypatch, step=0)
    train_step = recovery_step.StudentFit.train_step
    measure = recovery_step.StudentFit.measure_held_out

    def train_badly(self, *args):
        loss = train_step(self, *args)
        return loss * np.nan if kind == "nan" and len(taken) in bad_steps else loss

    def measure_badly(self, *args):
        measured = measure(self, *args)
        if kind == "twice" and len(taken) == 5:  # a tenth of the steps
            measured["distance"] = measured["distance"] * 3
        return measured

    bad_steps = [4, 7][:restarts]  # an attempt's third step, after the compiling one
    monkeypatch.setattr(recovery_step.StudentFit, "train_step", train_badly)
    monkeypatch.setattr(recovery_step.StudentFit, "measure_held_out", measure_badly)
    recovered = run_recovery(vit, steps=40)
    (report,) = recovered.recovery.variants
    assert report.lr == pytest.approx(0.002 * 0.5**0.5 / 4**restarts)
    assert report.steps == 40
    assert len(taken) == 1 + {"nan": 3 * restarts, "twice": 4}[kind] + 40
    assert caplog.text.count("diverged") == 1
    monkeypatch.undo()
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 0.002 / 4**restarts)
    second = run_recovery(vit, steps=40)
    chex.assert_trees_all_equal(second.variables, recovered.variables)


def test_ctrl_c_leaves_the_weights_so_far(vit, monkeypatch, caplog):
    interrupt_step(monkeypatch, 30)
    before = signal.getsignal(signal.SIGINT)
    stopped = run_recovery(vit, steps=40)
    assert signal.getsignal(signal.SIGINT) is before
    (report,) = stopped.recovery.variants
    assert report.stopped and report.changed
    assert report.steps == 29  # without the compiling step
    assert report.after < report.before
    assert report.curve[-1] == (29, report.after)
    assert "so far are kept" in caplog.text


def test_ctrl_c_before_anything_is_better_leaves_the_weights(vit, monkeypatch, caplog):
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 1e6)  # far too high
    interrupt_step(monkeypatch, 10)
    stopped = run_recovery(vit, steps=40)
    (report,) = stopped.recovery.variants
    assert report.stopped and not report.changed
    chex.assert_trees_all_equal(stopped.variables, vit.variables)
    assert caplog.text.count(recover.NOTHING_BETTER) == 1


def test_minutes_count_steps_alone(vit, monkeypatch):
    """Compiling and measuring take longer than all 150 s; the rate ends near 0."""
    taken = interrupt_step(monkeypatch, step=0)
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow_down(monkeypatch, clock, "train_step", 1.0, first=200.0)
    slow_down(monkeypatch, clock, "measure_held_out", 200.0)
    (report,) = run_recovery(vit, steps=None, minutes=2.5).recovery.variants
    assert report.seconds == pytest.approx(clock[0], abs=0.1)
    assert report.steps == 150
    assert taken[-1][1] < 1e-3 * report.lr


@pytest.mark.parametrize("step", [14, 6])
def test_ctrl_c_keeps_finished_costs(public, monkeypatch, caplog, step):
    """Ctrl-C comes in the second or the first cost, and no cost follows."""
    train_step = recovery_step.StudentFit.train_step

    def train_first_cost(self, pixels, lr):
        if len(taken) > 9:  # the second cost changes no number
            lr = 0.0
        return train_step(self, pixels, lr)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", train_first_cost)
    taken = interrupt_step(monkeypatch, step)
    stopped = run_recovery(public, seed=2)
    assert len(taken) == step
    variants = stopped.recovery.variants
    assert [variant.changed for variant in variants] == [True]
    assert "so far are kept" in caplog.text


def test_costs_share_the_minutes_and_progress_is_in_seconds(public, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow_down(monkeypatch, clock, "train_step", 5.0)
    slow_down(monkeypatch, clock, "measure_held_out", 7.0)
    shown = record_progress(monkeypatch)
    recovered = run_recovery(public, steps=None, minutes=3.0)
    assert [cost.steps for cost in recovered.recovery.variants] == [12, 12, 12]
    assert [n for bar, n in shown if bar.total == 180] == [*range(5, 181, 5)]
