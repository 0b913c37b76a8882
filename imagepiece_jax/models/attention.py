"""Self-attention with token scores for reducers, and attention pooling.

A separate product computes the class token's attention row, so the attention itself can
run as a fused kernel without an N x N matrix.
"""

from collections.abc import Set
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from imagepiece_jax.kernels import array_shapes, attention_scores
from imagepiece_jax.kernels import attention as attention_kernels
from imagepiece_jax.kernels.array_shapes import AllRows, TokenHeads, TokenRows
from imagepiece_jax.kernels.size_direction import add_sizes
from imagepiece_jax.kernels.token_layout import flatten_tokens, row_shape
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import Execution, ViTConfig
from imagepiece_jax.models.layers import NORMAL_INIT, LayerNorm, Mlp, dense_layer
from imagepiece_jax.reduction.state import TokenState


class Heads(NamedTuple):
    """Queries, keys and values of N tokens, including the prefix."""

    query: array_shapes.QueryHeads  # of all or of the first tokens
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
        # With a mask, or with few queries, no cuDNN kernel is trained.
        if train and state.mask is None and num_queries is None:
            x = attention_kernels.pad_for_training(x, self.execution.attention_impl)
        heads = self.project_heads(x, state, num_queries=num_queries)
        query, key, value, _, key_bias, mask = heads
        if mask is not None:
            attention = attention_kernels.attention_map(query, key, key_bias, mask)
            out = attention_kernels.weighted_sum(attention, value)
        else:
            backend = self.execution.attention_impl
            out = attention_kernels.dot_product_attention(
                query, key, value, key_bias, backend=backend, length=num_tokens
            )
        scores = self.token_scores(heads, score_names, state)
        return self.project_output(out)[:, :num_tokens], scores  # without padding

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
            head_dim = self.config.head_dim
            num_prefix = state.num_prefix
            # With a grid nothing is reduced yet: all images share their positions.
            if state.grid:
                rotations = rotary.grid_rotations(state.grid, head_dim, num_prefix)
            else:
                coordinates: Any = state.coordinates  # set in a rotary model
                rotations = rotary.rotations(coordinates, head_dim, num_prefix)
            # Padding tokens of x have no coordinates. [batch or 1, tokens, 1, planes]
            pad_tokens = attention_kernels.pad_tokens
            cos = pad_tokens(cast(Any, rotations[0]), x.shape[1])
            sin = pad_tokens(cast(Any, rotations[1]), x.shape[1])
            key = rotary.rotate(key, (cos, sin))
            query = rotary.rotate(query, (cos[:, :num_queries], sin[:, :num_queries]))
        key_bias = None
        if self.prop_attn and not state.grid:  # with a grid all sizes are 1
            key_bias = jnp.log(state.effective_size)
        return Heads(query, key, value, score_inputs, key_bias, state.full_mask)

    def _split_heads(self, token_rows, x):
        """Split projected tokens of x, as rows of a matrix, into heads."""
        # The rows may be those of x's first tokens alone, hence -1.
        shape = (x.shape[0], -1, self.config.num_heads, self.config.head_dim)
        return token_rows.reshape(shape)

    def project_values(self, x: TokenRows) -> TokenHeads:
        """Project normed tokens to values."""
        return self._split_heads(self.v(flatten_tokens(x)), x)

    def token_scores(
        self, heads: Heads, score_names: Set[str], state: TokenState
    ) -> dict[str, jax.Array]:
        """Image token scores for reducers, without padding: the names in `score_names`.

        ATTENTION_SCORES [batch, tokens] are float32, as in ReducerInputs; "key",
        "query" and "value" [batch, tokens, head_dim] are means over heads.
        """
        num_tokens = state.x.shape[1]
        query = heads.query[:, :num_tokens]  # [batch, tokens, heads, head_dim]
        key = heads.key[:, :num_tokens]
        bias = heads.key_bias
        live_mask = None
        if heads.mask is not None:
            # Scores select tokens and have no gradient. They see live tokens only. The
            # mask is 0 or 1, but has a gradient, so it is floats.
            live_mask = (heads.mask > 0.5).astype(jnp.float32)
            mask_bias = jnp.where(heads.mask > 0.5, jnp.float32(0), -jnp.inf)
            bias = mask_bias if bias is None else bias + mask_bias
        image_slice = slice(state.num_prefix, num_tokens)
        scores = {}

        def attend_from(queries):
            return attention_scores.mean_attention(queries, key, bias)[:, image_slice]

        if "cls_attn" in score_names:  # from the class token, the first
            scores["cls_attn"] = attend_from(query[:, :1])
        if "mean_attn" in score_names:
            mean_query = attention_scores.mean_query(query, live_mask)
            scores["mean_attn"] = attend_from(mean_query)
        if "cls_and_mean_attn" in score_names:
            queries = attention_scores.class_and_mean_queries(query, live_mask)
            scores["cls_and_mean_attn"] = attend_from(queries)
        if "attn_columns" in score_names:
            columns = attention_kernels.attention_columns(query, key, bias, live_mask)
            scores["attn_columns"] = columns[:, image_slice]
        if "input" in score_names:
            scores["input"] = heads.score_inputs["input"][:, image_slice]
        # Means include the prefix: for a product a slice of x would be copied first.
        for name in ("key", "query", "value"):
            if name in score_names:
                means = jnp.mean(heads.score_inputs[name], axis=2, dtype=jnp.float32)
                scores[name] = means[:, image_slice]
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
        mean_shape = (config.embed_dim, config.head_dim)
        self.mean_key = self.param("mean_key", init, mean_shape)
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
            # Reducers compare the mean key over heads without sizes, which a further
            # product computes.
            x = heads.score_inputs["input"]
            rows = flatten_tokens(x).astype(self.execution.dtype)
            kernel = self.mean_key.astype(self.execution.dtype)
            product = jnp.dot(rows, kernel, preferred_element_type=jnp.float32)
            key_rows = product + self.mean_key_bias.astype(jnp.float32)[None]
            mean_keys = key_rows.reshape(*x.shape[:2], -1)  # [batch, tokens, head_dim]
            scores["all_keys"] = mean_keys[:, : state.x.shape[1]]  # without padding
            scores["key"] = state.image_rows(scores["all_keys"])
        return scores


