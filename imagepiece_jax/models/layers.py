"""Layers of a block: dense, norms, MLP.

GELU and layer norm have handwritten backward passes. They store their input and at most
two numbers per token, and recompute the rest in float32. Automatic differentiation
would store whole arrays.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.common.nodes import onnx_op

INIT = nn.initializers.normal(0.02, jnp.float32)
QUICK = 1.702  # QuickGELU's factor


def dense(width, dtype=jnp.float32, **options):
    """`nn.Dense` with the ViT initializer, N(0, 0.02^2)."""
    return nn.Dense(width, dtype=dtype, kernel_init=INIT, **options)


class LayerNorm(nn.Module):
    """Layer norm over the last axis with float32 statistics. [..., D] -> [..., D]."""

    dtype: jnp.dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, dim, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, dim, jnp.float32)
        return layer_norm(x, scale, bias, self.dtype, self.eps)


class LayerScale(nn.Module):
    """Learned factor per channel (Touvron et al. 2021, CaiT). [..., D] -> [..., D]."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.constant(1e-5, jnp.float32)
        gamma = self.param("gamma", init, x.shape[-1:])
        gamma = gamma.astype(x.dtype)
        return x * jnp.expand_dims(gamma, range(x.ndim - 1))


class Mlp(nn.Module):
    """Two linear layers around a GELU, or SwiGLU. [M, D] -> [M, D]."""

    hidden_dim: int
    gelu: str = "exact"  # `Architecture.gelu`
    dtype: jnp.dtype = jnp.float32
    kind: str = "gelu"  # `Architecture.mlp`
    norm_eps: float | None = None  # epsilon of the hidden layer's norm; None: no norm

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        hidden = (self.hidden_dim, self.dtype)
        if self.kind == "swiglu":
            gate = nn.silu(dense(*hidden, name="fc1_g")(x))
            x = gate * dense(*hidden, name="fc1_x")(x)
        else:
            x = gelu(dense(*hidden, name="fc1")(x), self.gelu)
        if self.norm_eps is not None:
            x = LayerNorm(self.dtype, self.norm_eps, name="norm")(x)
        return dense(dim, self.dtype, name="fc2")(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def padded_from(x, length):
    """Return x [B, N, ...]; its padding, from token `length` on, gets zero gradient."""
    # A fused kernel may return any gradient for padding, even NaN.
    return x


padded_from.defvjp(
    lambda x, length: (x, None),
    lambda length, _, gradient: (gradient.at[:, length:].set(0),),
)


@jax.custom_vjp
def token_major(x):
    """Return x [B, N, D]; its gradient keeps the memory layout [B, N, D]."""
    # XLA would otherwise move the batch innermost, for the positions' gradient, and
    # transpose whole arrays.
    return x


def _token_major_backward(_, gradient):
    rows = gradient.reshape(-1, gradient.shape[-1])
    rows = jax.lax.optimization_barrier(rows)
    return (rows.reshape(gradient.shape),)


token_major.defvjp(lambda x: (x, None), _token_major_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x, variant="exact"):
    """GELU, x Phi(x), elementwise (Hendrycks & Gimpel 2016, section 2).

    variant: "exact", or an approximate Phi: "tanh", 0.5 (1 + tanh u), or "quick",
        sigmoid(1.702 x)
    """
    # Because the backward pass needs only x, a GPU can compute "tanh" in the kernel of
    # the matrix product before it.
    if variant == "tanh":
        return jax.nn.gelu(x, approximate=True)
    wide = x.astype(jnp.float32)
    if variant == "quick":
        share = jax.nn.sigmoid(QUICK * wide)
    else:
        share = _share_below(wide)
    return (wide * share).astype(x.dtype)


def _share_below(x):
    """Phi(x)."""
    # erf, as in PyTorch: erfc, as in JAX's own GELU, takes much longer.
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(variant, x, gradient):
    """The gradient of x: (Phi(x) + x Phi'(x)) times the result's gradient."""
    wide = x.astype(jnp.float32)
    if variant == "tanh":
        # x sigmoid(2 u) with u = c (x + 0.044715 x^3).
        c = math.sqrt(2 / math.pi)
        cubic = 0.044715
        share = jax.nn.sigmoid(2 * c * (wide + cubic * wide**3))
        slope = 2 * c * (1 + 3 * cubic * wide**2)
        derivative = share + wide * share * (1 - share) * slope
    elif variant == "quick":
        share = jax.nn.sigmoid(QUICK * wide)
        derivative = share + QUICK * wide * share * (1 - share)
    else:
        density = jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
        derivative = _share_below(wide) + wide * density
    d_x = gradient.astype(jnp.float32) * derivative
    return (d_x.astype(x.dtype),)


gelu.defvjp(lambda x, variant: (gelu(x, variant), x), _gelu_backward)
gelu = onnx_op(gelu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x, scale, bias, dtype, eps=1e-6):
    """(x - mean) / deviation * scale + bias over the last axis (Ba et al. 2016).

    x, scale, bias: [..., D], [D] and [D]
    dtype: the result's type; statistics are float32
    eps: added to the variance
    """
    # The backward pass stores x, which is in memory anyway, and two numbers per token.
    return _normalized(x, *_statistics(x, eps), scale, bias).astype(dtype)


def _statistics(x, eps):
    """(mean, 1 / deviation), [..., 1] float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    # XLA fuses the mean of squared distances into one kernel. E[x^2] - E[x]^2 would
    # cancel for large numbers.
    squares = (x - mean) ** 2
    variance = jnp.mean(squares, axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(variance + eps)


def _normalized(x, mean, factor, scale, bias):
    scale = jnp.expand_dims(scale, range(x.ndim - 1))
    bias = jnp.expand_dims(bias, range(x.ndim - 1))
    return (x.astype(jnp.float32) - mean) * (factor * scale) + bias


def _norm_forward(x, scale, bias, dtype, eps):
    # Without this barrier XLA would store whole float32 arrays instead.
    mean, factor = jax.lax.optimization_barrier(_statistics(x, eps))
    out = _normalized(x, mean, factor, scale, bias).astype(dtype)
    return out, (x, mean, factor, scale)


def _norm_backward(dtype, eps, saved, gradient):
    """The gradients of x, scale and bias."""
    x, mean, factor, scale = saved
    # x in units of its deviation
    unit = (x.astype(jnp.float32) - mean) * factor
    gradient = gradient.astype(jnp.float32)
    inner = gradient * jnp.expand_dims(scale, range(x.ndim - 1))
    along = jnp.mean(inner * unit, axis=-1, keepdims=True)
    centered = inner - jnp.mean(inner, axis=-1, keepdims=True)
    d_x = factor * (centered - unit * along)
    tokens = tuple(range(x.ndim - 1))
    d_scale = jnp.sum(gradient * unit, axis=tokens)
    d_bias = jnp.sum(gradient, axis=tokens)
    return (
        d_x.astype(x.dtype),
        d_scale.astype(scale.dtype),
        d_bias.astype(scale.dtype),
    )


layer_norm.defvjp(_norm_forward, _norm_backward)
layer_norm = onnx_op(layer_norm)
