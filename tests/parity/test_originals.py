"""Checkpoints of other libraries compute their own models' outputs.

Models of tools/originals, reduced in width and depth, in float32 with products in the
highest precision. Skipped without torch, timm or transformers.
"""

import dataclasses
import json
import pathlib

import chex
import numpy as np
import pytest
import timm

import imagepiece_jax
from imagepiece_jax.models import registry
from imagepiece_jax.weights import naming
from tests.helpers.parity_record import distance, public_weights, record, run_jax
from tools import fixtures, originals

# From transformers' imports and saving.
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = tuple(originals.ORIGINALS)


@pytest.fixture(scope="module", params=NAMES)
def original(request):
    return originals.ORIGINALS[request.param]()


def test_outputs_equal_the_originals(original, tmp_path, request):
    path = tmp_path / "w.npz"
    images = originals.images()
    np.savez(path, **original.tensors)
    vit = imagepiece_jax.load(path, config=original.config)
    error = distance(run_jax(vit, images).logits, original.outputs)
    record(original=request.node.callspec.params["original"], logits=error)
    assert error < 1e-4


def test_a_checkpoints_other_names_convert_alike(original):
    expected = naming.read_timm_tensors(original.tensors)
    for tensors in original.also:
        chex.assert_trees_all_equal(naming.read_timm_tensors(tensors), expected)


def test_stored_fixtures_are_these_checkpoints():
    for name in fixtures.STORED:
        with np.load(fixtures.FIXTURES / "originals" / f"{name}.npz") as stored:
            original = originals.ORIGINALS[name]()
            config = json.loads(json.dumps(dataclasses.asdict(original.config)))
            assert json.loads(str(stored["config"])) == config
            np.testing.assert_allclose(stored["outputs"], original.outputs, atol=1e-5)
            for key, tensor in original.tensors.items():
                np.testing.assert_array_equal(stored[key], tensor, err_msg=key)


def names_of_files():
    """{file's stem: timm's names} of PyTorch files."""
    names = {}
    for name in public_weights():
        url = timm.get_pretrained_cfg(name.rstrip(".")).url
        if url and url.endswith(".pth"):
            names.setdefault(pathlib.PurePosixPath(url).stem, []).append(name)
    return names


def test_every_original_file_has_timms_name():
    expected = names_of_files()
    named = {file: registry.model_in_file_name(f"{file}.pth") for file in expected}
    rest = {file for file, name in named.items() if name is None}
    for file in expected.keys() - rest:
        assert [named[file]] == expected[file]
    # Other projects' files, which nobody has checked.
    assert all("miil" in file or file.startswith("jx_") for file in rest)
    assert len(named) - len(rest) == 39
