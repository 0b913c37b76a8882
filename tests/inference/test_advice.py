"""Advice on a reduction: the batch sizes that are tried, its sentence, its accuracy."""

import json
import types

import pytest

from imagepiece_jax.common import timer
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import advice
from imagepiece_jax.inference.optimize import optimize
from tests.models import tiny

EVIT = {"name": "evit", "keep_rate": 0.7}


@pytest.fixture
def measured(monkeypatch):
    """Takes {batch size: ratio}; returns the advice and the sizes that were tried."""

    def advised(ratios, batch_size, dense_seconds=0.1):
        tried = []

        def make(reduced, size):
            tried.append(size)
            model = tiny.model(EVIT | {"blocks": (0,)})
            device = types.SimpleNamespace(platform="gpu", device_kind="H200")
            gmacs = 3.0 if reduced else 4.5
            return types.SimpleNamespace(
                model=model, gmacs=gmacs, device=device, size=size
            )

        def measure(jobs, rules):
            size, dense = jobs[False].size, dense_seconds
            if ratios[size] is None:
                raise MemoryError
            return {False: [dense] * 3, True: [dense / ratios[size]] * 3}

        monkeypatch.setattr(advice, "job", lambda program: program)
        monkeypatch.setattr(timer, "measure", measure)
        return advice.advise(make, batch_size), tried[::2]

    return advised


def test_what_pays_at_once_pays_from_one_on(measured):
    found, tried = measured({32: 1.4, 1: 1.1}, 32)
    assert tried == [32, 1]
    assert str(found) == (
        "evit keep_rate=0.7 blocks=(0,) at batch size 32 on H200: 1.40 times as fast "
        "as dense [1.40, 1.40] (by MACs 1.50); faster from batch size 1 on (measured "
        "at 1, 32); accuracy not measured"
    )


def test_the_first_batch_size_that_pays_is_found(measured):
    found, tried = measured({32: 1.4, 1: 0.8, 8: 1.02, 4: 0.95, 2: 0.9}, 32)
    assert tried == [32, 1, 8, 4] or tried == [32, 1, 8, 2, 4]
    assert "faster from batch size 8 on" in str(found)


def test_larger_ones_are_tried_where_it_does_not_pay(measured):
    found, tried = measured({2: 0.9, 8: 0.97, 32: 1.1}, 2)
    assert tried == [2, 8, 32]
    assert "slower than dense, 0.90 times as fast [0.90" in str(found)
    assert "faster from batch size 32 on" in str(found)


def test_batches_that_take_long_are_not_tried(measured):
    found, tried = measured({64: 0.9}, 64, dense_seconds=1.5)
    assert tried == [64] and "not faster at any batch size measured, 64" in str(found)


def test_a_larger_batch_that_does_not_fit_ends_the_search(measured):
    found, tried = measured({2: 0.9, 8: 0.97, 32: None}, 2)
    assert tried == [2, 8, 32]
    assert "not faster at any batch size measured, 2, 8" in str(found)
    with pytest.raises(MemoryError):
        measured({2: None}, 2)


def test_an_interval_with_one_is_no_verdict(monkeypatch):
    spread = timer.Spread(1.01, 0.99, 1.05)
    found = advice.Advice("tome", "this CPU", 4, {4: spread}, 1.3, "")
    assert "as fast as dense, 1.01 times [0.99, 1.05]" in str(found)
    assert "not faster at any" in str(found)


def test_accuracy_is_that_of_the_same_reduction(tmp_path):
    rows = [
        {"reduction": {"name": "tome"}, "acc1": 70.0, "images": 1000},
        {"reduction": {"name": "evit", "keep_rate": 0.7, "blocks": [3, 6, 9]}}
        | {"acc1": 79.4, "images": 1000, "difference": -0.6}
        | {"difference_low": -1.9, "difference_high": 0.7},
    ]
    sweep = tmp_path / "sweep.jsonl"
    sweep.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = advice.accuracy(EVIT, sweep)
    assert said == (
        "acc1 to dense -0.6 [-1.9, +0.7], within noise (points, 1,000 images), from "
        f"{sweep}"
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    assert advice.accuracy(EVIT, tmp_path) == said
    alone = advice.accuracy({"name": "tome"}, tmp_path)
    assert alone == f"acc1 70.0 % of 1,000 images, dense not known, from {sweep}"
    assert advice.accuracy({"name": "pitome"}, tmp_path) == "accuracy not measured"
    with pytest.raises(InputError, match="has no result of pitome; allowed are files"):
        advice.accuracy({"name": "pitome"}, sweep)
    nan = rows[1] | {"difference": float("nan")}
    broken = [
        nan | {"acc1": True},
        nan | {"acc1": 10**400},
        nan | {"acc1": None},
        nan | {"images": "ten"},
        nan | {"reduction": 3},
    ]
    sweep.write_text("".join(json.dumps(row) + "\n" for row in [*broken, nan]))
    assert "acc1 79.4 % of 1,000 images, dense not" in advice.accuracy(EVIT, sweep)
    with pytest.raises(InputError, match="config.json holds no result"):
        advice.accuracy(EVIT, tmp_path / "config.json")
    with pytest.raises(InputError, match="cannot be read"):
        advice.accuracy(EVIT, tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        advice.accuracy(EVIT, "a" * 5000)


def test_both_models_are_measured_on_this_device(monkeypatch):
    monkeypatch.setattr(advice, "RULES", timer.Rules(1, 2, 0.0))
    monkeypatch.setattr(advice, "LONGEST", 0.0)
    model = tiny.model(tiny.EVIT)
    quick = {"xla_backend_optimization_level": 0}
    program = optimize(
        *(model, tiny.variables(model)),
        batch_size=2,
        dtype="float32",
        compiler_options=quick,
        advise=True,
    )
    assert program.advice.speedups.keys() <= {1, 2} and program.advice.macs > 1
    assert str(program.advice) in program.describe()
    assert program.advice.label == "evit keep_rate=0.6 blocks=(1, 2)"


@pytest.mark.parametrize(
    "reduction, options, message",
    [
        (None, {"advise": True}, "advise is for a model with a reduction"),
        (tiny.EVIT, {"results": "a.json"}, "results is for advise=True"),
    ],
)
def test_advice_that_cannot_be_given(reduction, options, message):
    model = tiny.model(reduction)
    with pytest.raises(InputError, match=message):
        optimize(model, tiny.variables(model), batch_size=1, **options)
