"""Rotary positions against complex numbers, token by token, through reductions."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reducers import SCORES
from imagepiece_jax.reduction.state import Masking, Mixing, initial_state
from tests.helpers import oracles, oracles_peaks, tiny_vit
from tests.helpers.reduction_steps import apply
from tests.models.test_vit_families import small_case

BOTH = {"key_bias": False, "pool": "mean"}
DINOV3 = {"registers": 2, "positions": False, "norm_eps": 1e-5, "layer_scale": True}
DINOV3["rotary"] = Rotary("center", 100.0, planes="halves")
EVA02 = {"attn_norm": True, "mlp_norm": True, "mlp": "swiglu", "fc_norm": True}
EVA02 |= {"final_norm": False, "rotary": Rotary(reference=(4, 4))}
ARCHS = {
    "dinov3": Architecture(**BOTH, **DINOV3),
    "eva02": Architecture(**BOTH, **EVA02),
}
GRID = 5
WIDTH = 24
HEADS = 3  # of 8 channels, four planes


def rotary_model(family, reduction=None, **options):
    size = {"embed_dim": WIDTH, "num_heads": HEADS}
    return tiny_vit.model(reduction, arch=ARCHS[family], **size | options)


def test_coordinates_of_dinov3_and_eva02():
    """DINOv3's 2 x 4 patches have centers of halves and quarters."""
    y, x = Rotary("center").coordinates((2, 4)).T
    assert y.tolist() == [-0.5] * 4 + [0.5] * 4
    assert x.tolist() == [-0.75, -0.25, 0.25, 0.75] * 2
    # EVA02's 4 x 32 patches, in a model trained on 16 x 16.
    places = Rotary(reference=(16, 16)).coordinates((4, 32))
    expected = [[0, 0], [0, 0.5], [0, 15.5], [4, 0], [12, 15.5]]
    assert places[[0, 1, 31, 32, -1]].tolist() == expected
    from_one = Rotary(start=1.0).coordinates((2, 2))
    assert from_one.tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    places = np.float32([[[3, 7]]])
    by_y, by_x = (Rotary(axes=xy).rotations(places, 8)[0] for xy in ("yx", "xy"))
    np.testing.assert_array_equal(by_y, by_x[..., [2, 3, 0, 1]])
    assert by_y.ravel()[0] == pytest.approx(math.cos(3))


def rotate_head(family, head, place):
    """Rotate a head's channels [8] at (y, x) by the published angles."""
    out = np.zeros(8)
    for plane in range(4):
        axis, band = divmod(plane, 2)
        if family == "dinov3":
            channels = [plane, plane + 4]
            angle = 2 * math.pi * place[axis] / 100 ** (band / 2)
        else:
            channels = [2 * plane, 2 * plane + 1]
            angle = place[axis] / 10000 ** (band / 2)
        number = complex(*head[channels]) * np.exp(1j * angle)
        out[channels] = number.real, number.imag
    return out


def test_packages_have_the_mean_coordinates_of_their_tokens():
    """Tokens masked before are left out; without a package no token moves."""
    places = np.float32([[0, 0], [2, 6], [4, 8], [9, 9]])
    state = initial_state(np.zeros((1, 6, 3), np.float32), 2, coordinates=places)
    state = state.replace(mask=np.float32([[1, 1, 1, 0]]))
    result = Masking(np.float32([[1, 0, 0, 0]]), append=np.ones((1, 3), np.float32))
    after = apply(state, result)
    assert after.coordinates.tolist() == [[*places.tolist(), [3, 7]]]
    unchanged = apply(state, dataclasses.replace(result, append=None))
    assert unchanged.coordinates.tolist() == [places.tolist()]


CASES = [(name, False) for name in METHODS]
CASES += [("spvit", True), ("imagepiece_dynamicvit", True)]


@pytest.mark.parametrize("name, masked", CASES)
def test_every_token_has_coordinates(name, masked):
    depth, reduction, _ = small_case(name)
    model = rotary_model("dinov3", reduction, masked=masked, depth=max(depth, 2))
    out = jax.eval_shape(model.apply, tiny_vit.shapes(model), tiny_vit.images(2))
    state = out.state
    assert state.coordinates.shape == (2, state.x.shape[1] - 3, 2)
    assert state.x.shape == (2, model.plan[-1].mlp_tokens, WIDTH)
    # Models without rotary positions have no coordinates.
    assert initial_state(np.zeros((1, 2, 3)), 1).coordinates is None


