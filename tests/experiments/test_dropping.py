"""Methods that drop what they would merge: which token of a slot stays."""

import numpy as np
import pytest

from experiments import controls, dropping
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.layer_plan import build
from imagepiece_jax.reduction.state import DROPPED
from tests.models import tiny
from tests.reduction.steps import decide

CLUSTERING = ("atc", "dpc_knn")


@pytest.mark.parametrize("name", dropping.MERGING)
def test_one_token_of_each_slot_stays(name):
    """The one that others join, or the one that is nearest to a cluster's mean."""
    fields = {"keep_rate": 0.5} if name in CLUSTERING else {}
    method = dropping.DROPPED[f"{name}{dropping.END}"](**fields)
    plan = build(12, 25, method.planned_steps(12, 25))
    layer = next(layer for layer in plan if layer.counts)
    reducer = layer.step.reducer
    taps = contract.random_taps(reducer, 25, tiny.WIDTH, tiny.HEADS)
    merged = decide(reducer.reducer, taps, layer.counts)
    found = decide(reducer, taps, layer.counts)
    size = np.asarray(taps.size, float)
    for image, x in enumerate(np.asarray(taps.x, float)):
        stays = np.flatnonzero(found.dest[image] != DROPPED)
        own = found.dest[image][stays]
        assert sorted(own) == [*range(layer.counts.n_out)]
        np.testing.assert_array_equal(own, merged.dest[image][stays])
        for token, slot in zip(stays, own, strict=True):
            members = np.flatnonzero(merged.dest[image] == slot)
            if name not in CLUSTERING:
                assert token == merged.index.keep[image][slot]
                continue
            weight = np.ones(len(members))
            if name == "atc":
                weight = size[image][members]
            mean = np.average(x[members], axis=0, weights=weight)
            squares = np.sum((x[members] - mean) ** 2, axis=1)
            assert squares[members == token] <= squares.min() * (1 + 1e-5)


@pytest.mark.parametrize("name", dropping.DROPPED)
def test_a_model_has_sizes_of_one(name):
    with controls.registered():
        base = name.removesuffix(dropping.END)
        model = tiny.model(tiny.small(base) | {"name": name, "prop_attn": False})
        run = tiny.compiled(model.apply)
        state = run(tiny.pretrained().variables, tiny.images()).state
    assert model.plan[-1].mlp_tokens < 26
    assert (state.size == 1).all()
