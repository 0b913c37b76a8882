"""Models with fused kernels decide and compute as without them."""

import jax
import numpy as np
import pytest

from tests.models import tiny
from tests.reduction.kernels.inputs import needs_compiler
from tests.refused import refused

# Two blocks, with a step of each kind.
METHODS = {
    "imagepiece": tiny.IMAGEPIECE | {"merge_blocks": (0,), "prune_blocks": (1,)},
    "evit": tiny.EVIT | {"blocks": (0, 1)},
    "tome": {"r": 4},
}


def make(name, **options):
    reduction = METHODS[name] | {"name": name}
    return tiny.model(reduction, embed_dim=48, depth=2, **options)


@needs_compiler
@pytest.mark.parametrize("name", METHODS)
def test_a_model_with_fused_kernels_equals_the_plain_one(name):
    plain = make(name)
    fast = make(name, kernels="fused")
    assert (plain.kernels, fast.kernels) == (None, "cpu")
    variables = tiny.variables(plain)
    images = tiny.images()
    want = tiny.jit(plain.apply)(variables, images)
    got = tiny.jit(fast.apply)(variables, images)
    assert len(got.results) == len(want.results) > 0
    np.testing.assert_array_equal(tiny.slots(got), tiny.slots(want))
    np.testing.assert_array_equal(got.state.size, want.state.size)
    np.testing.assert_allclose(got.logits, want.logits, atol=2e-5)
    program = str(jax.make_jaxpr(fast.apply)(variables, images))
    assert program.count("ffi_call[") == len(got.results)


def test_what_has_no_fused_kernel_stays_plain():
    reduction = tiny.FUSED  # EViT with a fused token
    assert tiny.model(reduction, embed_dim=48, kernels="auto").kernels is None
    assert tiny.model(None, kernels="fused").kernels is None
    by_value = tiny.IMAGEPIECE | {"metric": "value", "prune_blocks": ()}
    assert tiny.model(by_value, embed_dim=48, kernels="fused").kernels is None


@needs_compiler
@pytest.mark.parametrize("kernels", ["fused", "cuda"])
def test_heads_that_do_not_fit_and_unknown_names_are_refused(kernels):
    with refused("kernels", kernels):
        tiny.model(tiny.EVIT, kernels=kernels)  # heads of a width of 10
