"""Self-attention with taps for reducers, without building the N x N matrix.

The class token's attention row is one extra q.k product, so the values can go through a
fused kernel. Query, key and value are separate projections: each is then one product
with its bias in the epilogue and a contiguous result, where a joint one must be split.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from imagepiece_jax.common.nodes import node
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import custom_vjp
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.layers import INIT, LayerNorm
from imagepiece_jax.reduction.ops import class_attention, uniqueness

BACKENDS = ("auto", "xla", "cudnn")


@struct.dataclass
class AttentionTaps:
    """What a reducer needs of an attention, the rest None; without prefix columns.

    cls_attn: [B, n] float32, mean over heads; attn_columns: [B, n] float32, attention
    received, mean over heads and queries; energy: [B, n] float32 (`uniqueness`);
    metric: [B, n, d], mean over heads, before rotary positions turn them; query, key:
    [B, N, H, d], prefix included, for a kernel that makes its own of them.
    """

    cls_attn: jax.Array | None = None
    attn_columns: jax.Array | None = None
    energy: jax.Array | None = None
    metric: jax.Array | None = None
    query: jax.Array | None = None
    key: jax.Array | None = None


def resolve_backend(requested, dtype, head_dim=64, device=None):
    """The attention kernel to use on `device` (None: the first): "xla" or "cudnn".

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
    device = device or jax.local_devices()[0]
    obstacle = _no_cudnn(device, jnp.dtype(dtype), head_dim)
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


def padded_length(length, backend):
    """The length with which `backend` can be trained: cuDNN refuses odd ones."""
    return length + length % 2 if backend == "cudnn" else length


@node
def attend(query, key, value, key_bias=None, *, backend="xla", length=None):
    """softmax(q k^T / sqrt(d) + key_bias) v. [B, N, H, d] three times -> [B, N, H, d].

    `key_bias` [B, N] float32 is proportional attention's log size. Keys from `length`
    on (None: there are none) are padding, which no token attends to and whose gradient
    is zero; as queries they are like any other, so that all outputs are finite.
    """
    batch, padded = query.shape[:2]
    bias = None if key_bias is None else key_bias[:, None, None, :]
    lengths = {}
    if length is not None and length != padded:
        key, value = (custom_vjp.padded_from(a, length) for a in (key, value))
        sizes = {"query_seq_lengths": padded, "key_value_seq_lengths": length}
        lengths = {k: jnp.full((batch,), n, jnp.int32) for k, n in sizes.items()}
    if bias is not None and backend == "cudnn":  # which wants a row for every query
        bias = jnp.broadcast_to(bias.astype(query.dtype), (batch, 1, padded, padded))
    return jax.nn.dot_product_attention(
        query, key, value, bias=bias, implementation=backend, **lengths
    )


def masked_attend(query, key, value, mask, key_bias=None, eps=1e-6):
    """Attention in which only a masked token itself attends to it.

    [B, N, H, d] three times, mask [B, N] (1 live, 0 masked, differentiable) -> [B, N,
    H, d]. Needs the whole matrix (`attention_map`).
    """
    share = attention_map(query, key, key_bias, mask, eps)
    return jnp.einsum("bhqk,bkhd->bqhd", share.astype(value.dtype), value)


def attention_map(query, key, key_bias=None, mask=None, eps=1e-6):
    """Attention of every token to every token. [B, N, H, d] -> [B, H, N, N] float32.

    key_bias [B, N] is added to the logits. mask [B, N] (1 live, 0 masked,
    differentiable): with P the exponentials and W the mask's columns, 1 on the
    diagonal, (P W + eps / N) / (sum P W + eps), finite when everything is masked
    (DynamicViT, Rao et al. 2021).
    """
    length, width = key.shape[1], query.shape[-1]
    logits = jnp.einsum(
        "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
    )
    logits = logits * width**-0.5
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    itself = jnp.eye(length, dtype=jnp.float32)[None]
    seen = itself + (1 - itself) * mask.astype(jnp.float32)[:, None, :]
    weights = jnp.exp(logits - top) * seen[:, None]
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (weights + eps / length) / (total + eps)


def masked_read(query, key, value, mask, key_bias=None, eps=1e-6):
    """What one query reads of the tokens that are not masked.

    query [1, 1, H, d], key, value [B, N, H, d], mask [B, N] (1 live, 0 masked,
    differentiable), key_bias [B, N] -> [B, H, d] float32. `eps` as in `masked_attend`.
    """
    logits = jnp.sum(query.astype(jnp.float32) * key.astype(jnp.float32), axis=-1)
    logits = logits * query.shape[-1] ** -0.5
    if key_bias is not None:
        logits = logits + key_bias[:, :, None]
    top = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    weights = jnp.exp(logits - top) * mask.astype(jnp.float32)[:, :, None]
    total = jnp.sum(weights, axis=1, keepdims=True)
    share = (weights + eps / key.shape[1]) / (total + eps)
    return jnp.sum(share[..., None] * value.astype(jnp.float32), axis=1)


def attention_columns(query, key, key_bias=None, live=None):
    """Attention that each token receives. [B, N, H, d] twice -> [B, N] float32.

    Mean over heads and queries, those that are `live` [B, N] (1, else 0; None: all);
    needs the whole matrix (Token Pooling, Marin et al. 2023).
    """
    weights = attention_map(query, key, key_bias)
    if live is None:
        return jnp.mean(weights, axis=(1, 2))
    received = jnp.sum(jnp.mean(weights, axis=1) * live[:, :, None], axis=1)
    return received / jnp.sum(live, axis=1, keepdims=True)


