"""Attention whose keys carry token sizes in a direction (`kernels.size_direction`)."""

from collections.abc import Set

import jax
import jax.numpy as jnp
from flax.linen.initializers import zeros

from imagepiece_jax.kernels.array_shapes import TokenRows
from imagepiece_jax.kernels.size_direction import add_sizes
from imagepiece_jax.kernels.token_layout import flatten_tokens
from imagepiece_jax.models.attention import Attention, Heads
from imagepiece_jax.reduction.state import TokenState


class DirectedAttention(Attention):
    """Attention with variables from `inference.size_direction.fold_sizes`."""

    query_bias = True

    def setup(self) -> None:
        super().setup()
        config = self.config
        per_head_shape = (config.num_heads, config.head_dim)
        self.size_direction = self.param("size_direction", zeros, per_head_shape)
        mean_key_shape = (config.embed_dim, config.head_dim)
        self.mean_key = self.param("mean_key", zeros, mean_key_shape)
        self.mean_key_bias = self.param("mean_key_bias", zeros, (config.head_dim,))

    def project_heads(
        self,
        x: TokenRows,
        state: TokenState,
        with_value: bool = True,
        num_queries: int | None = None,
    ) -> Heads:
        """As in Attention; keys carry the sizes, so there is no key bias."""
        heads = super().project_heads(x, state, with_value, num_queries)
        if heads.key_bias is None:
            return heads
        key = add_sizes(heads.key, heads.key_bias, self.size_direction)
        return heads._replace(key=key, key_bias=None)

    def token_scores(
        self, heads: Heads, score_names: Set[str], state: TokenState
    ) -> dict[str, jax.Array]:
        """As in Attention; "key" comes with "all_keys", prefix included."""
        scores = super().token_scores(heads, score_names - {"key"}, state)
        if "key" in score_names:
            # Reducers compare the mean key over heads without sizes, a product of its
            # own.
            mean_keys = self._mean_key(heads.score_inputs["input"])
            scores["all_keys"] = mean_keys[:, : state.x.shape[1]]
            scores["key"] = state.image_rows(scores["all_keys"])
        return scores

    def _mean_key(self, x):
        """Mean key over heads, without directions."""
        dtype = self.execution.dtype
        rows = flatten_tokens(x).astype(dtype)
        kernel = self.mean_key.astype(dtype)
        product = jnp.dot(rows, kernel, preferred_element_type=jnp.float32)
        key = product + self.mean_key_bias.astype(jnp.float32)[None]
        return key.reshape(*x.shape[:2], -1)
