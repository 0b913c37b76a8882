"""Self-attention and the token scores for reducers.

A separate product computes the class token's attention row, so the attention itself can
run as a fused kernel without an N x N matrix.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from imagepiece_jax.kernels.attention import (
    attention_columns,
    attention_map,
    dot_product_attention,
    pad_for_training,
    pad_tokens,
    weighted_sum,
)
from imagepiece_jax.kernels.attention_scores import (
    class_and_mean_queries,
    mean_attention,
    mean_query,
)
from imagepiece_jax.kernels.token_layout import flatten_tokens
from imagepiece_jax.models.config import Execution, ViTConfig
from imagepiece_jax.models.layers import LayerNorm, dense_layer


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
    query_bias = False  # whether queries have a bias even without `qkv_bias`

    def setup(self):
        arch = self.config.arch
        dtype = self.execution.dtype
        width = self.config.embed_dim
        # Separate projections give contiguous results; a joint qkv would be split.
        self.q = dense_layer(width, dtype, use_bias=arch.qkv_bias or self.query_bias)
        self.k = dense_layer(width, dtype, use_bias=arch.qkv_bias and arch.key_bias)
        self.v = dense_layer(width, dtype, use_bias=arch.qkv_bias)
        self.proj = dense_layer(width, dtype)
        if arch.attn_norm:
            self.norm = LayerNorm(dtype, arch.norm_eps)

    def __call__(self, x, state, reads=frozenset(), train=False, queries=None):
        """Attend: (output [B, N, D], the dict of `scores`).

        x: [B, N, D], the normed tokens of `state`
        queries: attend only from the first tokens (no reduction follows); None: all
        """
        length = x.shape[1]
        if train and state.mask is None and queries is None:
            x = pad_for_training(x, self.execution.attention_impl)
        heads = self.project(x, state, queries=queries)
        out = self.attend(heads, length)
        scores = self.scores(heads, reads, state)
        return self.output(out)[:, :length], scores

    def project(self, x, state, with_value=True, queries=None) -> Heads:
        """Project tokens to queries, keys and values.

        x: [B, N, D], the normed tokens of `state`, possibly with padding after them
        queries: project queries of the first tokens only; None: of all
        """
        matrix = flatten_tokens(x)
        first = matrix if queries is None else flatten_tokens(x[:, :queries])
        query = self._split(self.q(first), x)
        key = self._split(self.k(matrix), x)
        value = self._split(self.v(matrix), x) if with_value else None
        unrotated = {"query": query, "key": key, "value": value, "input": x}
        rotations = self._rotations(state)
        if rotations is not None:
            rotations = tuple(pad_tokens(a, x.shape[1]) for a in rotations)
            key = self.config.arch.rotary.rotate(key, rotations)
            rotations = tuple(a[:, :queries] for a in rotations)
            query = self.config.arch.rotary.rotate(query, rotations)
        key_bias = None
        if self.prop_attn and not state.grid:  # with a grid all sizes are 1
            key_bias = jnp.log(state.effective_size)
        return Heads(query, key, value, unrotated, key_bias, state.full_mask)

    def value(self, x):
        """Project normed tokens to values. [B, N, D] -> [B, N, H, d]."""
        return self._split(self.v(flatten_tokens(x)), x)

    def _split(self, matrix, x):
        """Split rows of tokens x [B, N, D] into heads, [B, N, H, d]."""
        shape = (x.shape[0], -1, self.config.num_heads, self.config.head_dim)
        return matrix.reshape(shape)

    def scores(self, heads, reads, state):
        """Token scores for reducers, without padding: a dict of the names in `reads`.

        Image token scores: ATTENTION_SCORES [B, n] float32, as in ReducerInputs;
        "key", "query" and "value" [B, n, d], means over heads; "input" [B, n, D].
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
        image = slice(state.num_prefix, length)
        scores = {}
        if "cls_attn" in reads:
            row = mean_attention(query[:, :1], key, bias)
            scores["cls_attn"] = row[:, image]
        if "mean_attn" in reads:
            row = mean_attention(mean_query(query, live), key, bias)
            scores["mean_attn"] = row[:, image]
        if "cls_and_mean_attn" in reads:
            row = mean_attention(class_and_mean_queries(query, live), key, bias)
            scores["cls_and_mean_attn"] = row[:, image]
        if "attn_columns" in reads:
            received = attention_columns(query, key, bias, live)
            scores["attn_columns"] = received[:, image]
        if "input" in reads:
            scores["input"] = heads.unrotated["input"][:, image]
        # Means include the prefix: for a product a slice of x would be copied first.
        for name in ("key", "query", "value"):
            if name in reads:
                means = jnp.mean(heads.unrotated[name], axis=2, dtype=jnp.float32)
                scores[name] = means[:, image]
        return scores

    def weights(self, heads):
        """Attention weights, [B, H, N, N] float32."""
        return attention_map(heads.query, heads.key, heads.key_bias, heads.mask)

    def attend(self, heads, length):
        """Attend from every query to the first `length` tokens. -> [B, Q, H, d]."""
        query, key, value, _, bias, mask = heads
        if mask is not None:
            return weighted_sum(attention_map(query, key, bias, mask), value)
        backend = self.execution.attention_impl
        return dot_product_attention(
            query, key, value, bias, backend=backend, length=length
        )

    def output(self, out):
        """Project the heads' results. [B, N, H, d] -> [B, N, D]."""
        matrix = out.reshape(-1, self.config.embed_dim)
        if self.config.arch.attn_norm:
            matrix = self.norm(matrix)
        return self.proj(matrix).reshape(*out.shape[:2], self.config.embed_dim)

    def _rotations(self, state):
        """(cosines, sines) of the tokens' rotary positions; None without rotary."""
        rotary = self.config.arch.rotary
        width = self.config.head_dim
        if rotary is None:
            return None
        if state.grid:  # nothing is reduced yet, so all images share their positions
            return rotary.grid_rotations(state.grid, width, state.num_prefix)
        return rotary.rotations(state.coordinates, width, state.num_prefix)
