"""Losses of labels and of distillation; `train_step.micro_batch_loss` adds them up.

Soft distillation learns the teacher's probabilities at a temperature (Hinton et al.,
2015). Hard distillation learns the teacher's first class as a label (Touvron et al.,
2021, section 3). A distillation token has its own head; else one head learns both.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.reduction.token_selector import kl_divergence
from imagepiece_jax.training.config import DistillConfig


def soft_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """Cross entropy with class probabilities, in float32."""
    chex.assert_rank([logits, targets], 2)
    chex.assert_equal_shape([logits, targets])
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy(logits, targets.astype(jnp.float32))


def distillation_loss(
    distill: DistillConfig,
    outputs: Outputs,
    targets: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weight the two losses: (label loss, {"distill": teacher loss}).

    The teacher loss has `distill.weight`, the label loss the rest. Hard: the cross
    entropy with the teacher's first class. Soft: T^2 KL(teacher || student) of
    softmax(logits / T).

    targets: label probabilities
    """
    # The last head is the distillation token's. Without one, `head_logits` is ().
    head_logits = outputs.head_logits or (outputs.logits,)
    class_logits = head_logits[0]
    taught_logits = head_logits[-1]
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    if distill.kind == "hard":
        teacher_class = jnp.argmax(teacher_logits, axis=-1)
        num_classes = taught_logits.shape[-1]
        one_hot = jax.nn.one_hot(teacher_class, num_classes, dtype=jnp.float32)
        distance = soft_cross_entropy(taught_logits, one_hot)
    else:
        scale = 1 / distill.temperature
        student_logits = taught_logits.astype(jnp.float32) * scale
        kl = kl_divergence(student_logits, teacher_logits * scale)
        distance = distill.temperature**2 * kl  # T^2 keeps the gradient's size
    teacher_loss = distill.weight * jnp.mean(distance)
    label_loss = jnp.mean(soft_cross_entropy(class_logits, targets))
    return (1 - distill.weight) * label_loss, {"distill": teacher_loss}
