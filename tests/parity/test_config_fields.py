"""Every field of transformers' and timm's configs: read, idle, or refused.

A new field of an installed library fails the walk, so that somebody looks at it.
"""

import dataclasses
import inspect

import pytest
import transformers
from timm.models import eva, vision_transformer
from timm.models._pretrained import PretrainedCfg

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.weights import timm_config
from imagepiece_jax.weights.description import parse_config
from imagepiece_jax.weights.transformers_config import (
    MODEL_TYPES,
    UNQUANTIZED_FIELDS,
    VISION_TYPES,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # from transformers' saving

# Fields of every configuration class: the head, and the meaning of its logits.
READ = {"architectures", "model_type", "id2label", "problem_type", *UNQUANTIZED_FIELDS}
# {field that changes no output in evaluation: a value other than the default}, in all
# models of test_hub_folders.
IDLE = {
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3,
    "attention_dropout": 0.3,
    "drop_path_rate": 0.3,
    # training: positions, masks and starting values
    "pos_embed_shift": 0.3,
    "pos_embed_jitter": 1.5,
    "pos_embed_rescale": 1.5,
    "use_mask_token": False,
    "initializer_range": 0.3,
    "initializer_factor": 2.0,
    "layerscale_value": 0.3,
    # a decoder of masked images, a pooler with tanh, a backbone's feature maps
    "encoder_stride": 8,
    "pooler_act": "relu",
    "pooler_output_size": 8,
    "apply_layernorm": False,
    "reshape_hidden_states": False,
    # the text tower, which is not read
    "logit_scale_init_value": 1.0,
    # the way of computing
    "chunk_size_feed_forward": 3,
    "output_hidden_states": True,
}
# Other fields that change no output, without test values: names, tensors' shapes, and
# forms of outputs.
ALSO_IDLE = {"projection_dim", "label2id", "_name_or_path", "transformers_version"}
ALSO_IDLE |= {"dtype", "return_dict", "output_attentions", "is_encoder_decoder"}
ALSO_IDLE |= {"stage_names", "out_features", "out_indices", "text_config"}
ALSO_IDLE |= {"tie_word_embeddings"}


@pytest.mark.parametrize("kind", [*MODEL_TYPES, *VISION_TYPES])
def test_every_field_of_transformers_is_known(kind):
    theirs = {*transformers.AutoConfig.for_model(kind).to_dict()}
    model = MODEL_TYPES.get(kind)
    known = READ | {*IDLE} | ALSO_IDLE
    if model is None:
        known |= {"vision_config"}
    else:
        known |= {*model.defaults, *model.fixed_fields}
    if kind == "siglip_vision_model":
        known |= {"vision_use_head"}
    assert theirs <= known, theirs - known


# Arguments of timm's classes that no file may change.
FIXED = {"embed_layer", "block_fn", "mlp_layer", "attn_layer", "qk_norm", "proj_bias"}
FIXED |= {"dynamic_img_pad", "pos_embed", "embed_norm_layer", "num_kv_heads"}
FIXED |= {"swiglu_mlp", "attn_only_layer_scale", "use_abs_pos_emb", "use_rot_pos_emb"}
FIXED |= {"use_post_norm", "ref_feat_shape", "rope_type", "rope_grid_offset"}
FIXED |= {"rope_grid_indexing", "rope_temperature", "rope_rotate_half"}
FIXED |= {"rope_mrope_section"}
LAYERS = {"act_layer", "norm_layer"}
TIMM_NAMES = {
    "VisionTransformer": "vit_tiny_patch16_224",
    "Eva": "eva02_tiny_patch14_224",
}


@pytest.mark.parametrize("kind", [vision_transformer.VisionTransformer, eva.Eva])
def test_every_argument_of_timm_is_known(kind):
    parameters = inspect.signature(kind).parameters
    theirs = {*parameters}
    known = {
        *timm_config.PART_ARGUMENTS,
        *timm_config.SIZE_ARGUMENTS,
        *timm_config.IDLE_ARGUMENTS,
    } | LAYERS
    assert theirs <= known | FIXED, theirs - known
    assert not known & FIXED
    name = TIMM_NAMES[kind.__name__]
    for field in sorted(theirs & FIXED):
        with pytest.raises(InputError, match=f"model_args.{field}"):
            parse_config(timm_file(name, **{field: "x"}), {})
    # The other class's arguments are refused, too.
    for field in sorted({*timm_config.PART_ARGUMENTS} - theirs):
        with pytest.raises(InputError, match=f"model_args.{field}"):
            parse_config(timm_file(name, **{field: 1}), {})


def timm_file(name, **arguments):
    size = registry.model_config(name).image_size
    images = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": name, "num_classes": 5, "model_args": arguments}
    return config | {"pretrained_cfg": images}


READ_CFG = {"architecture", "tag", "input_size", "fixed_input_size", "interpolation"}
READ_CFG |= {"crop_pct", "crop_mode", "mean", "std", "num_classes", "label_names"}
READ_CFG |= {"label_descriptions", "label_offset"}
# The weights' place and description; timm's changes of a first convolution or a head;
# sizes of timm's own validation (use_test_size).
IDLE_CFG = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"}
IDLE_CFG |= {"custom_load", "pool_size", "test_pool_size", "first_conv", "classifier"}
IDLE_CFG |= {"license", "description", "origin_url", "paper_name", "paper_ids", "notes"}
IDLE_CFG |= {"test_input_size", "min_input_size", "test_crop_pct"}


def test_every_field_of_pretrained_cfg_is_known():
    theirs = {field.name for field in dataclasses.fields(PretrainedCfg)}
    assert theirs == READ_CFG | IDLE_CFG
