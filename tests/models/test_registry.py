"""Names of models: published parameters, and names that there are not."""

import pytest

from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from tests.models import make, tiny
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
    shapes = tiny.shapes(create_model(make.config(name, stem=stem)))
    assert tiny.count(shapes["params"]) == parameters


def test_an_unknown_model_is_answered_with_the_list():
    said = "the models are deit_ti, deit_s, deit_b, vit_mini and timm's plain ViTs"
    with refused("'resnet50' is not a model name", said):
        create_model("resnet50")
    with refused("did you mean 'vit_small_patch16_224'?"):
        create_model("vit_smal_patch16_224.dino")


@pytest.mark.parametrize(
    "name, include", [("vit_so150m_patch16_reg4_map_256", False), ("test_vit3", True)]
)
def test_whether_a_pool_reads_registers_is_a_fact_of_the_model(name, include):
    arch = registry.config(name).arch
    assert (arch.pool, arch.pool_include_prefix) == ("map", include)


def test_perception_encoders_pool_has_heads_of_its_own():
    for size, heads in (("tiny_patch16_384", 3), ("gigantic_patch14_448", 16)):
        found = registry.config(f"vit_pe_core_{size}.fb")
        assert found.num_heads == heads
        assert (found.arch.pool, found.arch.pool_heads) == ("map", 8)
