import functools

import jax
import pytest
import timm

from imagepiece_jax.inference.features import features
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from tests.helpers import named_models
from tests.helpers.parity_record import distance, noise, run_torch
from tests.parity.test_families import ACTIVATIONS
from tools import originals

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = (
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "deit3_small_patch16_224.fb_in1k",
    "vit_base_patch32_clip_224.openai",
    "vit_base_patch16_siglip_224.webli",
)
SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
LAYERS = [0, 2]


@pytest.mark.parametrize("name", NAMES)
def test_layers_equal_timms(name):
    config = registry.model_config(name)
    size = (3 * config.patch_size, 6 * config.patch_size)
    act = ACTIVATIONS[config.arch.gelu]
    theirs = timm.create_model(name, img_size=size, act_layer=act, **SMALL).eval()
    originals.randomize(theirs)
    ours = create_model(named_models.config(name, image_size=size, **SMALL))
    tensors = originals.memory(theirs)
    variables = timm_tensors.from_timm(tensors, variable_shapes(ours))
    images = noise(2, *size, 3)
    tokens = run_torch(theirs.forward_features, images)
    head = functools.partial(theirs.forward_head, pre_logits=True)
    pooled = run_torch(lambda x: head(theirs.forward_features(x)), images)
    read = functools.partial(theirs.get_intermediate_layers, n=LAYERS, reshape=True)
    for norm in (True, False):
        layers = functools.partial(read, return_prefix_tokens=True, norm=norm)
        expected = run_torch(layers, images)
        with jax.default_matmul_precision("highest"):
            vit = Pretrained(ours, variables)
            maps = features(vit, images, layers=LAYERS, norm=norm)
        prefix = theirs.num_prefix_tokens
        for layer, timm_layer in zip(maps.layers, expected, strict=True):
            patches, front = timm_layer if prefix else (timm_layer, tokens[:, :0])
            assert_close(layer.patches, patches.permute(0, 2, 3, 1))
            assert_close(layer.prefix, front)
        assert_close(maps.patches.reshape(2, 18, -1), tokens[:, prefix:])
        assert_close(maps.pooled, pooled)


def assert_close(ours, theirs):
    assert not theirs.numel() or distance(ours, theirs) < 1e-4
    assert ours.shape == theirs.shape
