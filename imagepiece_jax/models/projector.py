"""What leads from a vision tower to the language model that reads its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from imagepiece_jax.models.layers import gelu


@struct.dataclass(eq=False)
class Projector:
    """Linear layers, with a GELU between them, of each token alone.

        tokens = vit.projector(features(vit, images).patches)

    It is a tree of arrays, for `jax.jit` to take, and a function that it compiles.

    layers: (kernel [in, out], bias [out] or None) of each
    gelu: between them, one of architecture.GELUS
    prefix: whether the language model reads the tokens in front of the patches, too
    """

    layers: tuple[tuple[jax.Array, jax.Array | None], ...]
    gelu: str = struct.field(pytree_node=False, default="exact")
    prefix: bool = struct.field(pytree_node=False, default=False)

    @property
    def width(self) -> int:
        """Width of its input tokens."""
        return self.layers[0][0].shape[0]

    def tensors(self) -> dict[str, np.ndarray]:
        """By name, weights [out, in], as PyTorch has them."""
        named = {}
        for index, (kernel, bias) in enumerate(self.layers):
            named[f"projector.{index}.weight"] = np.array(
                np.asarray(kernel).T, order="C"
            )
            if bias is not None:
                named[f"projector.{index}.bias"] = np.asarray(bias)
        return named

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens as the language model takes them. [.., D] -> [.., width there]."""
        for index, (kernel, bias) in enumerate(self.layers):
            x = gelu(x, self.gelu) if index else x
            x = jnp.dot(x, kernel)
            if bias is not None:
                x = x + jnp.broadcast_to(bias, x.shape)
        return x
