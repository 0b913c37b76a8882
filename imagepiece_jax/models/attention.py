"""Self-attention that can tell a reducer what it saw without building the N x N matrix.

The class token's attention row is one extra q.k product, so the values can go through a
fused kernel. Query, key and value are separate projections: each is then one product
with its bias in the epilogue and a contiguous result, where a joint one must be split.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from imagepiece_jax.errors import InputError

BACKENDS = ("auto", "xla", "cudnn")
INIT = nn.initializers.normal(0.02)


@struct.dataclass
class AttentionTaps:
    """What a reducer asked for; prefix columns are dropped, the rest is None.

    cls_attn: [B, n] float32, mean over heads; attn_columns: [B, n] float32, attention
    received, summed over heads and queries; metric: [B, n, d], mean over heads.
    """

    cls_attn: jax.Array | None = None
    attn_columns: jax.Array | None = None
    metric: jax.Array | None = None


def resolve_backend(requested, dtype, head_dim=64):
    """The attention kernel to use: "xla" or "cudnn".

    "auto" takes cuDNN's fused attention where it runs, XLA's otherwise. InputError for
    an unknown name, and for "cudnn" where it does not run.
    """
    if requested not in BACKENDS:
        listed = ", ".join(repr(b) for b in BACKENDS)
        raise InputError(
            f"config.model.attention is {requested!r}; allowed are {listed}"
        )
    if requested == "xla":
        return requested
    obstacle = _no_cudnn(jax.local_devices()[0], jnp.dtype(dtype), head_dim)
    if requested == "cudnn" and obstacle:
        raise InputError(
            f"config.model.attention is 'cudnn', which needs {obstacle}; allowed here "
            "are 'xla' and 'auto'"
        )
    return "xla" if obstacle else "cudnn"


def _no_cudnn(device, dtype, head_dim):
    """What cuDNN's fused attention lacks, in words; None where it runs."""
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):  # no GPU; AMD's capabilities are names
        capability = 0.0
    if device.platform != "gpu" or capability < 8.0:
        return f"an NVIDIA GPU of compute capability 8.0 or more, not {device}"
    if dtype.itemsize != 2:
        return f"config.model.dtype 'bfloat16' or 'float16', not {dtype.name!r}"
    if head_dim % 8 or head_dim > 128:
        return f"heads of a width of 8, 16, .. 128, not {head_dim}"
    return None


def class_attention(query, key, key_bias=None):
    """Attention of the class token to every token, mean over heads, in float32.

    query [B, H, d] of the class token, key [B, N, H, d], key_bias [B, N] added to the
    logits -> [B, N]. The softmax runs over all N columns, the class
    token's too; callers drop those they do not rank.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bhd,bnhd->bhn",
        query,
        key,
        precision="highest",  # less may flip near ties
        preferred_element_type=jnp.float32,
    )
    logits = logits * scale
    if key_bias is not None:
        logits = logits + key_bias[:, None, :]
    return jnp.mean(jax.nn.softmax(logits, axis=-1), axis=1)


def attend(query, key, value, key_bias=None, *, backend="xla", train=False):
    """softmax(q k^T / sqrt(d) + key_bias) v. [B, N, H, d] three times -> [B, N, H, d].

    `key_bias` [B, N] float32 is proportional attention's log size. cuDNN's backward
    pass refuses odd lengths, so training pads one masked token where N is odd.
    """
    batch, length = query.shape[:2]
    bias = None if key_bias is None else key_bias[:, None, None, :]
    lengths = None
    if backend == "cudnn" and train and length % 2:
        pad = ((0, 0), (0, 1), (0, 0), (0, 0))
        query, key, value = (jnp.pad(a, pad) for a in (query, key, value))
        bias = None if bias is None else jnp.pad(bias, ((0, 0),) * 3 + ((0, 1),))
        lengths = jnp.full((batch,), length, jnp.int32)
    if bias is not None and backend == "cudnn":  # which wants a row for every query
        shape = (batch, 1, query.shape[1], key.shape[1])
        bias = jnp.broadcast_to(bias.astype(query.dtype), shape)
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=backend,
    )
    return out[:, :length]


def masked_attend(query, key, value, mask, key_bias=None, eps=1e-6):
    """Attention in which masked tokens are read by nobody but themselves.

    [B, N, H, d] three times, mask [B, N] (1 live, 0 masked, differentiable) -> [B, N,
    H, d]. With P the exponentials and W the mask's columns, 1 on the diagonal: (P W +
    eps / N) / (sum P W + eps), finite when everything is masked (DynamicViT, Rao et al.
    2021). Needs the whole matrix, in float32.
    """
    length, width = key.shape[1], query.shape[-1]
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * width**-0.5
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    itself = jnp.eye(length, dtype=jnp.float32)[None]
    seen = itself + (1 - itself) * mask.astype(jnp.float32)[:, None, :]
    weights = jnp.exp(logits - top) * seen[:, None]
    total = jnp.sum(weights, axis=-1, keepdims=True)
    share = (weights + eps / length) / (total + eps)
    return jnp.einsum("bhqk,bkhd->bqhd", share.astype(value.dtype), value)


def attention_columns(query, key, key_bias=None):
    """Attention that each token receives. [B, N, H, d] twice -> [B, N] float32.

    Summed over heads and queries; needs the whole matrix (Token Pooling, Marin et al.
    2023).
    """
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * query.shape[-1] ** -0.5
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    return jnp.sum(jax.nn.softmax(logits, axis=-1), axis=(1, 2))


class Attention(nn.Module):
    """Multi-head self-attention of DeiT, with taps for a reducer."""

    num_heads: int
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x,
        key_bias=None,
        mask=None,
        *,
        needs=(),
        metric=None,
        num_prefix=1,
        train=False,
    ):
        """x [B, N, D] -> ([B, N, D], AttentionTaps).

        `needs` is a reducer's: "cls_attn", "attn_columns", "metric"; `metric` names the
        projection that is compared: "key", "query" or "value". `mask` [B, N] is masked
        training's.
        """
        batch, length, dim = x.shape
        heads = (batch, length, self.num_heads, dim // self.num_heads)

        def project(name, x):
            return nn.Dense(dim, kernel_init=INIT, dtype=self.dtype, name=name)(x)

        # One matrix of tokens: with [B, N, D] XLA may choose batch-minor layouts, and
        # then transposes whole arrays in the backward pass.
        flat = x.reshape(-1, dim)
        query, key, value = (project(name, flat).reshape(heads) for name in "qkv")
        if mask is None:
            out = attend(query, key, value, key_bias, backend=self.backend, train=train)
        else:
            out = masked_attend(query, key, value, mask, key_bias)
            # Taps choose tokens: they see live ones alone, and carry no gradient.
            live = jnp.where(mask > 0.5, 0.0, -jnp.inf)
            key_bias = live if key_bias is None else key_bias + live
        out = project("proj", out.reshape(-1, dim)).reshape(x.shape)
        taps = AttentionTaps()
        if "cls_attn" in needs:
            row = class_attention(query[:, 0], key, key_bias)
            taps = taps.replace(cls_attn=row[:, num_prefix:])
        if "attn_columns" in needs:
            received = attention_columns(query, key, key_bias)
            taps = taps.replace(attn_columns=received[:, num_prefix:])
        if "metric" in needs and metric != "token":
            features = {"query": query, "key": key, "value": value}[metric]
            mean = jnp.mean(features[:, num_prefix:], axis=2, dtype=jnp.float32)
            taps = taps.replace(metric=mean)
        return out, taps
