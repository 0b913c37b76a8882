"""Names of models: published parameters, and names that there are not."""

import pytest

from imagepiece_jax.models import registry
from imagepiece_jax.models.spec import create_model
from tests.models import tiny
from tests.refused import refused


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
def test_parameters_are_as_many_as_published(name, stem, parameters):
    shapes = tiny.shapes(create_model(name, stem=stem), 224)
    assert tiny.count(shapes["params"]) == parameters


SIZES = "deit_ti, deit_s, deit_b, vit_mini"


@pytest.mark.parametrize(
    "name, hint",
    [
        (
            "resnet50",
            f"name is 'resnet50'; the models are {SIZES} and timm's plain ViTs",
        ),
        ("swin_tiny_patch4_window7_224", f"the models are {SIZES}"),
        ("vit_smal_patch16_224", "did you mean vit_small_patch16_224?"),
        ("deit_s_patch16", "did you mean deit_small_patch16_224?"),
        ("dinov2_small", "did you mean vit_small_patch14_dinov2?"),
        ("vit_small_patch16_224.augreg", "vit_small_patch16_224.augreg_in1k?"),
        ("vit_dwee_patch16_reg1_gap_256", "timm makes it with DiffAttention"),
        ("vit_base_patch16_rpn_224", "with ResPostBlock, which no model here has"),
        ("eva02_enormous_patch14_clip_224.laion2b_plus", "with EvaBlockPostNorm"),
        ("vit_base_patch16_rope_mixed_224", "with RotaryEmbeddingMixed"),
        ("vit_base_r50_s16_384.orig_in21k_ft_in1k", "timm makes it with HybridEmbed"),
        ("vit_relpos_base_patch16_224", "timm makes it with VisionTransformerRelPos"),
        ("beit_base_patch16_224", f"the models are {SIZES}"),
        ("davit_tiny", f"the models are {SIZES}"),
        ("naflexvit_base_patch16_gap", f"the models are {SIZES}"),
    ],
)
def test_an_unknown_model_is_named_with_the_most_similar(name, hint):
    with refused("name", name, hint):
        create_model(name)


@pytest.mark.parametrize(
    "name, include", [("vit_so150m_patch16_reg4_map_256", False), ("test_vit3", True)]
)
def test_whether_a_pool_reads_registers_is_a_fact_of_the_model(name, include):
    arch = registry.fields_of(name)["arch"]
    assert (arch.pool, arch.pool_include_prefix) == ("map", include)


def test_perception_encoders_pool_has_heads_of_its_own():
    for size, heads in (("tiny_patch16_384", 3), ("gigantic_patch14_448", 16)):
        fields = registry.fields_of(f"vit_pe_core_{size}.fb")
        assert fields["num_heads"] == heads
        assert (fields["arch"].pool, fields["arch"].pool_heads) == ("map", 8)
