"""The losses of a training step: by labels, and by a teacher's answers.

Distillation is soft: the teacher's probabilities at a temperature (Hinton et al.,
2015); or hard: its first class, as a label (Touvron et al., 2021, section 3). A model
with a distillation token has a head for the labels and one for the teacher; others
learn both with one.
"""

import chex
import jax
import jax.numpy as jnp

from imagepiece_jax.training.config import DistillConfig


def soft_cross_entropy(logits, targets):
    """Cross entropy with class probabilities: -sum(y log_softmax). [B, C] -> [B].

    `targets` include label smoothing and mixup. Float32 whatever the inputs are; the
    mean over the batch is left to the caller, who knows devices and padding.
    """
    chex.assert_rank([logits, targets], 2)
    chex.assert_equal_shape([logits, targets])
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(targets.astype(jnp.float32) * log_probs, axis=-1)


def distillation(distill: DistillConfig, outputs, targets, teacher_logits):
    """(loss by the labels, {"distill": loss by the teacher}), weighted means.

    (1 - weight) of the loss is by the labels, and `weight` by the teacher. outputs: of
    the student; targets [B, C] of the labels; teacher_logits [B, C].
    """
    first, *second = outputs.head_logits or (outputs.logits,)
    answers = second[0] if second else first
    term = distill.weight * jnp.mean(teacher_distance(distill, answers, teacher_logits))
    if distill.unlabeled:
        return jnp.float32(0), {"distill": term}
    loss = jnp.mean(soft_cross_entropy(first, targets))
    return (1 - distill.weight) * loss, {"distill": term}


def teacher_distance(distill: DistillConfig, logits, teacher_logits):
    """Loss by the teacher alone, an image. [B, C] twice -> [B] float32.

    Soft: T^2 KL(teacher || student), both softmax(logits / T): what F.kl_div computes
    of the student's logarithms. T^2 keeps the size of the gradient.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    if distill.kind == "hard":
        answer = jnp.argmax(teacher_logits, axis=-1)
        one_hot = jax.nn.one_hot(answer, logits.shape[-1], dtype=jnp.float32)
        return soft_cross_entropy(logits, one_hot)
    scale = 1 / distill.temperature
    student = jax.nn.log_softmax(logits.astype(jnp.float32) * scale)
    teacher = jax.nn.log_softmax(teacher_logits * scale)
    kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return distill.temperature**2 * kl
