"""Attention pooling by a learned probe."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.kernels.array_shapes import AllRows, TokenRows, TokenValues
from imagepiece_jax.kernels.attention import attend_live_tokens, dot_product_attention
from imagepiece_jax.kernels.attention_scores import mean_softmax
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.layers import NORMAL_INIT, LayerNorm, Mlp, dense_layer
from imagepiece_jax.reduction.state import TokenState


def cut_pooled_tokens(
    x: AllRows, state: TokenState, arch: Architecture
) -> tuple[TokenRows, TokenValues, TokenValues | None]:
    """Cut all tokens x to the pool's input: (tokens, sizes, mask or None)."""
    if arch.pool_include_prefix:
        return x, state.effective_size, state.full_mask
    return state.image_rows(x), state.image_rows(state.effective_size), state.mask


class AttentionPool(nn.Module):
    """Attention from a learned probe to the live tokens, then an MLP, as in SigLIP.

    Source: Zhai et al. 2022, "Scaling vision transformers", section 3.4.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    prop_attn: bool = False  # add log(size) to the logits

    def setup(self) -> None:
        width = self.config.embed_dim
        self.latent = self.param("latent", NORMAL_INIT, (1, 1, width))
        self.q = dense_layer(width, self.dtype)
        self.k = dense_layer(width, self.dtype)
        self.v = dense_layer(width, self.dtype)
        self.proj = dense_layer(width, self.dtype)
        self.norm = LayerNorm(self.dtype, self.config.arch.norm_eps)
        mlp_ratio = self.config.arch.pool_mlp_ratio or self.config.mlp_ratio
        self.mlp = Mlp(round(width * mlp_ratio), self.config.arch.gelu, self.dtype)

    def __call__(self, x: AllRows, state: TokenState) -> Float[Array, "batch dim"]:
        """Pool x, the normed tokens of `state`."""
        x, size, mask = cut_pooled_tokens(x, state, self.config.arch)
        query = self._probe_query()
        key = self._split_heads(self.k(x))
        value = self._split_heads(self.v(x))
        bias = jnp.log(size) if self.prop_attn else None
        if mask is None:
            queries = jnp.repeat(query, x.shape[0], axis=0)
            pooled = dot_product_attention(queries, key, value, bias)
        else:
            pooled = attend_live_tokens(query, key, value, mask, bias)
        pooled = pooled.reshape(x.shape[0], self.config.embed_dim).astype(self.dtype)
        pooled = self.proj(pooled)
        return pooled + self.mlp(self.norm(pooled))

    def probe_scores(self, x: AllRows, state: TokenState) -> TokenValues:
        """The probe's attention to image tokens, mean over heads.

        x: the normed tokens of `state`
        """
        # All tokens share the query, so the query is multiplied into the key
        # projection: one product of the tokens with [D, H] is left. The projection's
        # bias adds the same number to all logits and is left out.
        x, size, mask = cut_pooled_tokens(x, state, self.config.arch)
        if self.is_initializing():
            self.k(x)
        query = self._probe_query()[0, 0].astype(jnp.float32)
        kernel = self.k.variables["params"]["kernel"].astype(jnp.float32)
        kernel = kernel.reshape(self.config.embed_dim, *query.shape)
        query_kernel = jnp.einsum("xhd,hd->xh", kernel, query, precision="highest")
        x = x.astype(jnp.float32)
        logits = jnp.einsum("bnx,xh->bnh", x, query_kernel, precision="highest")
        bias = jnp.log(size) if self.prop_attn else jnp.zeros_like(size)
        if mask is not None:
            bias = bias + jnp.where(mask > 0.5, 0.0, -jnp.inf)
        attn = mean_softmax(logits * query.shape[-1] ** -0.5, bias)
        return state.image_rows(attn) if self.config.arch.pool_include_prefix else attn

    def _probe_query(self):
        return self._split_heads(self.q(self.latent.astype(self.dtype)))

    def _split_heads(self, x):
        num_heads = self.config.arch.pool_heads or self.config.num_heads
        return x.reshape(*x.shape[:2], num_heads, -1)
