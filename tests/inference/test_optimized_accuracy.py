"""The cost of the fast program in accuracy, from passes whose results are known."""

import dataclasses
import types

import numpy as np
import pytest

from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.evaluate.accuracy import EvalResult
from imagepiece_jax.inference import optimize, optimized_accuracy
from tests.models import tiny


def test_the_difference_is_the_program_less_the_reference(monkeypatch, capsys):
    """3 of 4 images right before, 2 after."""
    rights = iter(np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool))

    def evaluate(step, variables, batches):
        right = next(rights)
        each = {"right": right}
        return EvalResult(100 * right.mean(), 100.0, 1.0, 4, 8.0, each)

    model = tiny.model()
    tanh = model.clone(arch=dataclasses.replace(model.arch, gelu="tanh"))
    program = types.SimpleNamespace(model=tanh)
    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    monkeypatch.setattr(optimize, "optimize", lambda *args, **options: program)
    fields = types.SimpleNamespace(attention="xla", kernels=None)
    config = types.SimpleNamespace(eval_batch_size=2, seed=0, model=fields)
    found = optimized_accuracy.compare(model, {}, lambda **options: [], config, "tanh")
    assert found["reference"]["acc1"] == 75 and found["reference"]["gelu"] == "exact"
    optimized = found["optimized"]
    assert (optimized["acc1"], optimized["gelu"]) == (50, "tanh")
    assert optimized["difference"] == pytest.approx(-25)
    assert optimized["difference_low"] < -25 < optimized["difference_high"]
    assert "the program's cost: acc1 -25.00 [" in capsys.readouterr().out
