"""DINOv2-S with trained weights at the sizes that its positions fit, and do not fit."""

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import imagepiece_jax
from tests.parity.record import apart

CLOSE = 1e-4  # of the largest value
SIDE = 518  # the family's crop
EDGE = 592  # the shortest edge that it is taken of


@pytest.fixture(scope="module")
def folder(assets):
    path = assets / "weights" / "dinov2_small"
    if not path.is_dir():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="module")
def photographs(assets):
    """Two photographs, uint8, of 224 pixels."""
    files = sorted((assets / "data/nips2017_224_jpg/images").iterdir())[:2]
    return [np.asarray(Image.open(file)) for file in files]


@pytest.fixture(scope="module")
def theirs(folder):
    model = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def processor(folder):
    return transformers.BitImageProcessorPil.from_pretrained(
        folder, size={"shortest_edge": EDGE}, crop_size={"height": SIDE, "width": SIDE}
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [(SIDE, SIDE), (280, 392)])
def test_hidden_states_are_transformers(folder, photographs, processor, theirs, size):
    """Where the positions of 518 pixels fit, and where each resizes them."""
    vit = imagepiece_jax.load(folder, image_size=size)
    images = processor(photographs, return_tensors="np").pixel_values
    images = np.ascontiguousarray(images[:, :, : size[0], : size[1]])
    with torch.no_grad():
        states = theirs(torch.from_numpy(images), output_hidden_states=True)
    with jax.default_matmul_precision("highest"):
        maps = imagepiece_jax.features(
            vit, images.transpose(0, 2, 3, 1), layers=[5], norm=False, reshape=False
        )
    pairs = (
        (maps, states.last_hidden_state.numpy()),
        (maps.layers[0], states.hidden_states[6].numpy()),
    )
    for ours, wanted in pairs:
        tokens = np.concatenate([ours.prefix, ours.patches], axis=1)
        assert apart(tokens, wanted) < CLOSE
