"""The cost of the fast program in accuracy, from passes whose results are known."""

import dataclasses
import types

import numpy as np
import pytest

from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.evaluate.accuracy import EvalResult
from tests.models import tiny


def test_the_difference_is_the_program_less_the_reference(monkeypatch):
    """3 of 4 images right before, 2 after."""
    rights = iter(np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool))

    def evaluate(step, variables, batches):
        right = next(rights)
        return EvalResult(100 * right.mean(), 100.0, 1.0, 4, 8.0, {"right": right})

    model = tiny.model()
    tanh = model.clone(arch=dataclasses.replace(model.arch, gelu="tanh"))
    program = types.SimpleNamespace(model=tanh, batch_size=2)
    monkeypatch.setattr(accuracy, "evaluate", evaluate)
    result = accuracy.evaluate_program(model, {}, program, lambda **options: [])
    assert result["reference"]["acc1"] == 75 and result["reference"]["gelu"] == "exact"
    optimized = result["optimized"]
    assert (optimized["acc1"], optimized["gelu"]) == (50, "tanh")
    assert optimized["difference"] == pytest.approx(-25)
    assert optimized["difference_low"] < -25 < optimized["difference_high"]
