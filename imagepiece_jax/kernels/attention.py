"""Attention: its definition, and forms for GPUs and for training."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.array_shapes import QueryHeads, TokenHeads, TokenValues
from imagepiece_jax.kernels.forms import uses_reference_forms
from imagepiece_jax.kernels.merging import Assignment, is_in_slot, mix_tokens

Backend = Literal["xla", "cudnn"]
ATTENTION_BACKENDS = ("auto", "xla", "cudnn")
BIAS_ALIGNMENT = 8  # two-byte values in 16 bytes, the alignment of a bias row
PADDING_BIAS = -6e4  # logit bias of padding keys; float16 ends at -65504
MASKED_EPS = 1e-6  # keeps masked attention finite even if all tokens are masked


@onnx_op
def attention_map(
    query: QueryHeads,
    key: TokenHeads,
    key_bias: TokenValues | None = None,
    mask: TokenValues | None = None,
) -> Float[Array, "batch heads queries tokens"]:
    """Attention from the first tokens to all tokens, in float32.

    A masked token gets attention from itself only (Rao et al. 2021, DynamicViT). With
    P = exp(logits), and W = mask except 1 on the diagonal, the map is
    (P W + eps / N) / (sum P W + eps), where eps is MASKED_EPS.

    key_bias: added to the logits
    mask: 1 for live tokens, 0 for masked tokens; differentiable
    """
    num_tokens = key.shape[1]
    dtype = jnp.float32
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=dtype)
    logits = logits * query.shape[-1] ** -0.5  # [batch, heads, queries, tokens]
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    # The maximum keeps exp finite. It changes the map only by way of eps, so it needs
    # no gradient.
    max_logit = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    is_itself = jnp.eye(query.shape[1], num_tokens, dtype=dtype)[None]  # [1, Q, N]
    visibility = is_itself + (1 - is_itself) * mask.astype(jnp.float32)[:, None, :]
    weights = jnp.exp(logits - max_logit) * visibility[:, None]
    weight_sum = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights + MASKED_EPS / num_tokens) / (weight_sum + MASKED_EPS)


def weighted_sum(
    attention: Float[Array, "batch heads queries tokens"], value: TokenHeads
) -> QueryHeads:
    """Sum values by attention, in the type of the values."""
    attention = attention.astype(value.dtype)
    # For a result "bqhd", JAX would swap the operands, and an exported graph would
    # transpose the map.
    sums_by_head = jnp.einsum("bhqk,bkhd->bhqd", attention, value)
    return sums_by_head.transpose(0, 2, 1, 3)


def attend_live_tokens(
    query: Float[Array, "1 1 heads head_dim"],
    key: TokenHeads,
    value: TokenHeads,
    mask: TokenValues,
    key_bias: TokenValues | None = None,
) -> Float[Array, "batch heads head_dim"]:
    """Attention from a single query to the live tokens, as `attention_map` has it."""
    # A GPU has no product for single queries, and fuses these sums.
    products = query.astype(jnp.float32) * key.astype(jnp.float32)
    logits = jnp.sum(products, axis=-1)  # [batch, tokens, heads]
    logits = logits * query.shape[-1] ** -0.5
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    max_logit = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    weights = jnp.exp(logits - max_logit) * mask.astype(jnp.float32)[:, :, None]
    weight_sum = jnp.sum(weights, axis=1, keepdims=True)
    attention = (weights + MASKED_EPS / key.shape[1]) / (weight_sum + MASKED_EPS)
    weighted_value = attention[..., None] * value.astype(jnp.float32)
    return jnp.sum(weighted_value, axis=1)


def attend_merged(
    attention: Float[Array, "batch heads queries tokens"],
    value: Float[Array, "batch merged_tokens heads head_dim"],
    assignment: Assignment,
    size: TokenValues,
) -> Float[Array, "batch merged_queries heads head_dim"]:
    """Sum merged tokens' values by an attention map that is merged like them.

    Rows of the map are averaged like features, and columns are summed.

    attention: before the merge, from all tokens or from the prefix alone
    size: before the merge
    Source: Lee et al. 2024, section 3.3.
    """
    # Every token reads its slot's value, then the outputs merge like tokens. This is
    # the product with the merged map, in another order.
    batch_size, num_tokens = size.shape
    num_prefix = num_tokens - assignment.slot_of_token.shape[1]
    is_member = is_in_slot(assignment.slot_of_token, assignment.n_out)
    spreading_matrix = is_member.astype(jnp.float32).transpose(0, 2, 1)
    # [batch, tokens, heads * head_dim]: a product with a matrix takes three axes.
    spread_rows = mix_tokens(value.reshape(*value.shape[:2], -1), spreading_matrix)
    spread_value = spread_rows.reshape(batch_size, num_tokens, *value.shape[2:])
    out = weighted_sum(attention, spread_value)
    if out.shape[1] < num_tokens:  # queries of the prefix alone, which does not merge
        return out
    merging_matrix = assignment.slot_matrix(size[:, num_prefix:])
    merged_rows = mix_tokens(out.reshape(spread_rows.shape), merging_matrix)
    return merged_rows.reshape(value.shape)


def attention_columns(
    query: TokenHeads,
    key: TokenHeads,
    key_bias: TokenValues | None = None,
    live_mask: TokenValues | None = None,
) -> TokenValues:
    """Mean received attention per token, over heads and queries, in float32.

    live_mask: 1 for queries that count, 0 for masked queries; None: all count
    """
    # This score needs the full N x N matrix (Marin et al. 2023, Token Pooling).
    attention = attention_map(query, key, key_bias)  # [batch, heads, queries, tokens]
    if live_mask is None:
        return jnp.mean(attention, axis=(1, 2))
    live_attention = jnp.mean(attention, axis=1) * live_mask[:, :, None]
    return jnp.sum(live_attention, axis=1) / jnp.sum(live_mask, axis=1, keepdims=True)


# Forms: a fused kernel without an N x N matrix. cuDNN's wants a whole bias, and JAX
# refuses to train it with an odd number of tokens.


def _fused_attention(query, key, value, key_bias, backend, length=None):
    """JAX's fused kernel, for a token count that it accepts; length: unpadded."""
    batch_size, padded_length = key.shape[:2]  # [batch, tokens, heads, head_dim]
    length_options: dict[str, Any] = {}
    if length is not None and length != padded_length:
        key = _without_padding_gradient(key, length)
        value = _without_padding_gradient(value, length)
        # Padding attends, too, which keeps its outputs finite.
        padded_lengths = jnp.full((batch_size,), padded_length, jnp.int32)
        lengths = jnp.full((batch_size,), length, jnp.int32)
        length_options["query_seq_lengths"] = padded_lengths
        length_options["key_value_seq_lengths"] = lengths
    bias = None
    if key_bias is not None and backend == "cudnn":
        key, value, bias = _expand_key_bias(query, key, value, key_bias)
    elif key_bias is not None:
        bias = key_bias[:, None, None, :]  # [batch, 1, 1, tokens]
    return jax.nn.dot_product_attention(
        query, key, value, bias=bias, implementation=backend, **length_options
    )


