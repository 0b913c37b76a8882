"""Attention: its definition, and forms for GPUs and for training."""

import functools

import jax
import jax.numpy as jnp

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.choice import is_reference
from imagepiece_jax.kernels.merging import merge_map

ATTENTION_BACKENDS = ("auto", "xla", "cudnn")
BIAS_ALIGNMENT = 8  # two-byte values in 16 bytes, the alignment of a bias row
PADDING_BIAS = -6e4  # logit bias of padding keys; float16 ends at -65504


def plain_attention(query, key, value, key_bias=None, length=None):
    """softmax(q k^T / sqrt(d) + key_bias) v over the first `length` tokens."""
    weights = attention_map(query, key[:, :length], key_bias)
    return weighted_sum(weights, value[:, :length])


@onnx_op
def attention_map(query, key, key_bias=None, mask=None, eps=1e-6):
    """Attention weights from the first Q tokens to all N, [B, H, Q, N] float32.

    A masked token gets attention from itself only (Rao et al. 2021, DynamicViT). With
    P = exp(logits), and W = mask except 1 on the diagonal, the map is
    (P W + eps / N) / (sum P W + eps). It is finite even if all tokens are masked.

    query, key: [B, Q, H, d] and [B, N, H, d]
    key_bias: [B, N], added to the logits
    mask: [B, N], 1 for live tokens, 0 for masked tokens; differentiable
    """
    length = key.shape[1]
    width = query.shape[-1]
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * width**-0.5
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    # The maximum keeps exp finite. It changes the map only by way of eps, so it needs
    # no gradient.
    top = jnp.max(logits, axis=-1, keepdims=True)
    top = jax.lax.stop_gradient(top)
    itself = jnp.eye(query.shape[1], length, dtype=jnp.float32)[None]
    seen = itself + (1 - itself) * mask.astype(jnp.float32)[:, None, :]
    weights = jnp.exp(logits - top) * seen[:, None]
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights + eps / length) / (total + eps)


def weighted_sum(weights, value):
    """Sum values by weight. [B, H, N, M], [B, M, H, d] -> [B, N, H, d]."""
    weights = weights.astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def attend_live_tokens(query, key, value, mask, key_bias=None, eps=1e-6):
    """Attention from a single query to the live tokens. -> [B, H, d] float32.

    query: [1, 1, H, d]
    key, value, mask, key_bias, eps: as for `dot_product_attention` and `attention_map`
    """
    products = query.astype(jnp.float32) * key.astype(jnp.float32)
    logits = jnp.sum(products, axis=-1)
    logits = logits * query.shape[-1] ** -0.5
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    top = jnp.max(logits, axis=1, keepdims=True)
    top = jax.lax.stop_gradient(top)
    weights = jnp.exp(logits - top) * mask.astype(jnp.float32)[:, :, None]
    total = jnp.sum(weights, axis=1, keepdims=True)
    share = (weights + eps / key.shape[1]) / (total + eps)
    terms = share[..., None] * value.astype(jnp.float32)
    return jnp.sum(terms, axis=1)


@onnx_op
def attend_merged(weights, value, result, size):
    """Sum merged tokens' values [B, N_out, H, d] by an attention map merged like them.

    weights, size: [B, H, N, N] (or only the prefix rows) and [B, N], before the merge
    """
    prefix = size.shape[1] - result.slot_of_token.shape[1]
    merged = merge_map(weights, result, size[:, prefix:])
    return weighted_sum(merged, value)


def attention_columns(query, key, key_bias=None, live=None):
    """Mean received attention per token, over heads and queries. -> [B, N] float32.

    query, key, key_bias: as for `attention_map`
    live: [B, N], 1 for queries that count, 0 for masked queries; None: all count
    """
    # This score needs the full N x N matrix (Marin et al. 2023, Token Pooling).
    weights = attention_map(query, key, key_bias)
    if live is None:
        return jnp.mean(weights, axis=(1, 2))
    by_query = jnp.mean(weights, axis=1) * live[:, :, None]
    received = jnp.sum(by_query, axis=1)
    return received / jnp.sum(live, axis=1, keepdims=True)


# Forms: a fused kernel without an N x N matrix. cuDNN's wants a whole bias, and JAX
# refuses to train it with an odd number of tokens.


def _fused_attention(query, key, value, key_bias, backend, length=None):
    """`dot_product_attention` for a token count that the backend accepts."""
    batch, padded = key.shape[:2]
    lengths = {}
    if length is not None and length != padded:
        key = _without_padding_gradient(key, length)
        value = _without_padding_gradient(value, length)
        lengths = {
            "query_seq_lengths": jnp.full((batch,), padded, jnp.int32),
            "key_value_seq_lengths": jnp.full((batch,), length, jnp.int32),
        }
    bias = None
    if key_bias is not None and backend == "cudnn":
        key, value, bias = _expand_key_bias(query, key, value, key_bias)
    elif key_bias is not None:
        bias = key_bias[:, None, None, :]
    # JAX's function adds float32 to bfloat16. Under the user setting "strict" that sum
    # raises an error.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, implementation=backend, **lengths
        )


