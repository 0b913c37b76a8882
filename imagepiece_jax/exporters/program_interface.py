"""Inputs and outputs of an exported program: logits, features, or vectors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.inference import features, optimize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT, final_norm

OUTPUT_CHOICES = ("logits", "features", "patches")


@dataclasses.dataclass(eq=False)
class ProgramInterface:
    """The input and the outputs of the program of a Pretrained's model.

    output: "logits" (pooled vectors of a model without classes), "features" (the pooled
        vector, patches, prefix tokens, and a mask of dropped patches) or "patches"
        (only a feature per patch)
    batch_size: images per call; None: any number
    takes_pixels: uint8 images, normalized by the program; else float32
    channels_first: images are [batch, 3, H, W]; else [batch, H, W, 3]
    """

    pretrained: Pretrained
    output: str = "logits"
    batch_size: int | None = None
    takes_pixels: bool = False
    input_name: str = "images"
    channels_first: bool = False

    def __post_init__(self) -> None:
        check_choice("output", self.output, OUTPUT_CHOICES)

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        if self.output == "logits":
            return ["logits" if self.pretrained.config.num_classes else "pooled"]
        if self.output == "patches":
            return ["patches"]
        names = ["pooled", "patches", "prefix", "dropped"]
        if not self.pretrained.config.arch.prefix:  # its array would have no elements
            names.remove("prefix")
        return names

    @property
    def input_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the program's images."""
        batch_size: Any = self.batch_size
        if batch_size is None:
            (batch_size,) = jax.export.symbolic_shape("batch")  # an open side
        sides = image_sides(self.pretrained.image_size)
        shape = (batch_size, *sides, 3)
        if self.channels_first:
            shape = (batch_size, 3, *sides)
        dtype = "uint8" if self.takes_pixels else "float32"
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def make_forward_function(self, model: ViT) -> Callable:
        """Return a function (variables, images) -> tuple of arrays, one per output.

        model: the model, prepared for the format
        """
        if self.output == "logits":
            compute_logits = optimize.make_logits_function(model)
            return lambda variables, images: (compute_logits(variables, images),)
        compute_features = features.make_features_function(model)

        def compute_arrays(variables, images):
            all_features = compute_features(variables, images)
            return tuple(getattr(all_features, name) for name in self.output_names)

        return compute_arrays


@dataclasses.dataclass(eq=False)
class TowerInterface(ProgramInterface):
    """The arrays of a visual tower, with the names its loading program expects.

    tower_outputs: of "embedding" (the vector, of length 1), "image_embeds" (the
        vector), "pooler_output" (the pooled vector), "last_hidden_state" (all tokens,
        as in transformers: after the last norm, for CLIP before it) and "logits"
    """

    tower_outputs: list[str] = dataclasses.field(kw_only=True)

    @property
    def output_names(self) -> list[str]:
        return self.tower_outputs

    def make_forward_function(self, model: ViT) -> Callable:
        has_tokens = "last_hidden_state" in self.tower_outputs
        # head_only computes only the tokens that the head reads.
        model = model.with_execution(head_only=not has_tokens)

        def compute_arrays(variables, images):
            if self.channels_first:
                images = images.transpose(0, 2, 3, 1)  # [batch, H, W, 3]
            normalized_images = model.config.as_normalized(images)
            outputs = model.apply(variables, normalized_images)
            tokens = outputs.state.x  # [batch, tokens, D]
            if not model.config.arch.pre_norm:  # CLIP's tokens stay without the norm
                tokens = final_norm(model, variables)(tokens)
            vector = outputs.logits  # without a head, the pooled vector
            vector_length = jnp.sqrt(jnp.sum(vector**2, axis=-1, keepdims=True))
            arrays_by_name = {
                "embedding": vector / vector_length,
                "image_embeds": vector,
                "logits": vector,
                "pooler_output": outputs.pooled,
                "last_hidden_state": tokens,
            }
            return tuple(arrays_by_name[name] for name in self.tower_outputs)

        return compute_arrays
