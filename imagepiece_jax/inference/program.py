"""A compiled model: its logits, its cost, and how it was made."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from imagepiece_jax.common.image_size import described
from imagepiece_jax.data.normalize import normalize, warn_of_range
from imagepiece_jax.errors import InputError

_normalized = jax.jit(normalize, static_argnames=("mean", "std"))


@dataclasses.dataclass(frozen=True, repr=False)
class Program:
    """A compiled model: `program(images)` gives logits.

    model, variables: what was compiled, folded and cast; compiled: JAX's executable,
    for (variables, images); images: shape and dtype that it takes; device: where it
    runs; options: of the compiler; gmacs: of one image; compile_seconds.
    """

    model: nn.Module
    variables: Mapping
    compiled: jax.stages.Compiled
    images: jax.ShapeDtypeStruct
    device: jax.Device
    options: Mapping
    gmacs: float
    compile_seconds: float

    @property
    def batch_size(self) -> int:
        return self.images.shape[0]

    @property
    def memory(self):
        """XLA's count in bytes, such as `memory.temp_size_in_bytes`."""
        return self.compiled.memory_analysis()

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Logits [b, num_classes] float32 of normalized images [b, H, W, 3].

        Any array of floats, on the host or on a device, or of uint8, which is
        normalized first; of uint8 alone, where the program was made for pixels. 1 <= b
        <= batch_size: fewer images are padded with zeros to a whole batch, at the cost
        of one. The images are left as they are. InputError for other shapes and types.
        """
        self._check(images)
        missing = self.batch_size - images.shape[0]
        if missing:
            pad = np.pad if isinstance(images, np.ndarray) else jnp.pad
            images = pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        images = jax.device_put(images, self.device)
        if self.images.dtype != jnp.uint8 and images.dtype == jnp.uint8:
            images = _normalized(images, self.model.mean, self.model.std)
        if images.dtype != self.images.dtype:
            images = images.astype(self.images.dtype)
        logits = self.compiled(self.variables, images)
        return logits[:-missing] if missing else logits

    def _check(self, images):
        takes, shape = self.images, getattr(images, "shape", None)
        if shape is None or len(shape) != 4 or shape[1:] != takes.shape[1:]:
            found = type(images).__name__ if shape is None else f"of shape {shape}"
            _, *rest = takes.shape
            raise InputError(
                f"images is {found}; allowed is an array of shape "
                f"[1 .. {self.batch_size}, {', '.join(map(str, rest))}]"
            )
        if not 1 <= shape[0] <= self.batch_size:
            raise InputError(
                f"images has {shape[0]} images; allowed are 1 to {self.batch_size}, "
                "the batch_size of optimize()"
            )
        if takes.dtype == jnp.uint8 and images.dtype != jnp.uint8:
            raise InputError(
                f"images is of type {images.dtype}; allowed is uint8, because the "
                "program was made with pixels=True"
            )
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if not floats and images.dtype != jnp.uint8:
            raise InputError(
                f"images is of type {images.dtype}; allowed are floats, normalized, or "
                "uint8"
            )
        if floats:
            warn_of_range(images, self.model.mean, self.model.std)

    def __repr__(self):
        return f"<Program: {self.describe()}>"

    def describe(self) -> str:
        """Model, cost and compilation in a few lines."""
        (batch, *size, _), kind = self.images.shape, self.images.dtype
        model, memory, mega = self.model, self.memory, 1e6
        options = [f"{name}={value}" for name, value in self.options.items()]
        if kind == jnp.uint8:
            kind = f"{kind} (less {model.mean}, over {model.std})"
        return (
            f"{batch} images of {described(size)}, {kind}, on {self.device}\n"
            f"{model.plan[0].attn_tokens} to {model.plan[-1].mlp_tokens} tokens, "
            f"{self.gmacs:.3f} GMACs an image\n"
            f"{model.dtype.name}, {model.arch.gelu} GELU, {model.backend} attention, "
            f"{'fused' if model.kernels else 'plain'} reductions, {model.stem} stem, "
            "folded\n"
            f"compiled in {self.compile_seconds:.1f} s; "
            f"{memory.argument_size_in_bytes / mega:.0f} MB of weights and images, "
            f"{memory.temp_size_in_bytes / mega:.0f} MB to work in\n"
            f"compiler options: {', '.join(options) or 'none'}"
        )