def _expand_key_bias(query, key, value, key_bias):
    """Expand the key bias to one row per query for cuDNN: (key, value, bias)."""
    num_tokens = key.shape[1]  # [batch, tokens, heads, head_dim]
    # Odd row lengths are unaligned and take cuDNN up to twice as long. Padding keys get
    # PADDING_BIAS, so no token attends to them (PERFORMANCE.md, "Sizes in a
    # direction").
    if num_tokens % 2:
        padded_length = num_tokens + -num_tokens % BIAS_ALIGNMENT
        key = pad_tokens(key, padded_length)
        value = pad_tokens(value, padded_length)
        padding = ((0, 0), (0, padded_length - num_tokens))
        key_bias = jnp.pad(key_bias, padding, constant_values=PADDING_BIAS)
    bias = key_bias[:, None, None, :].astype(query.dtype)
    bias_shape = (query.shape[0], 1, query.shape[1], key.shape[1])
    return key, value, jnp.broadcast_to(bias, bias_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _without_padding_gradient(x, length):
    """Return x; its padding, from token `length` on, gets zero gradient."""
    # A fused kernel may return any gradient for padding, even NaN.
    return x


_without_padding_gradient.defvjp(
    lambda x, length: (x, None),
    lambda length, _, gradient: (gradient.at[:, length:].set(0),),
)


@jax.custom_vjp
def _attend_odd_length(query, key, value, key_bias):
    """cuDNN's attention for an odd token count; only differentiation pads it."""
    return _fused_attention(query, key, value, key_bias, "cudnn")


def _odd_length_forward(query, key, value, key_bias):
    """Attend with one token of padding: (result without it, its vjp function)."""
    length = key.shape[1]

    def attend_padded(*operands):
        padded_operands = jax.tree.map(lambda x: pad_tokens(x, length + 1), operands)
        query, key, value, key_bias = padded_operands
        padded_out = _fused_attention(query, key, value, key_bias, "cudnn", length)
        return padded_out[:, :length]  # [batch, tokens, heads, head_dim]

    return jax.vjp(attend_padded, query, key, value, key_bias)


_attend_odd_length.defvjp(_odd_length_forward, lambda vjp, gradient: vjp(gradient))


def pad_for_training(
    x: Float[Array, "batch tokens dim"], backend: Backend
) -> Float[Array, "batch padded_tokens dim"]:
    """Append a token to x if `backend` cannot train with its token count."""
    # Padding x costs nothing, because x is written anyway. Padding query, key and
    # value, as `_attend_odd_length` does, copies them.
    if uses_reference_forms() or backend != "cudnn":
        return x
    return pad_tokens(x, x.shape[1] + x.shape[1] % 2)


def pad_tokens(
    x: Shaped[Array, "batch tokens *dims"], length: int
) -> Shaped[Array, "batch {length} *dims"]:
    """Append zero tokens."""
    if x.shape[1] == length:
        return x
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, length - x.shape[1])
    return jnp.pad(x, padding)


