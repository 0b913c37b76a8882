"""Every method decides and moves tokens alike in XLA and in exported files.

Sums in float64 over the map that a target reports are the truth for its tokens.
"""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.exporters import litert_format
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Mixing, initial_state
from tests.helpers import oracles
from tests.helpers.rounding import assert_close
from tests.reduction import test_methods

CASES = {name: test_methods.CASES[name] for name in test_methods.DEFAULTS}
RNG = np.random.default_rng(1)
SIZES = RNG.integers(1, 5, (3, 1 + test_methods.N0)).astype(np.float32)
TOKENS = test_methods.random_tokens()
TOKENS[2] = TOKENS[2, 0]  # every score and similarity is a tie


def first_step(label, x):
    plan = test_methods.short_plan(*CASES[label])
    block, layer = next((i, layer) for i, layer in enumerate(plan) if layer.counts)
    keys = None
    if label == "random":
        keys = test_methods.block_keys(test_methods.image_keys(3), block)
    state = dataclasses.replace(initial_state(x), size=jnp.asarray(SIZES))
    inputs = test_methods.step_inputs(state, keys, test_methods.GRID)
    result = test_methods.decide_filled(layer.step.reducer, inputs, layer.counts)
    return result, moves.apply_result(state, result)


def flat_step(label, x):
    """All arrays of `first_step` as one array."""
    leaves = jax.tree.leaves(first_step(label, x))
    rows = [leaf.reshape(3, -1).astype(jnp.float32) for leaf in leaves]
    return jnp.concatenate(rows, axis=1)


@functools.cache
def run_xla(label):
    return [np.asarray(jax.jit(functools.partial(flat_step, label))(TOKENS))]


def run_onnx(label):
    onnx_runs = pytest.importorskip("tests.helpers.onnx_runs")
    step = functools.partial(flat_step, label)
    with kernels.reference_forms():
        _, *arrays = onnx_runs.function_outputs(step, TOKENS)
    return arrays


def run_litert(label):
    litert_runs = pytest.importorskip("tests.helpers.litert_runs")
    with kernels.reference_forms(), jax.disable_jit():
        step = jax.jit(functools.partial(flat_step, label))
        program = jax.export.export(step, platforms=["cpu"])(TOKENS)
    module = program.mlir_module_serialized
    names = types.SimpleNamespace(input_name="images", output_names=["rows"])
    flatbuffer = litert_format.convert_program(module, names)
    litert_runs.count_operators(flatbuffer)
    return litert_runs.run_litert(flatbuffer, TOKENS)


def move_slowly(result):
    """The tokens and sizes after a step, in float64."""
    x = np.asarray(TOKENS[:, 1:], float)
    if isinstance(result, Mixing):
        rows = np.asarray(result.matrix, float) @ x
        return rows, np.ones(rows.shape[:2])
    size = SIZES[:, 1:]
    weight = result.weight
    if weight is None:
        weight = size if result.by_size and result.merges else np.ones_like(size)
    moved = [
        oracles.apply_map(*image, result.n_out, result.mean)
        for image in zip(x, size, result.slot_of_token, weight, strict=True)
    ]
    return map(np.stack, zip(*moved, strict=True))


@pytest.mark.parametrize("run", [run_xla, run_onnx, run_litert])
@pytest.mark.parametrize("label", sorted(CASES))
def test_every_method_moves_tokens_like_float64(label, run):
    if label == "random" and run is not run_xla:
        pytest.skip("a file draws no random numbers")
    shapes = jax.eval_shape(functools.partial(first_step, label), TOKENS)
    leaves, treedef = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size // 3 for leaf in leaves])[:-1]
    for flat in run(label):
        arrays = [
            array.reshape(leaf.shape)
            for array, leaf in zip(np.split(flat, ends, axis=1), leaves, strict=True)
        ]
        result, state = jax.tree.unflatten(treedef, arrays)
        if not isinstance(result, Mixing):
            result = result.replace(slot_of_token=result.slot_of_token.astype(int))
        rows, sizes = move_slowly(result)
        assert_close(state.x[:, 1:], rows, units=64)
        np.testing.assert_array_equal(state.size[:, 1:], sizes)
        np.testing.assert_array_equal(state.x[:, 0], TOKENS[:, 0])
        assert_close(flat, run_xla(label)[0], units=64)
