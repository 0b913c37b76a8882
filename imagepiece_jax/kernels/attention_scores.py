"""Token scores by attention from few queries."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.array_shapes import TokenHeads, TokenValues
from imagepiece_jax.kernels.choice import is_fast, is_reference

HeadLogits = Float[Array, "batch tokens heads"]


@onnx_op
def mean_attention(
    query: Float[Array, "#batch queries heads head_dim"],
    key: TokenHeads,
    key_bias: TokenValues | None = None,
) -> TokenValues:
    """Attention to all tokens, prefix included: float32 means over queries and heads.

    query: the class token's, for example
    key_bias: added to the logits
    """
    in_one_kernel = is_fast(key)  # before the cast, because the dtype decides
    query = query.astype(jnp.float32)
    key = key.astype(jnp.float32)
    products = jnp.sum(query[:, None] * key[:, :, None], axis=-1)  # [B, N, Q, H]
    logits = products * query.shape[-1] ** -0.5
    logits = logits.reshape(*logits.shape[:2], -1)  # [B, N, Q H]
    if not in_one_kernel:
        return attention_row(logits, key_bias)
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    # A GPU computes a whole softmax in one kernel if tokens are the innermost axis.
    head_logits = logits.transpose(0, 2, 1)
    head_logits = with_layout_constraint(head_logits, Layout((0, 1, 2)))
    return jnp.mean(jax.nn.softmax(head_logits, axis=-1), axis=1)


@onnx_op
def mean_query(
    query: TokenHeads, live_mask: TokenValues | None = None
) -> Float[Array, "batch 1 heads head_dim"]:
    """Average the queries of all tokens, prefix included, in float32.

    live_mask: 1 for live tokens and 0 for masked tokens; None: all live
    """
    query = query.astype(jnp.float32)
    if live_mask is None:
        return jnp.mean(query, axis=1)[:, None]
    live_mask = live_mask[:, :, None, None]
    query_sum = jnp.sum(live_mask * query, axis=1, keepdims=True)
    return query_sum / jnp.sum(live_mask, axis=1, keepdims=True)


@onnx_op
def class_and_mean_queries(
    query: TokenHeads, live_mask: TokenValues | None = None
) -> Float[Array, "batch 2 heads head_dim"]:
    """The class token's query and the `mean_query`."""
    class_query = query[:, :1].astype(jnp.float32)
    return jnp.concatenate([class_query, mean_query(query, live_mask)], axis=1)


def attention_row(
    logits: HeadLogits, key_bias: TokenValues | None = None
) -> TokenValues:
    """One query's attention to the tokens, mean over heads."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    if is_reference():
        log_sum = jax.nn.logsumexp(jnp.maximum(logits, LOWEST_LOGIT), axis=1)
    else:
        log_sum = log_sum_exp(logits)
    attention = jnp.exp(logits - log_sum[:, None, :])
    return jnp.mean(attention, axis=2)


LOWEST_LOGIT = -1e30  # replaces minus infinity: -inf - (-inf) is NaN


@jax.custom_jvp
def log_sum_exp(logits: HeadLogits) -> Float[Array, "batch heads"]:
    """log(sum(exp(logits))) over tokens, in one pass."""
    logits = jnp.maximum(logits, LOWEST_LOGIT)

    def join(a: tuple[Any, Any], b: tuple[Any, Any]) -> tuple[Any, Any]:
        """Join two (maximum, sum of exp(logit - maximum))."""
        max_logit = jnp.maximum(a[0], b[0])
        exp_sum_a = a[1] * jnp.exp(a[0] - max_logit)
        exp_sum_b = b[1] * jnp.exp(b[0] - max_logit)
        return max_logit, exp_sum_a + exp_sum_b

    start = (jnp.float32(LOWEST_LOGIT), jnp.float32(0))
    operands = (logits, jnp.ones_like(logits))
    max_logit, exp_sum = jax.lax.reduce(operands, start, join, (1,))
    return max_logit + jnp.log(exp_sum)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(
    primals: tuple[HeadLogits], tangents: tuple[HeadLogits]
) -> tuple[Float[Array, "batch heads"], Float[Array, "batch heads"]]:
    """Return `log_sum_exp` and its tangent, the tangents' sum by attention."""
    (logits,) = primals
    (tangent,) = tangents
    log_sum = log_sum_exp(logits)
    attention = jnp.exp(logits - log_sum[:, None])
    return log_sum, jnp.sum(attention * tangent, axis=1)


log_sum_exp = onnx_op(log_sum_exp)
