"""The largest numbers of a model's parts, and the parts that float16 cannot hold."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.progress import announced_work, log
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import optimize
from imagepiece_jax.inference.size_direction import sample_photographs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT

FINITE = np.finfo(np.float32).max
# Half of float16's range: other images may have larger numbers.
LIMIT = float(np.finfo(np.float16).max) / 2
FEW = 8  # images at most, of given ones
FLOAT32 = ("head", "reducer")  # these parts are float32 in any dtype
# WebGPU sums float16 products in float16. The stem has 2 % of DeiT-Ti's multiply-adds,
# but over half of the squared error, so it stays float32 (docs/export.md).
STEM = "patch_embed"
EMBEDDING = ("_embed", "_prefix", "_with_positions")  # methods of ViT


def find(vit: Pretrained, images: np.ndarray | None = None) -> dict[str, float]:
    """Find the largest weight, input or result of every part, in float32.

    The parts are in the order of computation, named as in `Execution.float32_parts`.

    images: uint8 [B, H, W, 3], of which a few are used besides this package's own
    Raises InputError if the model's outputs are not finite.
    """
    names = []

    def numbers_of(variables, images):
        numbers = {}
        noted = {}  # a layer's result is the next one's input

        def note(part, arrays):
            for array in jax.tree.leaves(arrays):
                is_number = isinstance(array, jax.Array) and array.dtype == jnp.float32
                if is_number and (part, id(array)) not in noted:
                    noted[part, id(array)] = array
                    # XLA's maximum may lose NaN on CPUs.
                    number = jnp.abs(array)
                    number = jnp.max(jnp.where(number <= FINITE, number, jnp.inf))
                    numbers.setdefault(part, []).append(number)

        def noting(call, args, kwargs, context):
            result = call(*args, **kwargs)
            path = context.module.path
            if path:
                note(path[0], (args, result))
            elif context.method_name in EMBEDDING:
                note(STEM, result)
            if context.method_name == "project":
                # No layer returns the logits of attention: lengths bound them.
                lengths = [jnp.linalg.norm(rows, axis=-1) for rows in result[:2]]
                bound = jnp.max(lengths[0]) * jnp.max(lengths[1])
                note(path[0], bound * result.query.shape[-1] ** -0.5)
            return result

        with nn.intercept_methods(noting):
            outputs = model.apply(variables, images)
        for name, weights in variables["params"].items():
            note(name if isinstance(weights, dict) else STEM, weights)
        note("outputs", (outputs.logits, outputs.tokens))
        names[:] = numbers
        return [jnp.max(jnp.stack(each)) for each in numbers.values()]

    model = vit.with_default_execution().model
    model, variables = optimize.fold_and_cast(model, vit.variables, dtype="float32")
    run = jax.jit(numbers_of)
    largest = {}
    batches = [sample_photographs(vit.image_size)]
    if images is not None:
        batches.append(images[:: math.ceil(len(images) / FEW)])
    with announced_work("finding the largest numbers"):
        for pixels in batches:
            batch = normalize(pixels, vit.config.mean, vit.config.std)
            # Explicit copies, which a user's transfer guard allows.
            numbers = jax.device_get(run(*jax.device_put((variables, batch))))
            for name, number in zip(names, numbers, strict=True):
                largest[name] = max(largest.get(name, 0.0), float(number))
    if not math.isfinite(largest.pop("outputs")):
        first = max(largest, key=largest.get)
        raise InputError(f"the model's outputs are not finite, from {first} on")
    return largest


def in_float16(model: ViT, largest: dict[str, float]) -> ViT:
    """Set a float16 model's parts that stay float32: the stem, and large numbers.

    largest: from `find`
    Raises InputError if no block is left for float16.
    """
    large = []
    for part, number in largest.items():
        if number > LIMIT and not part.startswith((STEM, *FLOAT32)):
            large.append(part)
    if sum(part.startswith("blocks_") for part in large) == model.depth:
        raise InputError(
            f"dtype is 'float16', whose numbers end at 65504, but {large[0]} has "
            f"{largest[large[0]]:.3g}, and no block is far below; export float32"
        )
    if large:
        log.info(f"float32 in the float16 file, for large numbers: {', '.join(large)}")
    return model.with_execution(float32_parts=(STEM, *large))
