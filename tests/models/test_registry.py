import pytest

from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models, tiny_vit
from tests.helpers.refused_calls import refused


@pytest.mark.parametrize(
    "name, stem, parameters",
    [
        ("deit_ti", "patch", 5_717_416),
        ("deit_s", "patch", 22_050_664),
        ("deit_b", "patch", 86_567_656),
        ("deit_ti", "conv", 5_825_920),
        ("deit_s", "conv", 22_776_856),
        ("deit_b", "conv", 90_056_776),
    ],
)
def test_parameter_counts_are_published(name, stem, parameters):
    shapes = tiny_vit.shapes(create_model(named_models.config(name, stem=stem)))
    assert tiny_vit.count(shapes["params"]) == parameters


def test_an_unknown_model_is_answered_by_the_list():
    with refused("resnet50", "vit_mini"):
        create_model("resnet50")
    with refused("did you mean 'vit_small_patch16_224'?"):
        create_model("vit_smal_patch16_224.dino")


@pytest.mark.parametrize(
    "tag, outputs, problem_type",
    [
        ("openai", 512, "projection"),
        ("openai_ft_in1k", 1000, "single_label_classification"),
        ("laion2b_ft_in12k", 11821, "single_label_classification"),
    ],
)
def test_image_text_models_project_until_trained_on_classes(tag, outputs, problem_type):
    config = registry.model_config(f"vit_base_patch16_clip_224.{tag}")
    assert (config.num_classes, config.problem_type) == (outputs, problem_type)
