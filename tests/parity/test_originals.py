"""Checkpoints of other libraries give what the libraries' own models compute.

Float32 with the highest precision of products; models of tools/originals, reduced in
width and depth. Skipped where torch, timm or transformers are absent.
"""

import dataclasses
import json

import chex
import numpy as np
import pytest
import safetensors.numpy
import torch

import imagepiece_jax
from imagepiece_jax.weights import naming
from tests.helpers.parity_record import apart, computed, record
from tools import fixtures, originals

# Of transformers and its own packages, when it is imported and when it saves.
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = tuple(originals.ORIGINALS)


@pytest.fixture(scope="module", params=NAMES)
def original(request):
    return originals.ORIGINALS[request.param]()


def test_the_same_numbers_come_out(original, tmp_path, request):
    path = tmp_path / "w.npz"
    images = originals.images()
    np.savez(path, **original.tensors)
    vit = imagepiece_jax.load(path, config=original.config)
    distance = apart(computed(vit, images).logits, original.outputs)
    record(original=request.node.callspec.params["original"], logits=distance)
    assert distance < 1e-4


def test_other_names_of_the_same_checkpoint_give_the_same(original):
    expected = naming.with_timm_names(original.tensors)
    for tensors in original.also:
        chex.assert_trees_all_equal(naming.with_timm_names(tensors), expected)


@pytest.mark.parametrize("wrapper", ["model", "teacher", None])
def test_what_torch_saves_is_read(wrapper, tmp_path):
    tensors = {k: torch.from_numpy(v) for k, v in originals.mae().tensors.items()}
    content = {wrapper: tensors, "epoch": 3} if wrapper else tensors
    torch.save(content, tmp_path / "pytorch_model.bin")
    found = naming.read_timm_tensors(tmp_path / "pytorch_model.bin")
    expected = naming.with_timm_names(originals.mae().tensors)
    assert found.keys() == expected.keys()
    safetensors.numpy.save_file(found, tmp_path / "a.safetensors")  # all are arrays


def test_stored_fixtures_are_these_checkpoints():
    for name in fixtures.STORED:
        with np.load(fixtures.FIXTURES / "originals" / f"{name}.npz") as stored:
            found = originals.ORIGINALS[name]()
            config = json.loads(json.dumps(dataclasses.asdict(found.config)))
            assert json.loads(str(stored["config"])) == config
            np.testing.assert_allclose(stored["outputs"], found.outputs, atol=1e-5)
            for key, tensor in found.tensors.items():
                np.testing.assert_array_equal(stored[key], tensor, err_msg=key)
