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
    "name, includes_prefix, heads",
    [
        ("vit_so150m_patch16_reg4_map_256", False, 0),
        ("test_vit3", True, 0),
        ("vit_pe_core_tiny_patch16_384.fb", True, 8),
        ("vit_pe_core_gigantic_patch14_448.fb", False, 8),
    ],
)
def test_tokens_and_heads_of_attention_pools(name, includes_prefix, heads):
    arch = registry.model_config(name).arch
    assert arch.pool == "map"
    assert (arch.pool_include_prefix, arch.pool_heads) == (includes_prefix, heads)


def test_image_text_models_have_projections_until_trained_on_classes():
    """timm's tags. Fine-tuned weights have classes, such as ImageNet's 1,000."""
    heads = {}
    for name in ("openai", "openai_ft_in1k", "laion2b", "laion2b_ft_in12k"):
        config = registry.model_config(f"vit_base_patch16_clip_224.{name}")
        heads[name] = (config.num_classes, config.problem_type)
    single = "single_label_classification"
    assert heads == {
        "openai": (512, "projection"),
        "openai_ft_in1k": (1000, single),
        "laion2b": (512, "projection"),
        "laion2b_ft_in12k": (11821, single),
    }
