"""One block of the network: attention and MLP, each with its norm and residual."""

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.models.attention import INIT, Attention

GELUS = ("exact", "tanh")


def layer_norm(dtype, name=None):
    """Layer norm with float32 statistics; two passes: XLA makes one kernel of them."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class Mlp(nn.Module):
    """Two layers with GELU, exact or by its tanh form: [M, D] -> [M, D]."""

    hidden_dim: int
    gelu: str = "exact"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        x = nn.Dense(self.hidden_dim, kernel_init=INIT, dtype=self.dtype, name="fc1")(x)
        x = nn.gelu(x, approximate=self.gelu == "tanh")
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
        self.norm1 = layer_norm(self.dtype)
        self.attn = Attention(self.num_heads, self.backend, self.dtype)
        self.norm2 = layer_norm(self.dtype)
        self.mlp = Mlp(int(self.dim * self.mlp_ratio), self.gelu, self.dtype)

    def attend(self, x, scale=None, key_bias=None, mask=None, **options):
        """x + attention(norm(x)), and the taps.

        [B, N, D]; `scale` [B] is drop path's.
        """
        out, taps = self.attn(self.norm1(x), key_bias, mask, **options)
        return x + _scaled(out, scale), taps

    def feed_forward(self, x, scale=None):
        """x + mlp(norm(x)). [B, N, D] -> [B, N, D]."""
        out = self.mlp(self.norm2(x).reshape(-1, self.dim)).reshape(x.shape)
        return x + _scaled(out, scale)


def _scaled(branch, scale):
    if scale is None:
        return branch
    return branch * scale[:, None, None].astype(branch.dtype)