def dot_product_attention(
    query: QueryHeads,
    key: TokenHeads,
    value: TokenHeads,
    key_bias: Float[Array, "batch biased_tokens"] | None = None,
    *,
    backend: Backend = "xla",
    length: int | None = None,
) -> QueryHeads:
    """Compute softmax(q k^T / sqrt(d) + key_bias) v.

    query: of all tokens if keys are padded
    key_bias: log sizes of proportional attention, with or without padding
    length: token count without padding. Padding gets no attention and a zero gradient,
        but attends to the tokens, which keeps all outputs finite.
    """
    if uses_reference_forms():
        attention = attention_map(query, key[:, :length], key_bias)
        return weighted_sum(attention, value[:, :length])
    padded_length = key.shape[1]
    # Padding gets no attention by `length`, so its bias is any number.
    if key_bias is not None:
        key_bias = pad_tokens(key_bias, padded_length)
    if query.shape != key.shape:  # cuDNN cannot train with a single query
        backend = "xla"
    if backend == "cudnn" and padded_length % 2:  # JAX refuses to train it
        return _attend_odd_length(query, key, value, key_bias)
    return _fused_attention(query, key, value, key_bias, backend, length)


def resolve_backend(
    requested_backend: str,
    dtype: np.dtype | str,
    head_dim: int = 64,
    device: jax.Device | None = None,
) -> Backend:
    """Choose the attention kernel for a device, "xla" or "cudnn".

    requested_backend: in ATTENTION_BACKENDS; "auto" is "cudnn" where it runs
    device: None: this process's first
    Raises InputError if "cudnn" is requested but cannot run.
    """
    if requested_backend == "xla":
        return requested_backend
    device = device or jax.local_devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU; AMD's capabilities are names
        capability = 0.0  # below every NVIDIA GPU's
    is_two_bytes = jnp.dtype(dtype).itemsize == 2
    if capability >= 8.0 and is_two_bytes and head_dim in range(8, 129, 8):
        return "cudnn"
    if requested_backend == "cudnn":
        raise InputError(
            "attention is 'cudnn', which needs an NVIDIA GPU of compute capability 8.0 "
            "or more, dtype 'bfloat16' or 'float16', and heads of a width of 8, 16, .. "
            f"128; here are {device}, {jnp.dtype(dtype).name!r} and {head_dim}"
        )
    return "xla"
