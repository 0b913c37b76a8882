"""Token scores by attention from few queries."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.kernels.choice import is_fast, is_reference


@onnx_op
def mean_attention(query, key, key_bias=None):
    """Attention to all N tokens, prefix included. -> [B, N] float32.

    query: [B, Q, H, d], such as the class token's; attention is averaged over queries
        and heads
    key: [B, N, H, d]
    key_bias: [B, N], added to the logits
    """
    in_one_kernel = is_fast(key)
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
    by_head = logits.transpose(0, 2, 1)
    by_head = with_layout_constraint(by_head, Layout((0, 1, 2)))
    return jnp.mean(jax.nn.softmax(by_head, axis=-1), axis=1)


@onnx_op
def mean_query(query, live=None):
    """Average the queries of all tokens, prefix included. -> [B, 1, H, d] float32.

    query: [B, N, H, d]
    live: [B, N], 1 for live tokens and 0 for masked tokens; None: all live
    """
    query = query.astype(jnp.float32)
    if live is None:
        return jnp.mean(query, axis=1)[:, None]
    live = live[:, :, None, None]
    total = jnp.sum(live * query, axis=1, keepdims=True)
    return total / jnp.sum(live, axis=1, keepdims=True)


@onnx_op
def class_and_mean_queries(query, live=None):
    """The class token's query and the mean query. -> [B, 2, H, d] float32.

    query, live: as for `mean_query`
    """
    both = [query[:, :1].astype(jnp.float32), mean_query(query, live)]
    return jnp.concatenate(both, axis=1)


def attention_row(logits, key_bias=None):
    """One query's attention, mean over heads. [B, N, H], [B, N] float32 -> [B, N]."""
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    if is_reference():
        total = jax.nn.logsumexp(jnp.maximum(logits, LOWEST_LOGIT), axis=1)[:, None, :]
    else:
        total = log_sum_exp(logits)[:, None, :]
    weights = jnp.exp(logits - total)
    return jnp.mean(weights, axis=2)


LOWEST_LOGIT = -1e30  # replaces minus infinity: -inf - (-inf) is NaN


@jax.custom_jvp
def log_sum_exp(logits):
    """log(sum(exp(logits))) over axis 1, in one pass. [B, N, H] float32 -> [B, H]."""
    logits = jnp.maximum(logits, LOWEST_LOGIT)

    def join(a, b):
        top = jnp.maximum(a[0], b[0])
        part_a = a[1] * jnp.exp(a[0] - top)
        part_b = b[1] * jnp.exp(b[0] - top)
        return top, part_a + part_b

    start = (jnp.float32(LOWEST_LOGIT), jnp.float32(0))
    values = (logits, jnp.ones_like(logits))
    top, total = jax.lax.reduce(values, start, join, (1,))
    return top + jnp.log(total)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(primals, tangents):
    (logits,) = primals
    (tangent,) = tangents
    out = log_sum_exp(logits)
    weights = jnp.exp(logits - out[:, None])
    return out, jnp.sum(weights * tangent, axis=1)


log_sum_exp = onnx_op(log_sum_exp)
