"""Attention whose keys carry token sizes in a direction (`kernels.size_direction`)."""

import jax.numpy as jnp
from flax.linen.initializers import zeros

from imagepiece_jax.kernels.size_direction import add_sizes
from imagepiece_jax.kernels.token_layout import flatten_tokens
from imagepiece_jax.models.attention import Attention


class DirectedAttention(Attention):
    """Attention with variables from `inference.size_direction.fold_sizes`."""

    query_bias = True

    def setup(self):
        super().setup()
        config = self.config
        of_heads = (config.num_heads, config.head_dim)
        self.size_direction = self.param("size_direction", zeros, of_heads)
        of_channels = (config.embed_dim, config.head_dim)
        self.mean_key = self.param("mean_key", zeros, of_channels)
        self.mean_key_bias = self.param("mean_key_bias", zeros, (config.head_dim,))

    def project(self, x, state, with_value=True, queries=None):
        heads = super().project(x, state, with_value, queries)
        if heads.key_bias is None:
            return heads
        key = add_sizes(heads.key, heads.key_bias, self.size_direction)
        return heads._replace(key=key, key_bias=None)

    def scores(self, heads, reads, state):
        """As in Attention; "key" comes with "all_keys" [B, N, d], prefix included."""
        scores = super().scores(heads, reads - {"key"}, state)
        if "key" in reads:
            # Reducers compare the mean key over heads without sizes, a product of its
            # own.
            means = self._mean_key(heads.unrotated["input"])
            scores["all_keys"] = means[:, : state.x.shape[1]]
            scores["key"] = state.image_rows(scores["all_keys"])
        return scores

    def _mean_key(self, x):
        """Mean key over heads, without directions. [B, N, D] -> [B, N, d] float32."""
        dtype = self.execution.dtype
        product = jnp.dot(
            flatten_tokens(x).astype(dtype),
            self.mean_key.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        key = product + self.mean_key_bias.astype(jnp.float32)[None]
        return key.reshape(*x.shape[:2], -1)
