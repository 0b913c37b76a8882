"""docs/api.md has every public name, and no argument that is none."""

import ast
import dataclasses
import inspect
import re

import pytest

import imagepiece_jax
from tests.command import start
from tests.models import tiny
from tests.runs import ROOT

HEADS = re.findall(
    r"^### `(\w+)(?:\((.*)\))?`$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.M
)


def test_the_page_lists_the_public_names():
    assert sorted(name for name, _ in HEADS) == sorted(imagepiece_jax.__all__)


def test_signatures_have_arguments_that_exist_and_their_defaults():
    for name, signature in HEADS:
        if not signature:  # of an error
            continue
        parameters = inspect.signature(getattr(imagepiece_jax, name)).parameters
        named = re.findall(r"(\w+)(?:=([^,(]*|\(\)))?(?:, |$)", signature)
        assert {argument for argument, _ in named} <= {*parameters}, name
        for argument, default in named:
            if default and not default.isupper():  # of a constant
                assert ast.literal_eval(default) == parameters[argument].default, name


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
        imagepiece_jax.InputError, match="config is 'resnet50', which is neither"
    ):
        imagepiece_jax.read_config("resnet50")


def test_rooms_do_not_hide_functions_of_their_names():
    """`evaluate` is a room and a function, in whatever order they are imported."""
    code = (
        "import imagepiece_jax.evaluate.statistics, imagepiece_jax as package\n"
        "from imagepiece_jax.evaluate import accuracy\n"
        "from imagepiece_jax import evaluate\n"
        "print(all(map(callable, (package.evaluate, evaluate, accuracy.evaluate))))"
    )
    assert start("-c", code).out == "True\n"


QUIET = """
import numpy as np
import imagepiece_jax
from tests.models import tiny
vit = tiny.pretrained(depth=2).with_reduction("tome:macs=0.7")
pixels = np.random.default_rng(0).integers(0, 256, (40, 20, 20, 3), np.uint8)
vit = imagepiece_jax.recover(vit, pixels, steps=1)
imagepiece_jax.save(vit, {folder!r})
vit = imagepiece_jax.load({folder!r}, 0.8)
imagepiece_jax.features(vit, pixels[:2])
imagepiece_jax.Predictor(vit)(pixels[:2])
"""


@pytest.mark.parametrize("asked", [False, True])
def test_library_calls_print_nothing_unless_asked(tmp_path, asked):
    code = QUIET.format(folder=str(tmp_path / "saved"))
    if asked:
        code = f"import logging\nlogging.basicConfig(level=logging.INFO)\n{code}"
    ended = start("-c", code)
    assert (ended.status, ended.out) == (0, ""), ended.err
    assert ("of the MACs" in ended.err) == asked
    assert asked or ended.err == ""


@pytest.mark.parametrize("name", ["optimize", "Predictor"])
def test_a_wrong_option_is_a_type_error(name):
    function = getattr(imagepiece_jax, name)
    with pytest.raises(TypeError, match="zebra"):
        function(tiny.pretrained(), batch_size=1, zebra=1)
