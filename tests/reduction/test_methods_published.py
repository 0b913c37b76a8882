"""Methods on published weights against their authors' code.

The fixtures are that code's outputs for two images: DeiT-Ti, untrained with the
reduction, float32 on a CPU. Its slots have another order, so the tests compare which
patches are together and which are dropped.
"""

import types

import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from tests.helpers import tiny_vit
from tests.helpers.rounding import assert_close

pytestmark = pytest.mark.slow

CASES = {
    "tome_r13": "tome:r=13",
    "diffrate_0.7": "diffrate:target=0.7",
    "pitome_0.925": "pitome:keep_rate=0.925",
    "tofu_0.925": "tofu:keep_rate=0.925",
    "mctf_16": "mctf:r=16",
    "dtem_16": "dtem:r=16",
    "dpcknn_0.7": "dpc_knn:keep_rate=0.7",
    "atc_0.7_complete_prop": "atc:linkage=complete",
}


def load_deit(assets):
    """Variables of DeiT-Ti, two normalized images, and timm's arrays of them."""
    dense = imagepiece_jax.load(assets / "weights/deit_tiny_patch16_224.npz")
    timm = np.load(assets / "fixtures/deit_tiny_timm.npz")
    pixels = jnp.asarray(timm["images_uint8"][:2])
    return dense.variables, normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), timm


def authors_arrays(assets, start):
    """The authors' arrays with names from `start`, which is cut off."""
    theirs = {}
    for name in ("methods2", "reduced"):
        theirs |= np.load(assets / f"fixtures/deit_tiny_{name}.npz")
    names = [name for name in theirs if name.startswith(start)]
    named = {name.removeprefix(start): theirs[name] for name in names}
    if "source_argmax" in named:  # ToMe's: first the class token's
        named["source"] = named["source_argmax"][:, 1:] - 1
    return named


def embedding(block):
    """The authors' code ran with these parameters: no trained ones are published."""
    i = np.arange(64)[:, None]
    j = np.arange(192)
    kernel = 0.05 * np.sin(0.7 * (1 + i) * (1 + j) + 1.3 * block)
    bias = 0.01 * np.cos(np.arange(64) + block)
    return {"kernel": np.float32(kernel.T), "bias": np.float32(bias)}


@pytest.fixture(scope="module", params=CASES)
def case(request, assets):
    """The authors' arrays of a case, our model, its Outputs, and its patch slots."""
    theirs = authors_arrays(assets, f"{request.param}_")
    variables, images, timm = load_deit(assets)
    reduction = CASES[request.param]
    model = create_model("deit_ti", reduction, attention="xla")
    if reduction.startswith("dtem"):
        own = {f"reducer_{block}": {"embed": embedding(block)} for block in range(12)}
        variables = {"params": variables["params"] | own}

    @tiny_vit.compiled
    def outputs_and_slots(variables, images):
        outputs = model.apply(variables, images)
        return outputs, tiny_vit.final_slots(outputs, 196)

    outputs, slots = outputs_and_slots(variables, images)
    theirs |= {"dense": timm["logits"][:2], "method": reduction.partition(":")[0]}
    return types.SimpleNamespace(**theirs), model, outputs, slots


def test_token_counts_and_logits_equal_the_authors(case):
    theirs, model, outputs, _ = case
    assert [layer.mlp_tokens for layer in model.plan] == theirs.tokens.tolist()
    np.testing.assert_allclose(outputs.logits, theirs.logits, atol=1e-4)
    assert np.abs(outputs.logits - theirs.dense).max() > 0.1


def test_groups_of_patches_equal_the_authors(case):
    """ToMe's slots also have the authors' order. DiffRate's sizes are fractions."""
    theirs, _, outputs, ours = case
    if theirs.method == "tome":
        np.testing.assert_array_equal(ours, theirs.source)
    np.testing.assert_array_equal(ours == DROPPED, theirs.source == -1)
    together = (each[:, :, None] == each[:, None] for each in (ours, theirs.source))
    np.testing.assert_array_equal(*together)
    if hasattr(theirs, "size"):
        sizes = outputs.state.effective_size
        assert_close(np.sort(sizes), np.sort(theirs.size))
        assert (sizes % 1 > 1e-3).any() == (theirs.method == "diffrate")
    assert not (outputs.state.size % 1).any()
