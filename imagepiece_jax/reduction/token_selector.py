"""Learned token selection: a scoring network, random masks and losses.

Training removes no tokens: attention reads a mask drawn from the scores.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from imagepiece_jax.kernels.array_shapes import TokenValues
from imagepiece_jax.kernels.gelu import gelu
from imagepiece_jax.reduction import moves
from imagepiece_jax.reduction.state import Assignment, Outputs, initial_state

DENSE_INIT = nn.initializers.normal(0.02)
DIVISION_EPS = 1e-6


class KeepScores(nn.Module):
    """Log probabilities of keeping (0) and dropping (1) a token.

    Half the features stay local, the other half is averaged over live tokens; three
    layers follow (DynamicViT, Rao et al. 2021, section 3.2).
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens *heads dim"],
        mask: TokenValues | None = None,
    ) -> Float[Array, "batch tokens *heads 2"]:
        """Compute float32 log probabilities; mask: None: all tokens are live."""
        dim = x.shape[-1]
        dtype = x.dtype

        def make_dense(width, name, dtype=dtype):
            return nn.Dense(width, kernel_init=DENSE_INIT, dtype=dtype, name=name)

        norm = nn.LayerNorm(1e-5, dtype, use_fast_variance=False, name="norm")
        hidden = gelu(make_dense(dim, "embed")(norm(x)))
        local_features = hidden[..., : dim // 2]
        shared_features = hidden[..., dim // 2 :].astype(jnp.float32)
        live_mask = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask
        unit_axes = (1,) * (x.ndim - 2)  # instead of *heads and dim
        factor = live_mask.reshape(live_mask.shape + unit_axes).astype(jnp.float32)
        # Without live tokens, DIVISION_EPS makes the mean 0 instead of 0 / 0.
        num_live = jnp.sum(factor, axis=1, keepdims=True) + DIVISION_EPS
        mean = jnp.sum(factor * shared_features, axis=1, keepdims=True) / num_live
        global_features = jnp.broadcast_to(mean.astype(dtype), shared_features.shape)
        hidden = jnp.concatenate([local_features, global_features], axis=-1)
        hidden = gelu(make_dense(dim // 2, "half")(hidden))
        hidden = gelu(make_dense(dim // 4, "quarter")(hidden))
        return jax.nn.log_softmax(make_dense(2, "score", jnp.float32)(hidden))


def score_macs(n: int, dim: int) -> int:
    """MACs of `KeepScores` for `n` tokens of width `dim`."""
    half = dim // 2
    quarter = dim // 4
    return n * (dim * dim + dim * half + half * quarter + 2 * quarter)


def draw_gumbel_noise(
    keys: Shaped[Array, " batch"], shape: tuple[int, ...]
) -> Float[Array, "batch ..."]:
    """Draw Gumbel(0, 1) noise with one key per image."""
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def straight_through(
    value: Float[Array, "*sizes"], slope: Float[Array, "*sizes"]
) -> Float[Array, "*sizes"]:
    """Return exactly `value`, with the gradient of `slope`; float32 of one shape."""
    return jax.lax.stop_gradient(value) + (slope - jax.lax.stop_gradient(slope))


def draw_mask(
    scores: Float[Array, "batch tokens 2"],
    mask: TokenValues | None,
    rng: Shaped[Array, " batch"],
) -> TokenValues:
    """Draw a mask of live tokens by Gumbel noise, exactly 0 or 1 in float32.

    scores: log probabilities of keeping and dropping
    mask: 1 for tokens live so far; None: all live
    """
    noisy_scores = scores + draw_gumbel_noise(rng, scores.shape[1:])
    hard_keep = (noisy_scores[..., 0] >= noisy_scores[..., 1]).astype(jnp.float32)
    # The gradient is the gradient of a softmax with temperature 1.
    keep = straight_through(hard_keep, jax.nn.softmax(noisy_scores)[..., 0])
    return keep if mask is None else keep * mask


def kl_divergence(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
) -> Float[Array, " batch"]:
    """KL(teacher || student) of softmax(logits), in float32."""
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32))
    log_teacher = jax.nn.log_softmax(teacher_logits.astype(jnp.float32))
    log_teacher = jax.lax.stop_gradient(log_teacher)
    return optax.losses.kl_divergence_with_log_targets(log_student, log_teacher)


def token_loss(outputs: Outputs, teacher_outputs: Outputs) -> Float[Array, ""]:
    """Mean squared distance between student and teacher tokens after the final norm.

    Only live tokens count. The loss is 0 without live tokens.
    """
    # The student's merges and drops are applied to the teacher's tokens. Appended
    # student tokens are left out.
    teacher = initial_state(teacher_outputs.tokens, teacher_outputs.state.num_prefix)
    for result in outputs.results:
        if isinstance(result, Assignment):
            teacher = moves.apply_result(teacher, result)
    teacher_tokens = jax.lax.stop_gradient(teacher.image_rows(teacher.x))
    num_tokens = teacher_tokens.shape[1]
    num_prefix = outputs.state.num_prefix
    mask = outputs.state.mask
    student_tokens = outputs.tokens[:, num_prefix : num_prefix + num_tokens]
    error = student_tokens.astype(jnp.float32) - teacher_tokens.astype(jnp.float32)
    squared_error = jnp.mean(error**2, axis=-1)  # [batch, tokens]
    if mask is None:
        live_mask = jnp.ones_like(squared_error)
    else:
        live_mask = mask[:, :num_tokens] > 0.5  # floats, 0 or 1, with a gradient
    num_live = jnp.maximum(1, jnp.sum(live_mask)).astype(jnp.float32)
    return jnp.sum(jnp.where(live_mask, squared_error, 0)) / num_live
