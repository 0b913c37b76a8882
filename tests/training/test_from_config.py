"""From a config to its models."""

import numpy as np

from configs import quickstart
from imagepiece_jax.training import from_config


def config(**fields):
    made = quickstart.get_config()
    made.update_from_flattened_dict(fields)
    return made


def test_models_of_a_config():
    made = config(**{"model.drop_path_rate": 0.2, "model.dtype": "bfloat16"})
    model = from_config.model(made, axis_name="devices")
    assert [layer.attn_tokens for layer in model.plan] == [65, 59, 54, 44, 40, 36]
    assert (model.stem, model.num_classes, model.embed_dim) == ("conv", 10, 64)
    assert (model.drop_path_rate, model.dtype) == (0.2, np.dtype("bfloat16"))
    assert model.axis_name == "devices"
    dense = from_config.dense(made)
    assert [layer.mlp_tokens for layer in dense.plan] == [65] * 6
    assert (dense.stem, from_config.dense(made, stem="patch").stem) == ("conv", "patch")