def _pad(x, length):
    """[B, N, ...] -> [B, length, ...], zeros at the end."""
    if x.shape[1] == length:
        return x
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def attention_taps(
    needs, held, query, key, key_bias=None, live=None, *, metric, margin, num_prefix
) -> AttentionTaps:
    """Those of `needs`, without prefix where a reducer chooses by them.

    held: what is compared, by name: [B, N, H, d] before rotary positions turn it, and
    "input" [B, N, D]. query, key [B, N, H, d]: as they are multiplied. key_bias and
    live [B, N] (1, else 0): with the prefix. metric, margin, num_prefix: as `Attention`
    takes them.
    """

    def mean(name):
        """[B, n, d] without prefix: the mean over heads in float32; x as it is."""
        own = held[name][:, num_prefix:]
        return own if name == "input" else jnp.mean(own, axis=2, dtype=jnp.float32)

    found = {}
    if "projected" in needs:
        found |= {name: held[name] for name in ("query", "key")}
    if "heads" in needs:
        found |= {"query": query, "key": key}
    if "cls_attn" in needs:
        row = class_attention(query[:, 0], key, key_bias)
        found["cls_attn"] = row[:, num_prefix:]
    if "attn_columns" in needs:
        received = attention_columns(query, key, key_bias, live)
        found["attn_columns"] = received[:, num_prefix:]
    if "energy" in needs:
        counted = None if live is None else live[:, num_prefix:]
        found["energy"] = uniqueness(mean("key"), margin, counted)
    if "metric" in needs and metric != "token":
        found["metric"] = mean(metric)
    return AttentionTaps(**found)


class Attention(nn.Module):
    """Multi-head self-attention, with taps for a reducer."""

    num_heads: int
    backend: str = "xla"
    dtype: jnp.dtype = jnp.float32
    arch: Architecture = Architecture()

    @nn.compact
    def __call__(
        self,
        x,
        key_bias=None,
        mask=None,
        turns=None,
        *,
        needs=(),
        metric=None,
        margin=0.0,
        num_prefix=1,
        train=False,
        merge=None,
    ):
        """x [B, N, D] -> ([B, N, D], AttentionTaps).

        `needs` is a reducer's: "cls_attn", "attn_columns", "energy", "metric"; or query
        and key themselves, "heads" as they are multiplied or "projected" as they were
        before rotary positions turned them. `metric` names the projection that is
        compared: "key", "query" or "value", or x itself, "input"; `margin` is the
        energy's. `mask` [B, N] is masked training's; `turns` are those of rotary
        positions (rotary.Rotary). `merge` is a reduction before the values: (map
        [B, H, N, N], taps) -> (map [B, H, M, M], x [B, M, D] of the values); the taps
        then have no value, and the result is [B, M, D].
        """
        batch, length, dim = x.shape
        padded = length
        if train and mask is None and merge is None:
            # Here x is written anyway: no copies of query, key and value for it.
            padded = padded_length(length, self.backend)
            x = _pad(x, padded)
        heads = (batch, padded, self.num_heads, dim // self.num_heads)

        def project(name, x, use_bias=True):
            options = {"kernel_init": INIT, "dtype": self.dtype, "use_bias": use_bias}
            return nn.Dense(dim, name=name, **options)(x)

        # One matrix of tokens: with [B, N, D] XLA may choose batch-minor layouts, and
        # then transposes whole arrays in the backward pass.
        flat = x.reshape(-1, dim)
        arch = self.arch
        biased = dict.fromkeys("qkv", arch.qkv_bias)
        biased["k"] = arch.qkv_bias and arch.key_bias
        names = ("query", "key", "value")[: 3 if merge is None else 2]
        query, key, *value = (
            project(name[0], flat, biased[name[0]]).reshape(heads) for name in names
        )
        projected, live, seen_bias = (query, key), None, key_bias
        if turns is not None:
            turns = tuple(_pad(a, padded) for a in turns)
            query, key = (arch.rotary.rotate(a, turns) for a in (query, key))
        if mask is not None:
            # Taps choose tokens: they see live ones alone, and carry no gradient.
            live = (mask > 0.5).astype(jnp.float32)
            gone = jnp.where(mask > 0.5, 0.0, -jnp.inf)
            seen_bias = gone if key_bias is None else key_bias + gone
        if merge is not None:
            weights = attention_map(query, key, key_bias, mask)
        elif mask is None:
            bias = None if key_bias is None else _pad(key_bias, padded)
            out = attend(query, key, *value, bias, backend=self.backend, length=length)
        else:
            out = masked_attend(query, key, *value, mask, key_bias)
        # What tokens hold is compared, wherever they stand: before positions turn it.
        held = dict(zip(names, (*projected, *value), strict=True)) | {"input": x}
        held = {name: a[:, :length] for name, a in held.items()}
        multiplied = query[:, :length], key[:, :length]
        options = {"metric": metric, "margin": margin, "num_prefix": num_prefix}
        taps = attention_taps(needs, held, *multiplied, seen_bias, live, **options)
        if merge is not None:
            weights, x = merge(weights, taps)
            length = x.shape[1]
            value = project("v", x.reshape(-1, dim), biased["v"])
            value = value.reshape(*x.shape[:2], *heads[2:])
            out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
        out = out.reshape(-1, dim)
        if arch.attn_norm:
            out = LayerNorm(self.dtype, arch.norm_eps, name="norm")(out)
        out = project("proj", out).reshape(x.shape)[:, :length]
        return out, taps
