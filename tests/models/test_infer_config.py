"""Model fields inferred from the tensors alone."""

import jax
import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import convert, registry, summary
from imagepiece_jax.models.infer_config import infer_config

SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2}  # 64 wide, as all heads are


def tensors(model, image_size):
    """A state dict of zeros: only names and shapes are read."""
    shapes = summary.shapes(model, image_size)
    return convert.to_timm(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))


@pytest.mark.parametrize(
    "name, image_size, options",
    [
        ("deit_ti", 32, {"num_classes": 10}),
        ("deit_s", 64, SMALL | {"class_token": False}),
        ("deit_s", 48, SMALL | {"patch_size": 8, "stem": "conv"}),
        ("deit_s", 40, SMALL | {"patch_size": 10, "mlp_ratio": 3.0}),
    ],
)
def test_the_same_model_is_made_again(name, image_size, options):
    model = registry.create_model(name, image_size=image_size, **options)
    fields = infer_config(tensors(model, image_size))
    assert registry.create_model(**fields) == model
    assert fields["image_size"] == image_size
    if name == "deit_ti":
        assert fields["name"] == name


def test_a_distillation_token_is_named():
    found = {"dist_token": np.zeros((1, 1, 192)), "pos_embed": np.zeros((1, 198, 192))}
    with pytest.raises(InputError, match="dist_token is a distillation token, which"):
        infer_config(found)
