"""Losses per image, in float32."""

import chex
import jax
import jax.numpy as jnp


def soft_cross_entropy(logits, targets):
    """Cross entropy with class probabilities: -sum(y log_softmax). [B, C] -> [B].

    `targets` include label smoothing and mixup. Float32 whatever the inputs are; the
    mean over the batch is left to the caller, who knows devices and padding.
    """
    chex.assert_rank([logits, targets], 2)
    chex.assert_equal_shape([logits, targets])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(targets.astype(jnp.float32) * log_probs, axis=-1)
