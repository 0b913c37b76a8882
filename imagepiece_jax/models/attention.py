"""Self-attention and the token scores for reducers.

A separate product computes the class token's attention row, so the attention itself can
run as a fused kernel without an N x N matrix.
"""

from collections.abc import Set
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.kernels import attention_scores
from imagepiece_jax.kernels.array_shapes import QueryHeads, TokenHeads, TokenRows
from imagepiece_jax.kernels.attention import (
    attention_columns,
    attention_map,
    dot_product_attention,
    pad_for_training,
    pad_tokens,
    weighted_sum,
)
from imagepiece_jax.kernels.size_direction import add_sizes
from imagepiece_jax.kernels.token_layout import flatten_tokens, row_shape
from imagepiece_jax.models.config import Execution, ViTConfig
from imagepiece_jax.models.layers import LayerNorm, dense_layer
from imagepiece_jax.reduction.state import TokenState


class Heads(NamedTuple):
    """Queries, keys and values of N tokens, including the prefix."""

    query: QueryHeads  # of all or of the first tokens
    key: TokenHeads
    value: Any  # [batch, tokens, heads, head_dim]; None: not computed yet
    # "query", "key" and "value" before rotary positions rotate them, and "input", the
    # tokens x: reducers score tokens without positions
    score_inputs: dict[str, jax.Array]
    # log sizes of proportional attention
    key_bias: Float[Array, "batch tokens"] | None
    # 0 for masked tokens; None outside masked training
    mask: Float[Array, "batch tokens"] | None


class Attention(nn.Module):
    """Multi-head self-attention with token scores for reducers."""

    # `Block.attend_reduced` reduces tokens inside attention, so it calls the methods
    # one by one.
    config: ViTConfig
    execution: Execution
    prop_attn: bool = False  # add log(size) to the logits
    query_bias = False  # whether queries have a bias even without `qkv_bias`

    def setup(self) -> None:
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

    def __call__(
        self,
        x: TokenRows,
        state: TokenState,
        score_names: Set[str] = frozenset(),
        train: bool = False,
        num_queries: int | None = None,
    ) -> tuple[Float[Array, "batch returned dim"], dict[str, jax.Array]]:
        """Attend: (output, the dict of `token_scores`).

        x: the normed tokens of `state`
        num_queries: attend only from the first tokens (no reduction follows); None: all
        """
        num_tokens = x.shape[1]
        if train and state.mask is None and num_queries is None:
            x = pad_for_training(x, self.execution.attention_impl)
        heads = self.project_heads(x, state, num_queries=num_queries)
        query, key, value, _, key_bias, mask = heads
        if mask is not None:
            attention = attention_map(query, key, key_bias, mask)
            out = weighted_sum(attention, value)
        else:
            backend = self.execution.attention_impl
            out = dot_product_attention(
                query, key, value, key_bias, backend=backend, length=num_tokens
            )
        scores = self.token_scores(heads, score_names, state)
        return self.project_output(out)[:, :num_tokens], scores

    def project_heads(
        self,
        x: TokenRows,
        state: TokenState,
        with_value: bool = True,
        num_queries: int | None = None,
    ) -> Heads:
        """Project tokens to queries, keys and values.

        x: the normed tokens of `state`, possibly with padding after them
        num_queries: only the first tokens have queries; None: all
        """
        token_rows = flatten_tokens(x)
        query_rows = token_rows
        if num_queries is not None:
            query_rows = flatten_tokens(x[:, :num_queries])
        query = self._split_heads(self.q(query_rows), x)
        key = self._split_heads(self.k(token_rows), x)
        score_inputs = {"query": query, "key": key, "input": x}
        value = None
        if with_value:
            value = self._split_heads(self.v(token_rows), x)
            score_inputs["value"] = value
        rotary = self.config.arch.rotary
        if rotary is not None:
            arguments = (self.config.head_dim, state.num_prefix)
            coordinates: Any = state.coordinates  # a rotary model's tokens have them
            # With a grid nothing is reduced yet: all images share their positions.
            if state.grid:
                rotations = rotary.grid_rotations(state.grid, *arguments)
            else:
                rotations = rotary.rotations(coordinates, *arguments)
            cos, sin = (pad_tokens(cast(Any, a), x.shape[1]) for a in rotations)
            key = rotary.rotate(key, (cos, sin))
            query = rotary.rotate(query, (cos[:, :num_queries], sin[:, :num_queries]))
        key_bias = None
        if self.prop_attn and not state.grid:  # with a grid all sizes are 1
            key_bias = jnp.log(state.effective_size)
        return Heads(query, key, value, score_inputs, key_bias, state.full_mask)

    def project_values(self, x: TokenRows) -> TokenHeads:
        """Project normed tokens to values."""
        return self._split_heads(self.v(flatten_tokens(x)), x)

    def _split_heads(self, token_rows, x):
        """Split rows of tokens x into heads."""
        shape = (x.shape[0], -1, self.config.num_heads, self.config.head_dim)
        return token_rows.reshape(shape)

    def token_scores(
        self, heads: Heads, score_names: Set[str], state: TokenState
    ) -> dict[str, jax.Array]:
        """Image token scores for reducers, without padding: the names in `score_names`.

        ATTENTION_SCORES [batch, tokens] are float32, as in ReducerInputs; "key",
        "query" and "value" [batch, tokens, head_dim] are means over heads.
        """
        num_tokens = state.x.shape[1]
        query = heads.query[:, :num_tokens]
        key = heads.key[:, :num_tokens]
        bias = heads.key_bias
        live_mask = None
        if heads.mask is not None:
            # Scores select tokens and have no gradient. They see live tokens only.
            live_mask = (heads.mask > 0.5).astype(jnp.float32)
            mask_bias = jnp.where(heads.mask > 0.5, jnp.float32(0), -jnp.inf)
            bias = mask_bias if bias is None else bias + mask_bias
        image_slice = slice(state.num_prefix, num_tokens)
        scores = {}
        if "cls_attn" in score_names:
            attention = attention_scores.mean_attention(query[:, :1], key, bias)
            scores["cls_attn"] = attention[:, image_slice]
        if "mean_attn" in score_names:
            mean_query = attention_scores.mean_query(query, live_mask)
            attention = attention_scores.mean_attention(mean_query, key, bias)
            scores["mean_attn"] = attention[:, image_slice]
        if "cls_and_mean_attn" in score_names:
            queries = attention_scores.class_and_mean_queries(query, live_mask)
            attention = attention_scores.mean_attention(queries, key, bias)
            scores["cls_and_mean_attn"] = attention[:, image_slice]
        if "attn_columns" in score_names:
            columns = attention_columns(query, key, bias, live_mask)
            scores["attn_columns"] = columns[:, image_slice]
        if "input" in score_names:
            scores["input"] = heads.score_inputs["input"][:, image_slice]
        # Means include the prefix: for a product a slice of x would be copied first.
        for name in ("key", "query", "value"):
            if name in score_names:
                vectors = heads.score_inputs[name]
                head_means = jnp.mean(vectors, axis=2, dtype=jnp.float32)
                scores[name] = head_means[:, image_slice]
        return scores

    def project_output(self, out: TokenHeads) -> TokenRows:
        """Project the heads' results."""
        head_rows = out.reshape(*row_shape(out), self.config.embed_dim)
        if self.config.arch.attn_norm:
            head_rows = self.norm(head_rows)
        return self.proj(head_rows).reshape(*out.shape[:2], self.config.embed_dim)


