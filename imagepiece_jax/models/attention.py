"""Self-attention and the token scores for reducers.

A separate product computes the class token's attention row, so the attention itself can
run as a fused kernel without an N x N matrix.
"""

from collections.abc import Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.kernels.array_shapes import QueryHeads, TokenHeads, TokenRows
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
        out = self.attend_heads(heads, num_tokens)
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
        rotations = self._token_rotations(state)
        if rotary is not None and rotations is not None:
            cos, sin = (pad_tokens(a, x.shape[1]) for a in rotations)
            key = rotary.rotate(key, (cos, sin))
            query = rotary.rotate(query, (cos[:, :num_queries], sin[:, :num_queries]))
        key_bias = None
        if self.prop_attn and not state.grid:  # with a grid all sizes are 1
            key_bias = jnp.log(state.effective_size)
        return Heads(query, key, value, score_inputs, key_bias, state.full_mask)

    def project_values(self, x: TokenRows) -> TokenHeads:
        """Project normed tokens to values."""
        return self._split_heads(self.v(flatten_tokens(x)), x)

    def _split_heads(
        self, token_rows: Float[Array, "*rows dim"], x: TokenRows
    ) -> QueryHeads:
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
            attention = mean_attention(query[:, :1], key, bias)
            scores["cls_attn"] = attention[:, image_slice]
        if "mean_attn" in score_names:
            attention = mean_attention(mean_query(query, live_mask), key, bias)
            scores["mean_attn"] = attention[:, image_slice]
        if "cls_and_mean_attn" in score_names:
            queries = class_and_mean_queries(query, live_mask)
            attention = mean_attention(queries, key, bias)
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

    def attention_weights(
        self, heads: Heads
    ) -> Float[Array, "batch heads tokens tokens"]:
        """Attention after softmax, in float32."""
        return attention_map(heads.query, heads.key, heads.key_bias, heads.mask)

    def attend_heads(self, heads: Heads, num_keys: int) -> QueryHeads:
        """Attend from every query to the first `num_keys` tokens."""
        query, key, value, _, key_bias, mask = heads
        if mask is not None:
            return weighted_sum(attention_map(query, key, key_bias, mask), value)
        backend = self.execution.attention_impl
        return dot_product_attention(
            query, key, value, key_bias, backend=backend, length=num_keys
        )

    def project_output(self, out: TokenHeads) -> TokenRows:
        """Project the heads' results."""
        head_rows = out.reshape(*row_shape(out), self.config.embed_dim)
        if self.config.arch.attn_norm:
            head_rows = self.norm(head_rows)
        return self.proj(head_rows).reshape(*out.shape[:2], self.config.embed_dim)

    def _token_rotations(self, state: TokenState) -> tuple[Any, Any] | None:
        """(cosines, sines) of the tokens' rotary positions; None without rotary."""
        rotary = self.config.arch.rotary
        rotary_arguments = (self.config.head_dim, state.num_prefix)
        if rotary is None:
            return None
        if state.grid:  # nothing is reduced yet, so all images share their positions
            return rotary.grid_rotations(state.grid, *rotary_arguments)
        coordinates: Any = state.coordinates  # a rotary model's tokens have them
        return rotary.rotations(coordinates, *rotary_arguments)
