"""Self-attention and the token scores for reducers.

A separate product computes the class token's attention row, so the attention itself can
run as a fused kernel without an N x N matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import zeros

from imagepiece_jax.common.nodes import onnx_op
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.attention_scores import (
    class_and_mean_queries,
    mean_attention,
    mean_query,
)
from imagepiece_jax.kernels.choice import is_fast
from imagepiece_jax.kernels.merging import merge_map
from imagepiece_jax.models.config import Execution, ViTConfig
from imagepiece_jax.models.layers import LayerNorm, dense, padded_from

BACKENDS = ("auto", "xla", "cudnn")
# How proportional attention adds log(size) to the logits: as a key bias, or along one
# key direction per head (`inference.size_direction`), which needs no bias matrix.
SIZES = ("bias", "direction")
QUERY_SCALE = 4.0  # every query's component along its head's size direction
ALIGNED = 8  # two-byte values in 16 bytes, the alignment of a bias row
UNSEEN = -6e4  # logit bias of padding keys; float16 ends at -65504


def resolve_backend(requested, dtype, head_dim=64, device=None):
    """Choose the attention kernel for a device, "xla" or "cudnn".

    requested: in BACKENDS; "auto" takes cuDNN's fused attention if the device runs it
    device: a jax.Device; None: this process's first
    Raises InputError if "cudnn" is requested but cannot run.
    """
    if requested == "xla":
        return requested
    device = device or jax.local_devices()[0]
    reason = _unsupported_reason(device, jnp.dtype(dtype), head_dim)
    if requested == "cudnn" and reason:
        raise InputError(f"attention is 'cudnn', which needs {reason}")
    return "xla" if reason else "cudnn"


def _unsupported_reason(device, dtype, head_dim):
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


def padded_length(length, backend):
    """Round a token count up to a count that `backend` can train with."""
    # JAX refuses to train cuDNN's attention with an odd number of tokens.
    if backend == "cudnn":
        return length + length % 2
    return length


@onnx_op
def attend(query, key, value, key_bias=None, *, backend="xla", length=None):
    """Compute softmax(q k^T / sqrt(d) + key_bias) v. -> [B, Q, H, d].

    query: [B, Q, H, d]; Q must be N with cuDNN or padded keys
    key, value: [B, N, H, d]
    key_bias: [B, N] float32, the log sizes of proportional attention
    length: token count without padding. Padding gets no attention and a zero gradient,
        but attends to the tokens, which keeps all outputs finite.
    """
    tokens = key.shape[1]
    if length in (None, tokens) and padded_length(tokens, backend) != tokens:
        return _odd_attention(query, key, value, key_bias)
    return _fused_attention(query, key, value, key_bias, backend, length)


@jax.custom_vjp
def _odd_attention(query, key, value, key_bias):
    """cuDNN's attention for an odd token count; only differentiation pads it."""
    # Training (`train=True`) has padded its tokens earlier, where padding is free.
    return _fused_attention(query, key, value, key_bias, "cudnn")


def _odd_forward(*arrays):
    length = arrays[0].shape[1]

    def padded(*arrays):
        even = [_pad(array, padded_length(length, "cudnn")) for array in arrays]
        return _fused_attention(*even, "cudnn", length)[:, :length]

    return jax.vjp(padded, *arrays)


_odd_attention.defvjp(_odd_forward, lambda vjp, gradient: vjp(gradient))


def _fused_attention(query, key, value, key_bias, backend, length=None):
    """`attend` for a token count that the backend accepts."""
    batch, padded = key.shape[:2]
    lengths = {}
    if length is not None and length != padded:
        key = padded_from(key, length)
        value = padded_from(value, length)
        lengths = {
            "query_seq_lengths": jnp.full((batch,), padded, jnp.int32),
            "key_value_seq_lengths": jnp.full((batch,), length, jnp.int32),
        }
    bias = None
    if key_bias is not None and backend == "cudnn":
        key, value, bias = _with_rows_of_bias(query, key, value, key_bias)
    elif key_bias is not None:
        bias = key_bias[:, None, None, :]
    # JAX's function adds float32 to bfloat16. Under the user setting "strict" that sum
    # raises an error.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, implementation=backend, **lengths
        )


