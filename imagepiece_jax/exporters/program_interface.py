"""Inputs and outputs of an exported program: logits, features, or vectors."""

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


class ProgramInterface:
    """Input and outputs of the program of a `model`, in the order of `output_names`.

    channels_first: input [batch, 3, H, W]; else [batch, H, W, 3]
    output: "logits" (pooled vectors of a model without classes), "features" (the pooled
        vector, patches, prefix tokens, and a mask of dropped patches) or "patches"
        (only a feature per patch)
    """

    input_name = "images"
    channels_first = False

    def __init__(self, vit: Pretrained, output: str = "logits") -> None:
        check_choice("output", output, OUTPUT_CHOICES)
        self.model = vit.model
        self.has_features = output != "logits"
        self.output_names = ["logits" if self.model.config.num_classes else "pooled"]
        if output == "features":
            self.output_names = ["pooled", "patches", "prefix", "dropped"]
            if not self.model.config.arch.prefix:  # its array would have no elements
                self.output_names.remove("prefix")
        elif output == "patches":
            self.output_names = ["patches"]

    def input_spec(
        self, batch_size: int | None = None, takes_pixels: bool = False
    ) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the program's images.

        batch_size: images per call; None: any number
        takes_pixels: uint8 images, normalized by the program; else float32
        """
        batch: Any = batch_size
        if batch is None:
            (batch,) = jax.export.symbolic_shape("batch")
        sides = image_sides(self.model.config.image_size)
        shape = (batch, 3, *sides) if self.channels_first else (batch, *sides, 3)
        dtype = "uint8" if takes_pixels else "float32"
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    def make_forward_function(self, model: ViT) -> Callable:
        """Return a function (variables, images) -> tuple of arrays, one per name.

        model: the model in its exported form
        """
        if not self.has_features:
            run_model = optimize.make_logits_function(model)
            return lambda variables, images: (run_model(variables, images),)
        run_model = features.make_features_function(model)

        def compute_arrays(variables, images):
            outputs = run_model(variables, images)
            return tuple(getattr(outputs, name) for name in self.output_names)

        return compute_arrays


class TowerInterface(ProgramInterface):
    """The arrays of a visual tower, with the names its loading program expects.

    array_of_output: {name in the program: array}, of "embedding" (the vector, of length
        1), "image_embeds" (the vector), "pooler_output" (the pooled vector),
        "last_hidden_state" (all tokens, as in transformers: after the last norm, for
        CLIP before it) and "logits"
    """

    def __init__(
        self,
        vit: Pretrained,
        input_name: str,
        array_of_output: dict[str, str],
        takes_pixels: bool,
    ) -> None:
        self.model = vit.model
        self.input_name = input_name
        self.channels_first = not takes_pixels
        self.output_names = [*array_of_output]
        self.array_names = [*array_of_output.values()]

    def make_forward_function(self, model: ViT) -> Callable:
        """Like `ProgramInterface.make_forward_function`.

        Float images are [batch, 3, H, W], uint8 images [batch, H, W, 3].
        """
        has_tokens = "last_hidden_state" in self.array_names
        model = model.with_execution(head_only=not has_tokens)

        def compute_arrays(variables, images):
            if self.channels_first:
                images = images.transpose(0, 2, 3, 1)
            normalized_images = model.config.as_normalized(images)
            outputs = model.apply(variables, normalized_images)
            tokens = outputs.state.x
            if not model.config.arch.pre_norm:  # CLIP has pre_norm
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
            return tuple(arrays_by_name[name] for name in self.array_names)

        return compute_arrays
