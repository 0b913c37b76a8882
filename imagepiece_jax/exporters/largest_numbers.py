"""The largest numbers of a model's parts, and the parts that float16 cannot hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.inference.size_direction import sample_photographs
from imagepiece_jax.models.attention import Attention
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

LARGEST_FLOAT32 = np.finfo(np.float32).max
# Half of float16's range: other images may have larger numbers.
FLOAT16_LIMIT = float(np.finfo(np.float16).max) / 2
MAX_SAMPLED_IMAGES = 8  # images at most, of given ones
ALWAYS_FLOAT32_PARTS = ("head", "reducer")  # these parts are float32 in any dtype
# WebGPU sums float16 products in float16. The stem has 2 % of DeiT-Ti's multiply-adds,
# but over half of the squared error, so it stays float32 (docs/export.md).
STEM_PART = "patch_embed"
EMBEDDING_METHODS = ("_embed_images", "_prefix_tokens", "_add_positions")  # of ViT


def find_largest_numbers(
    pretrained: Pretrained, images: np.ndarray | None = None
) -> dict:
    """Find the largest weight, input or result of every part, in float32.

    The parts are in the order of computation, named as in `Execution.float32_parts`.

    images: uint8 [B, H, W, 3], of which a few are used besides this package's own
    Raises InputError if the model's outputs are not finite.
    """
    model = pretrained.with_default_execution().model
    model, variables = optimize.fold_and_cast(model, pretrained.variables)
    part_names = []

    @jax.jit
    def compute_maxima(variables, images):
        maxima = find_part_maxima(model, variables, images)
        part_names[:] = maxima  # in order: jit would sort a dict by its keys
        return [*maxima.values()]

    part_maxima = {}
    pixel_batches = [sample_photographs(pretrained.image_size)]
    if images is not None:
        pixel_batches.append(images[:: math.ceil(len(images) / MAX_SAMPLED_IMAGES)])
    with announced_work("finding the largest numbers"):
        for pixels in pixel_batches:
            normalized_images = normalize(pixels, model.config.mean, model.config.std)
            batch_maxima = jax.device_get(compute_maxima(variables, normalized_images))
            for part, maximum in zip(part_names, batch_maxima, strict=True):
                part_maxima[part] = max(part_maxima.get(part, 0.0), float(maximum))
    if not math.isfinite(part_maxima.pop("outputs")):
        # Of equal numbers, `max` finds the first: the first infinite part.
        first_part = max(part_maxima, key=lambda part: part_maxima[part])
        raise InputError(f"the model's outputs are not finite, from {first_part} on")
    return part_maxima


def find_part_maxima(
    model: ViT, variables: dict, images: Float[Array, "batch height width channels"]
) -> dict[str, Float[Array, ""]]:
    """Find the largest absolute number of every part and of "outputs"; NaN as infinity.

    A part's numbers are its weights, its layers' inputs and their results.
    """
    maxima_of_part = {}
    # A layer's result is the next one's input. The arrays stay here, because a new
    # array could have the id of one that is gone.
    noted_arrays = {}

    def note_numbers(part, arrays):
        for array in jax.tree.leaves(arrays):
            is_float32 = isinstance(array, jax.Array) and array.dtype == jnp.float32
            if is_float32 and (part, id(array)) not in noted_arrays:
                noted_arrays[part, id(array)] = array
                # XLA's maximum may lose NaN on CPUs.
                magnitudes = jnp.abs(array)
                is_finite = magnitudes <= LARGEST_FLOAT32
                magnitudes = jnp.where(is_finite, magnitudes, jnp.inf)
                maxima_of_part.setdefault(part, []).append(jnp.max(magnitudes))

    def call_and_note(call, args, kwargs, context):
        result = call(*args, **kwargs)
        module_path = context.module.path  # ("blocks_0", "attn", ..), or () for the ViT
        if module_path:
            note_numbers(module_path[0], (args, result))
        elif context.method_name in EMBEDDING_METHODS:
            note_numbers(STEM_PART, result)
        if context.method_name == Attention.project_heads.__name__:
            # No layer returns the logits of attention: lengths bound them. query, key:
            # [batch, tokens, heads, head_dim]
            query_lengths = jnp.linalg.norm(result.query, axis=-1)
            key_lengths = jnp.linalg.norm(result.key, axis=-1)
            logit_bound = jnp.max(query_lengths) * jnp.max(key_lengths)
            note_numbers(module_path[0], logit_bound * result.query.shape[-1] ** -0.5)
        return result

    with nn.intercept_methods(call_and_note):
        outputs = model.apply(variables, images)
    for part, weights in variables["params"].items():  # an array: the ViT's own
        note_numbers(part if isinstance(weights, dict) else STEM_PART, weights)
    note_numbers("outputs", (outputs.logits, outputs.tokens))
    return {part: jnp.max(jnp.stack(maxima)) for part, maxima in maxima_of_part.items()}


def with_float32_parts(model: ViT, part_maxima: dict[str, float]) -> ViT:
    """Set a float16 model's parts that stay float32: the stem, and large numbers.

    part_maxima: from `find_largest_numbers`
    Raises InputError if no block is left for float16.
    """
    fixed_prefixes = (STEM_PART, *ALWAYS_FLOAT32_PARTS)  # whatever their numbers
    parts = [part for part in part_maxima if not part.startswith(fixed_prefixes)]
    large_parts = [part for part in parts if part_maxima[part] > FLOAT16_LIMIT]
    if sum(part.startswith("blocks_") for part in large_parts) == model.depth:
        example = f"{part_maxima[large_parts[0]]:.3g} in {large_parts[0]}"
        # The message has float16's own limit, twice FLOAT16_LIMIT.
        raise InputError(f"float16 ends at 65504, near {example}: export float32")
    return model.with_execution(float32_parts=(STEM_PART, *large_parts))