TOME = "tome:counts=(22,20,18)"
LEARNED = "token_learner:num_tokens=8:block=1"
PEAKS = "peaks:blocks=(1,2):prop_attn=False"
REDUCED = [("dinov3", TOME), ("dinov3", LEARNED), ("eva02", tiny_vit.IMAGEPIECE)]
REDUCED += [("dinov3", PEAKS), ("eva02", f"{PEAKS}:score=class_and_mean")]


def is_read(module, method):
    return method == "__call__" and module.name in ("q", "k", "v", "attn")


@pytest.mark.parametrize("family, reduction", REDUCED)
def test_attention_uses_the_tokens_coordinates(family, reduction):
    model = rotary_model(family, reduction)
    variables = tiny_vit.variables(model)
    captured = {"capture_intermediates": is_read, "mutable": ["intermediates"]}
    run = tiny_vit.jit(functools.partial(model.apply, **captured))
    out, values = jax.device_get(run(variables, tiny_vit.images(1)))
    grid = ARCHS[family].rotary.coordinates((GRID, GRID)).astype(float)
    prefix = model.config.arch.prefix
    decisions = list(zip(out.results, out.reducer_inputs, strict=True))
    groups = [[p] for p in range(GRID**2)]
    places = grid
    for block, plan in enumerate(model.plan):
        site = plan.step.site if plan.counts else None
        if site == "pre":
            groups, places = move_groups(*decisions.pop(0), groups, places, grid)
        attention = values["intermediates"][f"blocks_{block}"]["attn"]
        query, key, value = (
            attention[name]["__call__"][0].reshape(-1, HEADS, 8).astype(float)
            for name in "qkv"
        )
        plain_key = key.copy()
        for token, place in enumerate(places, start=prefix):
            for head in (*query[token], *key[token]):
                head[:] = rotate_head(family, head, place)
        bias = 0.0
        if model.prop_attn:
            bias = np.log([1] * prefix + [len(group) for group in groups])
        mixed, weights = oracles.attention(query, key, value, bias)
        mixed = mixed.reshape(-1, WIDTH)
        params = variables["params"][f"blocks_{block}"]["attn"]
        if "norm" in params:
            mixed = oracles.layer_norm(mixed, params["norm"])
        expected = oracles.dense(mixed, params["proj"])
        output = attention["__call__"][0][0][0]
        np.testing.assert_allclose(output, expected, atol=2e-5)
        if site == "mid":
            result, inputs = decisions.pop(0)
            if inputs.cls_attn is not None:
                row = weights[:, 0].mean(axis=0)[prefix:]
                np.testing.assert_allclose(inputs.cls_attn[0], row, atol=1e-6)
            for score in ("mean", "class_and_mean"):
                row = getattr(inputs, SCORES[score])
                if row is not None:
                    expected_row = oracles_peaks.scores(score, query, key)[prefix:]
                    np.testing.assert_allclose(row[0], expected_row, atol=1e-6)
            if inputs.metric is not None:
                mean = plain_key.mean(axis=1)[prefix:]
                np.testing.assert_allclose(inputs.metric[0], mean, atol=1e-5)
            groups, places = move_groups(result, inputs, groups, places, grid)
    np.testing.assert_allclose(out.state.coordinates[0], places, atol=1e-5)
    assert len(places) < GRID**2
    assert not decisions


def move_groups(result, inputs, groups, places, grid):
    if isinstance(result, Mixing):
        matrix = result.matrix[0].astype(float)
        return None, matrix @ places / matrix.sum(axis=1, keepdims=True)
    merged = [[] for _ in range(result.n_out)]
    for group, slot in zip(groups, result.slot_of_token[0], strict=True):
        if slot >= 0:
            merged[slot] += group
    # A token stands at the mean of its patches.
    return merged, np.array([np.mean(grid[group], axis=0) for group in merged])
