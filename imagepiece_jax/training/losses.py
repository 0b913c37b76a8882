"""Training losses: of labels, and of distillation. `train_step.loss_of` adds them up.

Soft distillation learns the teacher's probabilities at a temperature (Hinton et al.,
2015). Hard distillation learns the teacher's first class as a label (Touvron et al.,
2021, section 3). A distillation token has its own head; else one head learns both.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.reduction.token_selector import kl_divergence


def soft_cross_entropy(logits, targets):
    """Cross entropy with class probabilities. [B, C] twice -> [B] float32."""
    chex.assert_rank([logits, targets], 2)
    chex.assert_equal_shape([logits, targets])
    both = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return optax.softmax_cross_entropy(*both)


def distillation(distill, outputs, targets, teacher_logits):
    """Weight the two losses: (label loss, {"distill": teacher loss}).

    The teacher loss has `distill.weight`, the label loss the rest.

    targets: [B, C], label probabilities
    teacher_logits: [B, C]
    """
    first, *second = outputs.head_logits or (outputs.logits,)
    answers = first
    if second:  # the head of the distillation token
        answers = second[0]
    distance = teacher_distance(distill, answers, teacher_logits)
    term = distill.weight * jnp.mean(distance)
    loss = jnp.mean(soft_cross_entropy(first, targets))
    return (1 - distill.weight) * loss, {"distill": term}


def teacher_distance(distill, logits, teacher_logits):
    """Teacher loss per image. [B, C] twice -> [B] float32.

    Hard: the cross entropy with the teacher's first class. Soft: T^2 KL(teacher ||
    student) of softmax(logits / T).
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    if distill.kind == "hard":
        answer = jnp.argmax(teacher_logits, axis=-1)
        one_hot = jax.nn.one_hot(answer, logits.shape[-1], dtype=jnp.float32)
        return soft_cross_entropy(logits, one_hot)
    scale = 1 / distill.temperature
    student = logits.astype(jnp.float32) * scale
    kl = kl_divergence(student, teacher_logits * scale)
    return distill.temperature**2 * kl  # T^2 keeps the gradient's size
