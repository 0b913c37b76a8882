"""The projector from a vision tower to its language model, and how that reads it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from imagepiece_jax.common import device_copies
from imagepiece_jax.models.layers import gelu


@dataclasses.dataclass(frozen=True)
class TowerReading:
    """How a language model reads its vision tower."""

    depth: int | None = None  # blocks that are run, without a norm; None: all there are
    blocks: int | None = None  # that the tower has
    gelu: str = "exact"  # between layers of the projector
    prefix: bool = False  # whether the projector reads the class token, too
    layers: int | None = None  # of the projector; None: those in the file
    bias: bool | None = None  # whether the projector has biases; None: as in the file


@struct.dataclass(eq=False)
class Projector:
    """Linear layers of single tokens, with a GELU between them; `jax.jit` takes it.

    tokens = vit.projector(features(vit, images).patches)
    """

    # (kernel [in, out], bias [out] or None) of each
    layers: tuple[tuple[jax.Array, jax.Array | None], ...]
    # between them, in architecture.GELUS
    gelu: str = struct.field(pytree_node=False, default="exact")
    # whether the language model reads the tokens in front of the patches, too
    prefix: bool = struct.field(pytree_node=False, default=False)

    @property
    def width(self) -> int:
        """Width of its input tokens."""
        return self.layers[0][0].shape[0]

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights [out, in] and biases by name, as PyTorch has them."""
        named = {}
        for index, (kernel, bias) in enumerate(self.layers):
            weight = np.ascontiguousarray(np.asarray(kernel).T)
            named[f"projector.{index}.weight"] = weight
            if bias is not None:
                named[f"projector.{index}.bias"] = np.asarray(bias)
        return named

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens as the language model takes them. [.., D] -> [.., width there]."""
        if not isinstance(x, jax.core.Tracer):
            x = jax.device_put(x)
        layers = self._copies.of(self.layers, device_copies.sharding_beside(x))
        return _projected(layers, x, self.gelu)

    @functools.cached_property
    def _copies(self):
        return device_copies.DeviceCopies()


@functools.partial(jax.jit, static_argnames="form")
def _projected(layers, x, form):
    """Tokens behind the layers of a Projector; form: of GELU."""
    for index, (kernel, bias) in enumerate(layers):
        if index > 0:
            x = gelu(x, form)
        x = jnp.dot(x, kernel)
        if bias is not None:
            x = x + jnp.broadcast_to(bias, x.shape)
    return x
