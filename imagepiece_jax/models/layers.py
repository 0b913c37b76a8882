"""Layers that blocks are made of: norm, LayerScale and MLP."""

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.models import custom_vjp

INIT = nn.initializers.normal(0.02)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with float32 statistics. [..., D] -> [..., D]."""

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, dim)
        bias = self.param("bias", nn.initializers.zeros, dim)
        return custom_vjp.layer_norm(x, scale, bias, self.dtype, self.eps)


class LayerScale(nn.Module):
    """A factor a channel (Touvron et al. 2021, CaiT). [..., D] -> [..., D]."""

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:])
        return x * jnp.expand_dims(gamma.astype(x.dtype), range(x.ndim - 1))


class Mlp(nn.Module):
    """Two layers with GELU, or the product of a gate and a layer: [M, D] -> [M, D].

    `kind` and `gelu` are those of `architecture.Architecture`; `norm_eps`: of a norm of
    the hidden layer, None where there is none.
    """

    hidden_dim: int
    gelu: str = "exact"
    dtype: jnp.dtype = jnp.float32
    kind: str = "gelu"
    norm_eps: float | None = None

    @nn.compact
    def __call__(self, x):
        def dense(name, width):
            return nn.Dense(width, kernel_init=INIT, dtype=self.dtype, name=name)

        dim, hidden = x.shape[-1], self.hidden_dim
        if self.kind == "swiglu":
            x = nn.silu(dense("fc1_g", hidden)(x)) * dense("fc1_x", hidden)(x)
        else:
            x = custom_vjp.gelu(dense("fc1", hidden)(x), self.gelu)
        if self.norm_eps is not None:
            x = LayerNorm(self.dtype, self.norm_eps, name="norm")(x)
        return dense("fc2", dim)(x)