class DirectedAttention(Attention):
    """Attention with variables from `inference.size_direction.fold_sizes`."""

    query_bias = True

    def setup(self) -> None:
        super().setup()
        config = self.config
        init = nn.initializers.zeros
        per_head_shape = (config.num_heads, config.head_dim)
        self.size_direction = self.param("size_direction", init, per_head_shape)
        key_shape = (config.embed_dim, config.head_dim)
        self.mean_key = self.param("mean_key", init, key_shape)
        self.mean_key_bias = self.param("mean_key_bias", init, (config.head_dim,))

    def project_heads(self, x, state, with_value=True, num_queries=None):
        """As in Attention; keys carry the sizes, so there is no key bias."""
        heads = super().project_heads(x, state, with_value, num_queries)
        if heads.key_bias is None:
            return heads
        key = add_sizes(heads.key, heads.key_bias, self.size_direction)
        return heads._replace(key=key, key_bias=None)

    def token_scores(self, heads, score_names, state):
        """As in Attention; "key" comes with "all_keys", prefix included."""
        scores = super().token_scores(heads, score_names - {"key"}, state)
        if "key" in score_names:
            # Reducers compare the mean key over heads without sizes, a product of its
            # own.
            x, dtype = heads.score_inputs["input"], self.execution.dtype
            rows, kernel = flatten_tokens(x).astype(dtype), self.mean_key.astype(dtype)
            product = jnp.dot(rows, kernel, preferred_element_type=jnp.float32)
            mean_keys = product + self.mean_key_bias.astype(jnp.float32)[None]
            mean_keys = mean_keys.reshape(*x.shape[:2], -1)
            scores["all_keys"] = mean_keys[:, : state.x.shape[1]]
            scores["key"] = state.image_rows(scores["all_keys"])
        return scores
