"""ToMe on published weights against its authors' own code, token by token.

Their outputs for two images: DeiT-Ti, untrained with ToMe, r = 13, proportional
attention, float32 on a CPU.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models import convert
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.pretrained import load
from imagepiece_jax.reduction.methods import METHODS
from tests import oracles
from tests.models import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tome(assets):
    """(the authors' arrays by name, our plan, our Outputs) for two images."""
    with np.load(assets / "fixtures/deit_tiny_reduced.npz") as file:
        named = {name.removeprefix("tome_r13_"): file[name] for name in file}
    with np.load(assets / "fixtures/deit_tiny_timm.npz") as file:
        images = normalize(jnp.asarray(file["images_uint8"][:2]), MEAN, STD)
        dense_logits = file["logits"][:2]
    model = create_model(
        "deit_ti",
        reduction={"name": "tome", "r": 13},
        attention="xla",
        **METHODS["tome"].model_fields,
    )
    file = assets / "weights/deit_tiny_patch16_224.npz"
    dense = create_model("deit_ti")
    variables = convert.from_timm(
        load.read_metadata(file).tensors, tiny.shapes(dense, 224)
    )
    outputs = jax.jit(model.apply)(variables, images)
    return types.SimpleNamespace(**named, dense=dense_logits), model.plan, outputs


def test_token_counts_are_its_authors(tome):
    theirs, plan, _ = tome
    assert [layer.mlp_tokens for layer in plan] == theirs.tokens.tolist()


def test_logits_are_its_authors(tome):
    theirs, _, outputs = tome
    np.testing.assert_allclose(outputs.logits, theirs.logits, atol=1e-4)
    assert np.abs(outputs.logits - theirs.dense).max() > 0.1


def test_every_patch_is_in_the_token_where_its_authors_have_it(tome):
    """Slot by slot, in ToMe's own order; theirs count the class token, ours do not."""
    theirs, _, outputs = tome
    slots = tiny.slots(outputs, 196)
    np.testing.assert_array_equal(theirs.source_argmax[:, 0], 0)
    np.testing.assert_array_equal(slots, theirs.source_argmax[:, 1:] - 1)
    np.testing.assert_array_equal(outputs.state.size, theirs.size)
    for image in range(2):
        counted = oracles.count_sources(np.asarray(slots[image]), 40)
        np.testing.assert_array_equal(outputs.state.size[image, 1:], counted)
