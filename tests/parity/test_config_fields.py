"""Every field of transformers' configs: read, idle, or refused.

A new field of an installed library fails the walk, so that somebody looks at it.
"""

import pytest
import transformers

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
