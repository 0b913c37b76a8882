"""Are these the models that the settings name, with the checkpoint's own values?"""

import jax
import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import sweep
from imagepiece_jax.models import convert
from imagepiece_jax.variants import variants
from tests.models import tiny

# Heads of 64 channels, so that shapes tell the model.
SIZE = {"embed_dim": 64, "num_heads": 1, "depth": 2}
LEARNED = {"name": "dynamicvit", "blocks": (1,)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A dense model's weights file, and its variables."""
    variables = tiny.variables(tiny.model(**SIZE))
    path = tmp_path_factory.mktemp("weights") / "dense.npz"
    np.savez(path, **convert.to_timm(variables))
    return path, variables


def test_one_checkpoint_under_several_reductions(checkpoint):
    path, variables = checkpoint
    found = variants(path, [*sweep.parse("none"), *sweep.parse("tome:r=2,3")])
    assert [v.label for v in found] == ["dense", "tome r=2", "tome r=3"]
    assert [v.model.plan[-1].mlp_tokens for v in found] == [26, 22, 20]
    assert found[0].gmacs > found[1].gmacs > found[2].gmacs
    assert found[1].model.prop_attn and found[1].model.kernels is None
    assert found[1].model.dtype == np.float32 and found[1].image_size == tiny.SIDE
    for variant in found:
        assert not variant.untrained
        kernel = variant.variables["params"]["blocks_1"]["mlp"]["fc1"]["kernel"]
        expected = variables["params"]["blocks_1"]["mlp"]["fc1"]["kernel"]
        np.testing.assert_array_equal(kernel, expected)


def test_selectors_that_the_checkpoint_lacks_are_said_to_be_random(checkpoint):
    path, dense = checkpoint
    (variant,) = variants(path, [LEARNED])
    assert variant.untrained
    assert variant.label == "dynamicvit blocks=(1,) (untrained selectors)"
    found = dict(variant.variables["params"])
    assert found.pop("reducer_1")
    same = jax.tree.map(np.array_equal, found, dense["params"])
    assert jax.tree.all(same)  # all else is the checkpoint's


def test_without_a_setting_the_model_is_its_own(checkpoint):
    (variant,) = variants(checkpoint[0])
    assert variant.label == "dense" and not variant.untrained


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match="no.npz: no such file or folder"):
        variants(tmp_path / "no.npz")
