"""Attention pooling: a learned probe reads the tokens."""

import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.models.attention import attend, masked_read
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.layers import INIT, LayerNorm, Mlp, dense
from imagepiece_jax.reduction.ops import attention_row


def pooled_tokens(x, state, arch):
    """(tokens, sizes, mask or None) that pooling by mean or by map reads.

    x: [B, N, D], all tokens of `state`
    """
    if arch.pool_include_prefix:
        return x, state.effective_size, state.full_mask
    return state.image(x), state.image(state.effective_size), state.mask


class AttentionPool(nn.Module):
    """Attention from a learned probe to the tokens, and an MLP, as in SigLIP.

    With `prop_attn` the logits get the log sizes of the tokens. Masked tokens are not
    read.

    Source: Zhai et al. 2022, "Scaling vision transformers", section 3.4.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    prop_attn: bool = False

    def setup(self):
        width = self.config.embed_dim
        self.latent = self.param("latent", INIT, (1, 1, width))
        self.q = dense(width, self.dtype)
        self.k = dense(width, self.dtype)
        self.v = dense(width, self.dtype)
        self.proj = dense(width, self.dtype)
        self.norm = LayerNorm(self.dtype, self.config.arch.norm_eps)
        ratio = self.config.arch.pool_mlp_ratio or self.config.mlp_ratio
        hidden = round(width * ratio)
        self.mlp = Mlp(hidden, self.config.arch.gelu, self.dtype)

    def __call__(self, x, state):
        """The pooled vector [B, D] of x [B, N, D], the normed tokens of `state`."""
        x, size, mask = pooled_tokens(x, state, self.config.arch)
        query = self._query()
        key = self._heads(self.k(x))
        value = self._heads(self.v(x))
        bias = None
        if self.prop_attn:
            bias = jnp.log(size)
        if mask is None:
            queries = jnp.repeat(query, x.shape[0], axis=0)
            read = attend(queries, key, value, bias)
        else:
            read = masked_read(query, key, value, mask, bias)
        read = read.reshape(x.shape[0], self.config.embed_dim).astype(self.dtype)
        read = self.proj(read)
        return read + self.mlp(self.norm(read))

    def scores(self, x, state):
        """The probe's attention to image tokens, mean over heads.

        The query is the same for all tokens, so that it is multiplied into the weights
        of the key's projection: one product of the tokens with [D, H]. The bias of the
        projection adds the same to all logits, and is left out.

        x: [B, N, D], the normed tokens of `state`
        Returns [B, n] float32.
        """
        x, size, mask = pooled_tokens(x, state, self.config.arch)
        if self.is_initializing():
            self.k(x)
        query = self._query()[0, 0].astype(jnp.float32)
        kernel = self.k.variables["params"]["kernel"].astype(jnp.float32)
        kernel = kernel.reshape(self.config.embed_dim, *query.shape)
        read = jnp.einsum("xhd,hd->xh", kernel, query, precision="highest")
        x = x.astype(jnp.float32)
        logits = jnp.einsum("bnx,xh->bnh", x, read, precision="highest")
        if self.prop_attn:
            bias = jnp.log(size)
        else:
            bias = jnp.zeros_like(size)
        if mask is not None:
            bias = bias + jnp.where(mask > 0.5, 0.0, -jnp.inf)
        row = attention_row(logits * query.shape[-1] ** -0.5, bias)
        if self.config.arch.pool_include_prefix:
            row = state.image(row)
        return row

    def _query(self):
        return self._heads(self.q(self.latent.astype(self.dtype)))

    def _heads(self, x):
        heads = self.config.arch.pool_heads or self.config.num_heads
        return x.reshape(*x.shape[:2], heads, -1)
