"""Named models; the largest by tensor names and shapes, where nothing is allocated.

tools/fixtures.py writes timm's shapes to tests/fixtures/whole_models.json.
"""

import functools
import json

import numpy as np
import pytest

from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights import naming
from imagepiece_jax.weights.tensor_files import LazyTensor
from tests.helpers import named_models, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.small_runs import ROOT


@pytest.mark.parametrize(
    "name, stem, parameters",
    [
        ("deit_ti", "patch", 5_717_416),
        ("deit_s", "patch", 22_050_664),
        ("deit_b", "patch", 86_567_656),
        ("deit_ti", "conv", 5_825_920),
        ("deit_s", "conv", 22_776_856),
        ("deit_b", "conv", 90_056_776),
        # from the model cards of these weights, by timm's author
        ("vit_small_patch16_dinov3.lvd1689m", "patch", 21.6e6),
        ("vit_small_plus_patch16_dinov3_qkvb.lvd1689m", "patch", 28.7e6),
        ("vit_base_patch16_dinov3_qkvb.lvd1689m", "patch", 85.7e6),
    ],
)
def test_parameter_counts_are_published(name, stem, parameters):
    shapes = tiny_vit.shapes(create_model(named_models.config(name, stem=stem)))
    rounding = 0.05e6 if "dinov3" in name else 0
    assert abs(tiny_vit.count(shapes["params"]) - parameters) <= rounding


def test_an_unknown_model_is_answered_by_the_list():
    with refused("resnet50", "vit_mini"):
        create_model("resnet50")
    with refused("did you mean 'vit_small_patch16_224'?"):
        create_model("vit_smal_patch16_224.dino")
    with refused("vit_small_patch16_224.dino"):
        create_model("vit_small_patch16_224.dinosaur")


def test_an_image_size_replaces_the_configs():
    assert create_model("deit_ti", image_size=(64, 32)).config.grid == (4, 2)


def test_image_text_models_project_until_trained_on_classes():
    tags = {"openai": (512, "projection")}
    tags["openai_ft_in1k"] = (1000, "single_label_classification")
    tags["laion2b_ft_in12k"] = (11821, "single_label_classification")
    for tag, head in tags.items():
        config = registry.model_config(f"vit_base_patch16_clip_224.{tag}")
        assert (config.num_classes, config.problem_type) == head


MODELS = json.loads((ROOT / "tests/fixtures/whole_models.json").read_text())


def tensors(row):
    """The whole state dict, of zeros without memory."""
    shapes = dict(row["others"])
    for name, shape in row["block"].items():
        for index in range(row["depth"]):
            shapes[name.replace("blocks.0.", f"blocks.{index}.")] = shape
    # A LazyTensor is not copied, as an array in memory is.
    zeros = functools.partial(functools.partial, np.broadcast_to, np.float32(0))
    return {name: LazyTensor(zeros(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_has_timms_tensors(name):
    row = MODELS[name]
    model = create_model(name)
    shapes = variable_shapes(model)
    timm_tensors.match_tensors(naming.read_timm_tensors(tensors(row)), shapes)
    count = tiny_vit.count(shapes)
    assert count == pytest.approx(row["parameters"], rel=1e-4)
    # Some papers count the head, and all round the last nonzero digit.
    published = row["published"]
    zeros = len(f"{published:.0f}") - len(f"{published:.0f}".rstrip("0"))
    assert abs(count - published) <= max(0.04 * published, 10**zeros / 2)