def cut_pooled_tokens(
    x: AllRows, state: TokenState, arch: Architecture
) -> tuple[TokenRows, array_shapes.TokenValues, array_shapes.TokenValues | None]:
    """Cut all tokens x to the pool's input: (tokens, sizes, mask or None)."""
    if arch.pool_include_prefix:
        return x, state.effective_size, state.full_mask
    return state.image_rows(x), state.image_rows(state.effective_size), state.mask


class AttentionPool(nn.Module):
    """Attention from a learned probe to the live tokens, then an MLP, as in SigLIP.

    Source: Zhai et al. 2022, "Scaling vision transformers", section 3.4.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    prop_attn: bool = False  # add log(size) to the logits

    def setup(self) -> None:
        width = self.config.embed_dim
        self.latent = self.param("latent", NORMAL_INIT, (1, 1, width))
        self.q = dense_layer(width, self.dtype)
        self.k = dense_layer(width, self.dtype)
        self.v = dense_layer(width, self.dtype)
        self.proj = dense_layer(width, self.dtype)
        self.norm = LayerNorm(self.dtype, self.config.arch.norm_eps)
        mlp_ratio = self.config.arch.pool_mlp_ratio or self.config.mlp_ratio
        self.mlp = Mlp(round(width * mlp_ratio), self.config.arch.gelu, self.dtype)

    def __call__(self, x: AllRows, state: TokenState) -> Float[Array, "batch dim"]:
        """Pool x, the normed tokens of `state`."""
        x, size, mask = cut_pooled_tokens(x, state, self.config.arch)
        query = self._probe_query()
        key = self._split_heads(self.k(x))
        value = self._split_heads(self.v(x))
        bias = jnp.log(size) if self.prop_attn else None
        if mask is None:
            queries = jnp.repeat(query, x.shape[0], axis=0)
            heads = attention_kernels.dot_product_attention(queries, key, value, bias)
        else:
            heads = attention_kernels.attend_live_tokens(query, key, value, mask, bias)
        vector = heads.reshape(x.shape[0], self.config.embed_dim).astype(self.dtype)
        pooled = self.proj(vector)
        return pooled + self.mlp(self.norm(pooled))

    def probe_scores(self, x: AllRows, state: TokenState) -> array_shapes.TokenValues:
        """The probe's attention to image tokens, mean over heads.

        x: the normed tokens of `state`
        """
        # All tokens share the query, so the query is multiplied into the key
        # projection: one product of the tokens with [D, H] is left. The projection's
        # bias adds the same number to all logits and is left out.
        x, size, mask = cut_pooled_tokens(x, state, self.config.arch)
        if self.is_initializing():
            self.k(x)  # creates the projection's parameters
        query = self._probe_query()[0, 0].astype(jnp.float32)  # [heads, head_dim]
        kernel = self.k.variables["params"]["kernel"].astype(jnp.float32)
        key_kernel = kernel.reshape(self.config.embed_dim, *query.shape)
        folded_query = jnp.einsum("xhd,hd->xh", key_kernel, query, precision="highest")
        x = x.astype(jnp.float32)  # [batch, tokens, dim]
        logits = jnp.einsum("bnx,xh->bnh", x, folded_query, precision="highest")
        bias = jnp.log(size) if self.prop_attn else jnp.zeros_like(size)
        if mask is not None:
            bias = bias + jnp.where(mask > 0.5, 0.0, -jnp.inf)  # of floats 0 or 1
        scores = attention_scores.mean_softmax(logits * query.shape[-1] ** -0.5, bias)
        if not self.config.arch.pool_include_prefix:  # the prefix was cut before
            return scores
        return state.image_rows(scores)

    def _probe_query(self):
        """The probe's query, the same for all images: [1, 1, heads, head_dim]."""
        return self._split_heads(self.q(self.latent.astype(self.dtype)))

    def _split_heads(self, x):
        num_heads = self.config.arch.pool_heads or self.config.num_heads
        return x.reshape(*x.shape[:2], num_heads, -1)
