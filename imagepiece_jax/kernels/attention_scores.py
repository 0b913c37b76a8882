"""Token scores by attention from few queries."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from imagepiece_jax.kernels import attention, forms
from imagepiece_jax.kernels.array_shapes import TokenHeads, TokenValues


def mean_attention(
    query: Float[Array, "#batch queries heads head_dim"],
    key: TokenHeads,
    key_bias: TokenValues | None = None,
) -> TokenValues:
    """Attention to all tokens, prefix included: float32 means over queries and heads.

    query: the class token's, for example
    key_bias: added to the logits
    """
    query = query.astype(jnp.float32)
    if forms.uses_reference_forms():
        key = key.astype(jnp.float32)
        # [batch, heads, queries, tokens]
        return jnp.mean(attention.attention_map(query, key, key_bias), axis=(1, 2))
    # A GPU has no product for single queries, and fuses these sums.
    products = jnp.sum(query[:, None] * key.astype(jnp.float32)[:, :, None], axis=-1)
    logits = products * query.shape[-1] ** -0.5  # [B, N, Q, H]
    logits_by_token = logits.reshape(*logits.shape[:2], -1)  # [B, N, Q * H]
    return mean_softmax(logits_by_token, key_bias, forms.uses_fast_forms(key))


def mean_query(
    query: TokenHeads, live_mask: TokenValues | None = None
) -> Float[Array, "batch 1 heads head_dim"]:
    """Average the queries of all tokens, prefix included, in float32.

    live_mask: 1 for live tokens and 0 for masked tokens; None: all live
    """
    query = query.astype(jnp.float32)
    if live_mask is None:
        return jnp.mean(query, axis=1)[:, None]
    factor = live_mask[:, :, None, None]  # for [batch, tokens, heads, head_dim]
    query_sum = jnp.sum(factor * query, axis=1, keepdims=True)
    return query_sum / jnp.sum(factor, axis=1, keepdims=True)


def class_and_mean_queries(
    query: TokenHeads, live_mask: TokenValues | None = None
) -> Float[Array, "batch 2 heads head_dim"]:
    """The class token's query and the `mean_query`."""
    class_query = query[:, :1].astype(jnp.float32)
    return jnp.concatenate([class_query, mean_query(query, live_mask)], axis=1)


def mean_softmax(
    logits: Float[Array, "batch tokens heads"],
    key_bias: TokenValues | None = None,
    in_one_kernel: bool = False,
) -> TokenValues:
    """Softmax over tokens, mean over heads."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    if not in_one_kernel:
        return jnp.mean(jax.nn.softmax(logits, axis=1), axis=2)
    # A GPU computes a whole softmax in one kernel if tokens are the innermost axis.
    head_logits = with_layout_constraint(logits.transpose(0, 2, 1), Layout((0, 1, 2)))
    return jnp.mean(jax.nn.softmax(head_logits, axis=-1), axis=1)