def _expand_key_bias(query, key, value, key_bias):
    """Expand the key bias to one row per query for cuDNN: (key, value, bias)."""
    tokens = key.shape[1]
    # Odd row lengths are unaligned and take cuDNN up to twice as long. Padding keys get
    # the bias UNSEEN, so no token attends to them (PERFORMANCE.md, "Sizes in a
    # direction").
    if tokens % 2:
        length = tokens + -tokens % BIAS_ALIGNMENT
        key = pad_tokens(key, length)
        value = pad_tokens(value, length)
        ends = ((0, 0), (0, length - tokens))
        key_bias = jnp.pad(key_bias, ends, constant_values=PADDING_BIAS)
    bias = key_bias[:, None, None, :].astype(query.dtype)
    rows = (query.shape[0], 1, query.shape[1], key.shape[1])
    return key, value, jnp.broadcast_to(bias, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _without_padding_gradient(x, length):
    """Return x [B, N, ...]; its padding, from token `length` on, gets zero gradient."""
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


def _odd_length_forward(*arrays):
    length = arrays[0].shape[1]

    def padded(*arrays):
        even = [pad_tokens(array, length + 1) for array in arrays]
        return _fused_attention(*even, "cudnn", length)[:, :length]

    return jax.vjp(padded, *arrays)


_attend_odd_length.defvjp(_odd_length_forward, lambda vjp, gradient: vjp(gradient))


def pad_for_training(x, backend):
    """Append a token to x [B, N, D] if `backend` cannot train with N tokens."""
    # Padding x costs nothing, because x is written anyway. Padding query, key and
    # value, as `_attend_odd_length` does, copies them.
    if is_reference() or backend != "cudnn":
        return x
    return pad_tokens(x, x.shape[1] + x.shape[1] % 2)


def pad_tokens(x, length):
    """Append zero tokens. [B, N, ...] -> [B, length, ...]; None stays None."""
    if x is None or x.shape[1] == length:
        return x
    missing = length - x.shape[1]
    ends = [(0, 0)] * x.ndim
    ends[1] = (0, missing)
    return jnp.pad(x, ends)


@onnx_op
def dot_product_attention(
    query, key, value, key_bias=None, *, backend="xla", length=None
):
    """Compute softmax(q k^T / sqrt(d) + key_bias) v. -> [B, Q, H, d].

    query: [B, Q, H, d]; Q must be N with padded keys
    key, value: [B, N, H, d]
    key_bias: [B, N] or [B, length] float32, the log sizes of proportional attention
    length: token count without padding. Padding gets no attention and a zero gradient,
        but attends to the tokens, which keeps all outputs finite.
    """
    if is_reference():
        return plain_attention(query, key, value, key_bias, length)
    tokens = key.shape[1]
    key_bias = pad_tokens(key_bias, tokens)
    if query.shape != key.shape:  # cuDNN cannot train with a single query
        backend = "xla"
    if backend == "cudnn" and tokens % 2:
        return _attend_odd_length(query, key, value, key_bias)
    return _fused_attention(query, key, value, key_bias, backend, length)


def resolve_backend(requested, dtype, head_dim=64, device=None):
    """Choose the attention kernel for a device, "xla" or "cudnn".

    requested: in BACKENDS; "auto" takes cuDNN's fused attention if the device runs it
    device: a jax.Device; None: this process's first
    Raises InputError if "cudnn" is requested but cannot run.
    """
    if requested == "xla":
        return requested
    device = device or jax.local_devices()[0]
    reason = _unmet_requirement(device, jnp.dtype(dtype), head_dim)
    if requested == "cudnn" and reason:
        raise InputError(f"attention is 'cudnn', which needs {reason}")
    return "xla" if reason else "cudnn"


def _unmet_requirement(device, dtype, head_dim):
    """The unmet requirement of cuDNN's attention, in words; None if it runs."""
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU; AMD's capabilities are names
        capability = 0.0
    if device.platform != "gpu" or capability < 8.0:
        return f"an NVIDIA GPU of compute capability 8.0 or more, not {device}"
    if dtype.itemsize != 2:
        return f"dtype 'bfloat16' or 'float16', not {dtype.name!r}"
    if head_dim % 8 or head_dim > 128:
        return f"heads of a width of 8, 16, .. 128, not {head_dim}"
    return None
