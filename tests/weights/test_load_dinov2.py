"""DINOv2-S with trained weights, beside what transformers computes of photographs."""

import jax
import numpy as np
import pytest

import imagepiece_jax
from tests.parity.record import apart

pytestmark = pytest.mark.slow

CLOSE = 1e-4  # of the largest value
WEIGHTS = "weights/dinov2_small"


@pytest.fixture(scope="module")
def theirs(assets):
    """transformers' outputs, float32, as arrays by name."""
    path = assets / "fixtures/dinov2_small_transformers.npz"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return dict(np.load(path))


@pytest.fixture(scope="module")
def vit(assets, theirs):
    return imagepiece_jax.load(assets / WEIGHTS, image_size=224)


@pytest.fixture(scope="module")
def maps(vit, theirs):
    with jax.default_matmul_precision("highest"):
        return imagepiece_jax.features(
            vit, theirs["pixels"], layers=[5], norm=False, reshape=False
        )


def test_features_are_transformers(maps, theirs):
    tokens = np.concatenate([maps.prefix, maps.patches], axis=1)
    assert apart(tokens, theirs["last_hidden_state"]) < CLOSE
    assert apart(maps.patches, theirs["last_hidden_state"][:, 1:]) < CLOSE
    assert apart(maps.pooled, theirs["pooler_output"]) < CLOSE
    sixth = maps.layers[0]
    tokens = np.concatenate([sixth.prefix, sixth.patches], axis=1)[:2]
    assert apart(tokens, theirs["block_6"]) < CLOSE