def _with_rows_of_bias(query, key, value, key_bias):
    """Expand the key bias to one row per query for cuDNN: (key, value, bias)."""
    tokens = key.shape[1]
    # Odd row lengths are unaligned and take cuDNN up to twice as long. Padding keys get
    # the bias UNSEEN, so no token attends to them (PERFORMANCE.md, "Sizes in a
    # direction").
    if tokens % 2:
        length = tokens + -tokens % ALIGNED
        key = _pad(key, length)
        value = _pad(value, length)
        ends = ((0, 0), (0, length - tokens))
        key_bias = jnp.pad(key_bias, ends, constant_values=UNSEEN)
    bias = key_bias[:, None, None, :].astype(query.dtype)
    rows = (query.shape[0], 1, query.shape[1], key.shape[1])
    return key, value, jnp.broadcast_to(bias, rows)


def weighted_sum(weights, value):
    """Sum values by weight. [B, H, N, M], [B, M, H, d] -> [B, N, H, d]."""
    weights = weights.astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


@onnx_op
def attend_merged(weights, value, result, size):
    """Sum merged tokens' values [B, N_out, H, d] by an attention map merged like them.

    weights, size: [B, H, N, N] (or only the prefix rows) and [B, N], before the merge
    """
    prefix = size.shape[1] - result.dest.shape[1]
    merged = merge_map(weights, result, size[:, prefix:])
    return weighted_sum(merged, value)


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


