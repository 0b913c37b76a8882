"""docs/api.md has every public name, and no argument that is none."""

import dataclasses
import inspect
import re

import pytest

import imagepiece_jax
from tests.models import tiny
from tests.runs import ROOT

HEADS = re.findall(
    r"^### `(\w+)(?:\((.*)\))?`$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M
)


def test_the_page_lists_the_public_names():
    assert sorted(name for name, _ in HEADS) == sorted(imagepiece_jax.__all__)


def test_signatures_have_arguments_that_exist():
    for name, signature in HEADS:
        if not signature:  # of an error
            continue
        parameters = inspect.signature(getattr(imagepiece_jax, name)).parameters
        named = re.findall(r"(\w+)(?:=[^,]*)?(?:, |$)", signature)
        assert set(named) <= {*parameters}, name


def test_a_config_is_read_from_a_name_or_a_folder_and_makes_the_model(tmp_path):
    config = imagepiece_jax.read_config("deit_ti")
    assert isinstance(config, imagepiece_jax.ViTConfig)
    narrow = dataclasses.replace(config, embed_dim=48)
    assert imagepiece_jax.create_model(narrow).config == narrow
    assert imagepiece_jax.create_model("deit_ti").config == config
    vit = tiny.pretrained()
    folder = imagepiece_jax.save(vit, tmp_path / "saved")
    for path in (folder, str(folder), folder / "config.json"):
        assert imagepiece_jax.read_config(path) == vit.config
    with pytest.raises(
        imagepiece_jax.InputError, match="config is 'resnet50', no name"
    ):
        imagepiece_jax.read_config("resnet50")
