"""Distillation: the loss of a student that learns from a teacher's answers.

Soft: the teacher's probabilities at a temperature (Hinton et al., 2015); hard: its
first class, as a label (Touvron et al., 2021, section 3). A model with a distillation
token has a head for the labels and one for the teacher; others learn both with one.
"""

import jax
import jax.numpy as jnp

from imagepiece_jax.training.config import DistillConfig
from imagepiece_jax.training.losses import soft_cross_entropy


def losses(distill: DistillConfig, outputs, targets, teacher_logits):
    """(loss by the labels, {"distill": loss by the teacher}), weighted means.

    (1 - weight) of the loss is by the labels, and `weight` by the teacher. outputs: of
    the student; targets [B, C] of the labels; teacher_logits [B, C].
    """
    first, *second = outputs.head_logits or (outputs.logits,)
    answers = second[0] if second else first
    term = distill.weight * jnp.mean(distance(distill, answers, teacher_logits))
    if distill.unlabeled:
        return jnp.float32(0), {"distill": term}
    loss = jnp.mean(soft_cross_entropy(first, targets))
    return (1 - distill.weight) * loss, {"distill": term}


def distance(distill: DistillConfig, logits, teacher_logits):
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
