"""Layers of a block: dense, norms, MLP."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.kernels.norm import layer_norm

NORMAL_INIT = nn.initializers.normal(0.02, jnp.float32)


def dense_layer(width: int, dtype: DTypeLike = jnp.float32, **options: Any) -> nn.Dense:
    """`nn.Dense` with the ViT initializer, N(0, 0.02^2)."""
    return nn.Dense(width, dtype=dtype, kernel_init=NORMAL_INIT, **options)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with float32 statistics."""

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        dim = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, dim, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, dim, jnp.float32)
        return layer_norm(x, scale, bias, self.dtype, self.eps)


class LayerScale(nn.Module):
    """Learned factor per channel (Touvron et al. 2021, CaiT)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        init = nn.initializers.constant(1e-5, jnp.float32)
        gamma = self.param("gamma", init, x.shape[-1:]).astype(x.dtype)
        return x * jnp.expand_dims(gamma, range(x.ndim - 1))


class Mlp(nn.Module):
    """Two linear layers around a GELU, or SwiGLU."""

    hidden_dim: int
    gelu: str = "exact"  # `Architecture.gelu`
    dtype: jnp.dtype = jnp.float32
    kind: str = "gelu"  # `Architecture.mlp`
    norm_eps: float | None = None  # epsilon of the hidden layer's norm; None: no norm

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens dim"]) -> Float[Array, "*tokens dim"]:
        dim = x.shape[-1]
        width_and_dtype = (self.hidden_dim, self.dtype)
        if self.kind == "swiglu":
            gate = nn.silu(dense_layer(*width_and_dtype, name="fc1_g")(x))
            x = gate * dense_layer(*width_and_dtype, name="fc1_x")(x)
        else:
            x = gelu(dense_layer(*width_and_dtype, name="fc1")(x), self.gelu)
        if self.norm_eps is not None:
            x = LayerNorm(self.dtype, self.norm_eps, name="norm")(x)
        return dense_layer(dim, self.dtype, name="fc2")(x)
