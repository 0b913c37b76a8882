"""Fields of the model that a state dict belongs to, from the shapes of its tensors."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models.registry import MODELS

HEAD_WIDTH = 64  # of DeiT's and ViT's sizes up to Large; it is in no shape


def infer_config(
    state_dict: Mapping[str, np.ndarray], num_heads: int | None = None
) -> dict[str, Any]:
    """Fields with which `registry.create_model` makes the model of a timm state dict.

    name, image_size, num_classes, stem, class_token, patch_size, embed_dim, depth,
    num_heads, mlp_ratio. The number of heads is in no shape: None takes heads of 64
    channels, which all known models of this size have. InputError
    where these are no tensors of a vision transformer of this kind.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}

    def shape(name, rank):
        found = shapes.get(name)
        if found is None or len(found) != rank:
            raise InputError(
                f"tensor {name} is {'missing' if found is None else f'of {found}'}; "
                f"a DeiT or ViT has it with {rank} axes"
            )
        return found

    if "dist_token" in shapes:
        raise InputError(
            "tensor dist_token is a distillation token, which no model here has; "
            "allowed are weights that were trained without one"
        )
    _, tokens, width = shape("pos_embed", 3)
    hidden, _ = shape("blocks.0.mlp.fc1.weight", 2)
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    class_token = "cls_token" in shapes
    stem, patch_size = _stem(shapes, shape)
    side = math.isqrt(tokens - class_token)
    if side * side != tokens - class_token:
        raise InputError(
            f"tensor pos_embed has {tokens} rows; allowed are a square number and one "
            "for the class token where there is one"
        )
    if num_heads is None and width % HEAD_WIDTH:
        raise InputError(
            f"the tokens are {width} wide, not a multiple of {HEAD_WIDTH}, so the "
            "number of heads is unknown; name it: num_heads=.., in commands "
            "--config.model.num_heads=.."
        )
    size = {
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": num_heads or width // HEAD_WIDTH,
    }
    return {
        "name": next((name for name, of in MODELS.items() if of == size), "deit_s"),
        "image_size": side * patch_size,
        "num_classes": shape("head.weight", 2)[0],
        "stem": stem,
        "class_token": class_token,
        "mlp_ratio": hidden / width,
        **size,
    }


def _stem(shapes, shape):
    """(name, patch size): each convolution of the conv stem halves the sides."""
    convolutions = sum(
        name.startswith("patch_embed.conv.") and len(found) == 4
        for name, found in shapes.items()
    )
    if convolutions:
        return "conv", 2**convolutions
    return "patch", shape("patch_embed.proj.weight", 4)[2]
