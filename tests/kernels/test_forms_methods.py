"""Every method's reductions: the chosen forms against the definitions.

Forms round in different orders, so decisions may differ in a few images with a near
tie. In all other images decisions are equal, and features and gradients are equal up to
rounding. Nothing differentiates the fast forms.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax import kernels
from imagepiece_jax.kernels import forms
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.reduction.state import Assignment, TokenState
from tests.helpers import tiny_vit
from tests.reduction import test_methods

IMAGES = 24
FORMS = {
    "definition": kernels.reference_forms,
    "exact": contextlib.nullcontext,
    "fast": forms.fast_forms,
    "fast for many images": forms.fast_forms,
}
# Other token counts change ToMe's two sides: (method, image tokens, prefix)
FURTHER = [
    ("tome:r=9", 25, 0),
    ("tome:r=9", 24, 2),
    ("tome:r=30", 64, 1),
    ("imagepiece:keep_rate=0.0:merge_ratio=1.0:candidate_ratio=1.0", 64, 1),
    ("evit:keep_rate=0.4:blocks=(1,):fuse_token=True", 64, 1),
    ("diffrate:prune=(65,60,40):merge=(60,30,9)", 64, 1),
    ("peaks:keep_rate=0.4:blocks=(1,)", 64, 1),
    ("mctf:r=0.49:blocks=(0,)", 64, 1),
]
CASES = [(*test_methods.CASES[name], 25, 1) for name in test_methods.DEFAULTS]
for text, tokens, prefix in FURTHER:
    method = Reduction.read(text).method
    CASES.append((text.partition(":")[0], method, tokens, prefix))
LABELS = [f"{name}-{tokens}-{prefix}" for name, _, tokens, prefix in CASES]
# Rounding errors of a form, in units in the last place of the largest number
PLACES = {"float32": 64, "bfloat16": 2}


@functools.partial(tiny_vit.compiled, static_argnums=(0, 1, 2, 3))
def run_step(layer, block, prefix, form, x, size, probe):
    """One reduction: its decisions, and the tokens, sizes and gradient after it."""

    def loss(x):
        state = TokenState(x, size, attn_size=size**0.5, num_prefix=prefix)
        keys = test_methods.block_keys(test_methods.image_keys(len(x)), block)
        with FORMS[form]():
            inputs = test_methods.step_inputs(state, keys, test_methods.GRID)
            all_metric = x if prefix == 1 else None
            inputs = inputs.replace(all_x=x, all_metric=all_metric)
            reducer = layer.step.reducer
            result = test_methods.decide_filled(reducer, inputs, layer.counts)
            state = moves.apply_result(state, result)
        weights = probe[:, : state.x.shape[1]]
        return jnp.sum(state.x.astype(jnp.float32) * weights), (result, state)

    if form.startswith("fast"):  # nothing differentiates it
        gradient, (result, state) = x, loss(x)[1]
    else:
        gradient, (result, state) = jax.grad(loss, has_aux=True)(x)
    decisions = jnp.zeros((len(x), 1))
    if isinstance(result, Assignment):
        decisions = result.slot_of_token
    return decisions, jax.tree.leaves((state.x, state.size, state.attn_size, gradient))


def count_near_ties(layer, block, prefix, form, dtype, images=IMAGES, width=8):
    """Compare a form of a step with its definition. Returns the near ties' count."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, prefix + layer.counts.n_in, width))
    # Tokens of every third image lie on few axes, so ties are exact.
    axes = rng.integers(6, size=x[::3].shape[:2])
    x[::3] = np.eye(width)[axes] * rng.choice([-1, 1], (*axes.shape, 1))
    x = jnp.asarray(x, dtype)
    size = rng.integers(1, 5, size=x.shape[:2]).astype(np.float32)
    size[:, :prefix] = 1
    probe = rng.normal(size=x.shape).astype(np.float32)
    run = functools.partial(run_step, layer, block, prefix)
    decisions, numbers = run("definition", x, size, probe)
    chosen_decisions, chosen_numbers = run(form, x, size, probe)
    is_different = np.any(decisions != chosen_decisions, axis=1)
    if form.startswith("fast"):
        numbers, chosen_numbers = numbers[:-1], chosen_numbers[:-1]
    for expected, value in zip(numbers, chosen_numbers, strict=True):
        assert value.dtype == expected.dtype
        unit = float(jnp.finfo(value.dtype).eps)
        expected = np.asarray(expected[~is_different], np.float64)
        value = np.asarray(value[~is_different], np.float64)
        error = np.abs(expected - value).max()
        assert error <= PLACES[dtype] * unit * np.abs(expected).max()
    return is_different.sum()


def case_steps(case):
    """([(block, layer)] with every reducer once, the prefix length)."""
    name, method, tokens, prefix = case
    first_steps = {}
    for block, layer in enumerate(test_methods.short_plan(name, method, n0=tokens)):
        if layer.counts:
            first_steps.setdefault(layer.step.reducer, (block, layer))
    return [*first_steps.values()], prefix


@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_forms_decide_like_the_definition_except_at_near_ties(case, monkeypatch):
    """With many images a GPU moves tokens longer than it starts kernels."""
    steps, prefix = case_steps(case)
    ties = 0
    for number, (block, layer) in enumerate(steps):
        ties += count_near_ties(layer, block, prefix, "exact", "float32")
        ties += count_near_ties(layer, block, prefix, "fast", "bfloat16")
        if number == 0:  # the others have the same operations
            ties += count_near_ties(layer, block, prefix, "exact", "bfloat16")
    assert 100 * ties <= 3 * len(steps) * IMAGES
    if case in CASES[-len(FURTHER) :]:
        monkeypatch.setattr(forms, "LATENCY_BOUND_SIZE", 0)
        for block, layer in steps:
            count_near_ties(layer, block, prefix, "fast for many images", "bfloat16")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["evit", "imagepiece", "tome", "attended", "peaks"])
def test_a_gpu_decides_like_the_definition_except_at_near_ties(name):
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU here")
    steps, prefix = case_steps((name, METHODS[name](), 196, 1))
    for block, layer in steps:
        ties = count_near_ties(layer, block, prefix, "fast", "bfloat16", 256, 384)
        assert 100 * ties < 256


def test_sizes_of_many_digits_count_in_full():
    """Opposite tokens' sizes have 12 bits, and their leading bits cancel."""
    n = 30
    x = np.zeros((1, n + 1, 4), np.float32)
    x[0, 1:] = np.where(np.arange(n) % 2, -1, 1)[:, None]
    size = np.ones((1, n + 1), np.float32)
    size[0, 1:] = np.where(np.arange(n) % 2, 2047, 2049)
    result = Assignment(jnp.zeros((1, n), jnp.int32), n_out=1)
    state = TokenState(x=jnp.asarray(x, jnp.bfloat16), size=jnp.asarray(size))
    with forms.fast_forms():
        moved = moves.apply_result(state, result)
    mean = (x[0, 1:, 0] * size[0, 1:]).sum() / size[0, 1:].sum()
    assert 0 < mean < 1e-3
    unit = float(jnp.finfo(jnp.bfloat16).eps) * mean
    np.testing.assert_allclose(np.float32(moved.x[0, 1]), mean, rtol=0, atol=unit)
