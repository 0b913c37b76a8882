"""The losses of training: of labels, and of distillation.

Distillation is soft: the teacher's probabilities at a temperature (Hinton et al.,
2015); or hard: its first class, as a label (Touvron et al., 2021, section 3). A model
with a distillation token has a head for the labels and one for the teacher; others
learn both with one. Their sum in a step is `train_step.loss_of`, with the method's own
`loss` (reduction/methods); a recovery's is in recovery_loss.py.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from imagepiece_jax.reduction.token_selector import kl_divergence


def soft_cross_entropy(logits, targets):
    """Cross entropy with class probabilities: -sum(y log_softmax). [B, C] -> [B].

    targets: [B, C], with label smoothing and mixup
    Returns float32 whatever the inputs are.
    """
    chex.assert_rank([logits, targets], 2)
    chex.assert_equal_shape([logits, targets])
    both = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return optax.softmax_cross_entropy(*both)


def distillation(distill, outputs, targets, teacher_logits):
    """(loss by the labels, {"distill": loss by the teacher}), with their weights.

    The weight of the second is `distill.weight`, and that of the first the rest.

    distill: the run's DistillConfig
    outputs: Outputs of the student
    targets: [B, C], class probabilities by the labels
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
    """The loss by the teacher for each image. [B, C] twice -> [B] float32.

    Hard: the cross entropy with the teacher's first class. Soft: T^2 KL(teacher ||
    student) of softmax(logits / T), where T^2 keeps the size of the gradient.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits).astype(jnp.float32)
    if distill.kind == "hard":
        answer = jnp.argmax(teacher_logits, axis=-1)
        one_hot = jax.nn.one_hot(answer, logits.shape[-1], dtype=jnp.float32)
        return soft_cross_entropy(logits, one_hot)
    scale = 1 / distill.temperature
    student = logits.astype(jnp.float32) * scale
    kl = kl_divergence(student, teacher_logits * scale)
    return distill.temperature**2 * kl
