"""One block of the network: attention and MLP, each with its norm and residual."""

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.models import custom_vjp
from imagepiece_jax.models.attention import INIT, Attention

GELUS = ("exact", "tanh")


class LayerNorm(nn.Module):
    """Layer norm over the last axis with float32 statistics. [..., D] -> [..., D]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, dim)
        bias = self.param("bias", nn.initializers.zeros, dim)
        return custom_vjp.layer_norm(x, scale, bias, self.dtype)


class Mlp(nn.Module):
    """Two layers with GELU, exact or by its tanh form: [M, D] -> [M, D]."""

    hidden_dim: int
    gelu: str = "exact"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        x = nn.Dense(self.hidden_dim, kernel_init=INIT, dtype=self.dtype, name="fc1")(x)
        x = custom_vjp.gelu(x, self.gelu)
        return nn.Dense(dim, kernel_init=INIT, dtype=self.dtype, name="fc2")(x)


class Block(nn.Module):
    """A pre-norm block in two halves, so that a reduction can stand between them."""

    dim: int
    num_heads: int
    mlp_ratio: float
    gelu: str = "exact"
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.norm1 = LayerNorm(self.dtype)
        self.attn = Attention(self.num_heads, self.backend, self.dtype)
        self.norm2 = LayerNorm(self.dtype)
        self.mlp = Mlp(int(self.dim * self.mlp_ratio), self.gelu, self.dtype)

    def attend(self, x, scale=None, key_bias=None, mask=None, **options):
        """x + attention(norm(x)), and the taps.

        [B, N, D]; `scale` [B] is drop path's.
        """
        normed = self.norm1(_rows(x)).reshape(x.shape)
        out, taps = self.attn(normed, key_bias, mask, **options)
        return _add(x, out, scale), taps

    def feed_forward(self, x, scale=None):
        """x + mlp(norm(x)). [B, N, D] -> [B, N, D]."""
        return _add(x, self.mlp(self.norm2(_rows(x))), scale)


def _rows(x):
    """All tokens as one matrix, [B, N, D] -> [B N, D].

    With three dimensions XLA may choose layouts with the batch innermost, and then
    transposes whole arrays in the backward pass.
    """
    return x.reshape(-1, x.shape[-1])


def _add(x, branch, scale):
    """x + branch, of which each image has its `scale` [B]. [B, N, D], any shape."""
    branch = _rows(branch)
    if scale is not None:
        scale = scale.astype(branch.dtype)[:, None]
        scale = jnp.broadcast_to(scale, x.shape[:2]).reshape(-1, 1)
        branch = branch * scale
    return (_rows(x) + branch).reshape(x.shape)