def masked_read(query, key, value, mask, key_bias=None, eps=1e-6):
    """Attention from a single query to the live tokens. -> [B, H, d] float32.

    query: [1, 1, H, d]
    key, value, mask, key_bias, eps: as for `attend` and `attention_map`
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


def _pad(x, length):
    """Append zero tokens. [B, N, ...] -> [B, length, ...]; None stays None."""
    if x is None or x.shape[1] == length:
        return x
    missing = length - x.shape[1]
    ends = [(0, 0)] * x.ndim
    ends[1] = (0, missing)
    return jnp.pad(x, ends)


class Heads(NamedTuple):
    """Queries, keys and values of N tokens, including the prefix."""

    query: jax.Array  # [B, N, H, d], or [B, Q, H, d] for the first Q tokens
    key: jax.Array  # [B, N, H, d]
    value: jax.Array | None  # [B, N, H, d]; None: not computed yet
    # "query", "key" and "value" before rotary positions rotate them, and "input", the
    # tokens x [B, N, D]. Reducers compare tokens without positions.
    unrotated: dict[str, jax.Array]
    key_bias: jax.Array | None  # [B, N], log sizes of proportional attention
    mask: jax.Array | None  # [B, N], 0 for masked tokens; None outside masked training


class Attention(nn.Module):
    """Multi-head self-attention with token scores for reducers."""

    # `Block.attend_reduced` reduces tokens inside attention, so it calls the methods
    # one by one.
    config: ViTConfig
    execution: Execution
    prop_attn: bool = False  # add log(size) to the logits

    def setup(self):
        config = self.config
        arch = config.arch
        dtype = self.execution.dtype
        projection = functools.partial(dense, config.embed_dim, dtype)
        # Separate projections give contiguous results; a joint qkv would be split.
        in_keys = self.execution.size_encoding == "direction"
        self.q = projection(use_bias=arch.qkv_bias or in_keys)
        self.v = projection(use_bias=arch.qkv_bias)
        self.k = projection(use_bias=arch.qkv_bias and arch.key_bias)
        self.proj = projection()
        if arch.attn_norm:
            self.norm = LayerNorm(dtype, arch.norm_eps)
        if in_keys:
            # Keys carry log sizes along a direction per head. Reducers compare the mean
            # key over heads without them, a product of its own (`_mean_key`).
            head_dim = config.head_dim
            of_heads = (config.num_heads, head_dim)
            self.size_direction = self.param("size_direction", zeros, of_heads)
            of_channels = (config.embed_dim, head_dim)
            self.mean_key = self.param("mean_key", zeros, of_channels)
            self.mean_key_bias = self.param("mean_key_bias", zeros, (head_dim,))

    def __call__(self, x, state, reads=frozenset(), train=False, queries=None):
        """Attend: (output [B, N, D], the dict of `scores`).

        x: [B, N, D], the normed tokens of `state`
        queries: attend only from the first tokens (no reduction follows); None: all
        """
        length = x.shape[1]
        if train and state.mask is None and queries is None:
            # Padding x costs nothing, because x is written anyway. Padding query, key
            # and value would copy them.
            x = _pad(x, padded_length(length, self.execution.attention_impl))
        heads = self.project(x, state, queries=queries)
        out = self.attend(heads, length)
        scores = self.scores(heads, reads, state)
        return self.output(out)[:, :length], scores

    def project(self, x, state, with_value=True, queries=None) -> Heads:
        """Project tokens to queries, keys and values.

        x: [B, N, D], the normed tokens of `state`, possibly with padding after them
        queries: project queries of the first tokens only; None: of all
        """
        # All tokens form one matrix: for [B, N, D] XLA may choose layouts with the
        # batch innermost, and then transposes whole arrays in the backward pass.
        rows = x.reshape(-1, self.config.embed_dim)
        shape = (x.shape[0], -1, self.config.num_heads, self.config.head_dim)
        first = rows
        if queries is not None:
            first = x[:, :queries].reshape(-1, self.config.embed_dim)
        query = self.q(first).reshape(shape)
        key = self.k(rows).reshape(shape)
        value = None
        if with_value:
            value = self.v(rows).reshape(shape)
        unrotated = {"query": query, "key": key, "value": value, "input": x}
        rotations = self._rotations(state)
        if rotations is not None:
            rotations = tuple(_pad(a, x.shape[1]) for a in rotations)
            key = self.config.arch.rotary.rotate(key, rotations)
            rotations = tuple(a[:, :queries] for a in rotations)
            query = self.config.arch.rotary.rotate(query, rotations)
        key_bias = None
        if self.prop_attn and not state.grid:  # with a grid all sizes are 1
            key_bias = jnp.log(state.effective_size)
        if key_bias is not None and self.execution.size_encoding == "direction":
            key = self._sized(key, key_bias)
            key_bias = None
        return Heads(query, key, value, unrotated, key_bias, state.full_mask)

    def _sized(self, key, log_size):
        """Move keys along the size directions, which adds log_size to their logits.

        key: [B, N, H, d], orthogonal to the directions
        log_size: [B, N]
        """
        # Along its direction every query is QUERY_SCALE (`inference.size_direction`);
        # the factor cancels that and attention's division by sqrt(d).
        factor = key.shape[-1] ** 0.5 / QUERY_SCALE
        direction = factor * self.size_direction.astype(jnp.float32)[None, None]
        if is_fast(key):
            # In the keys' type the addition fuses into the matrix product before it.
            along = log_size[:, :, None] * direction.reshape(1, 1, -1)
            rows = key.reshape(along.shape) + along.astype(key.dtype)
            return rows.reshape(key.shape)
        along = log_size[:, :, None, None] * direction
        return (key.astype(jnp.float32) + along).astype(key.dtype)

    def value(self, x):
        """Project normed tokens to values. [B, N, D] -> [B, N, H, d]."""
        value = self.v(x.reshape(-1, self.config.embed_dim))
        return value.reshape(*x.shape[:2], self.config.num_heads, -1)

    def scores(self, heads, reads, state):
        """Token scores for reducers, without padding: a dict of the names in `reads`.

        Image token scores: ATTENTION_SCORES [B, n] float32, as in ReducerInputs;
        "key", "query" and "value" [B, n, d], means over heads; "input" [B, n, D]. In
        size encoding "direction", "key" comes with "all_keys" [B, N, d], prefix
        included.
        """
        length = state.x.shape[1]
        query = heads.query[:, :length]
        key = heads.key[:, :length]
        bias = heads.key_bias
        live = None
        if heads.mask is not None:
            # Scores select tokens and have no gradient. They see live tokens only.
            live = (heads.mask > 0.5).astype(jnp.float32)
            gone = jnp.where(heads.mask > 0.5, jnp.float32(0), -jnp.inf)
            bias = gone if bias is None else bias + gone
        unrotated = heads.unrotated
        scores = {}
        if "cls_attn" in reads:
            attention = mean_attention(query[:, :1], key, bias)
            scores["cls_attn"] = state.image(attention)
        if "mean_attn" in reads:
            attention = mean_attention(mean_query(query, live), key, bias)
            scores["mean_attn"] = state.image(attention)
        if "cls_and_mean_attn" in reads:
            both = class_and_mean_queries(query, live)
            attention = mean_attention(both, key, bias)
            scores["cls_and_mean_attn"] = state.image(attention)
        if "attn_columns" in reads:
            received = attention_columns(query, key, bias, live)
            scores["attn_columns"] = state.image(received)
        if "input" in reads:
            scores["input"] = unrotated["input"][:, state.num_prefix : length]
        # Means include the prefix: for a product a slice of x would be copied first.
        for name in ("key", "query", "value"):
            if name not in reads:
                continue
            if name == "key" and self.execution.size_encoding == "direction":
                means = self._mean_key(unrotated["input"])
                scores["all_keys"] = means[:, :length]
            else:
                means = jnp.mean(unrotated[name], axis=2, dtype=jnp.float32)
            scores[name] = means[:, state.num_prefix : length]
        return scores

    def _mean_key(self, x):
        """Mean key over heads, without directions. [B, N, D] -> [B, N, d] float32."""
        product = jnp.dot(
            x.reshape(-1, self.config.embed_dim).astype(self.execution.dtype),
            self.mean_key.astype(self.execution.dtype),
            preferred_element_type=jnp.float32,
        )
        key = product + self.mean_key_bias.astype(jnp.float32)[None]
        return key.reshape(*x.shape[:2], -1)

    def weights(self, heads):
        """Attention weights, [B, H, N, N] float32."""
        return attention_map(heads.query, heads.key, heads.key_bias, heads.mask)

    def attend(self, heads, length):
        """Attend from every query to the first `length` tokens. -> [B, Q, H, d]."""
        query, key, value, _, bias, mask = heads
        if mask is not None:
            return weighted_sum(attention_map(query, key, bias, mask), value)
        bias = _pad(bias, key.shape[1])
        # cuDNN cannot train with a single query.
        backend = self.execution.attention_impl if query.shape == key.shape else "xla"
        return attend(query, key, value, bias, backend=backend, length=length)

    def output(self, out):
        """Project the heads' results. [B, N, H, d] -> [B, N, D]."""
        rows = out.reshape(-1, self.config.embed_dim)
        if self.config.arch.attn_norm:
            rows = self.norm(rows)
        return self.proj(rows).reshape(*out.shape[:2], self.config.embed_dim)

    def _rotations(self, state):
        """(cosines, sines) of the tokens' rotary positions; None without rotary."""
        rotary = self.config.arch.rotary
        width = self.config.head_dim
        if rotary is None:
            return None
        if state.grid:  # nothing is reduced yet, so all images share their positions
            return rotary.grid_rotations(state.grid, width, state.num_prefix)
        return rotary.rotations(state.coordinates, width, state.num_prefix)
