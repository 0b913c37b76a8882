"""The loss and the measure of a recovery: how student and teacher are compared."""

import jax
import jax.numpy as jnp

from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import REGRESSION, activation
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import follow_patches, gather_tokens
from imagepiece_jax.reduction.token_selector import kl_divergence


def answers(model: ViT, variables, images, names: tuple[str, ...]):
    """Outputs in which student and teacher are compared, by name, float32.

    "logits" [B, C]; of a model without classes, its pooled vector
    "class_tokens" [B, depth, D]: the class token after every block
    "patches" [B, n, D]: for every patch, its token after the final norm
    "kept" [B, n]: whether a token holds the patch; comes with "patches"

    names: the outputs besides "logits" and "kept"
    """
    # A model without a pool gets one: its class token, else the mean of its tokens.
    if model.config.arch.pool == "none":
        pool = "token" if model.config.arch.class_token else "mean"
        model = model.clone(config=model.config.with_arch(pool=pool))
    model = model.with_execution(head_only="patches" not in names)
    outputs = model.apply(variables, images, with_states=True)
    answer = {"logits": outputs.logits}
    if "class_tokens" in names:
        rows = [state.x[:, 0].astype(jnp.float32) for state in outputs.states]
        answer["class_tokens"] = jnp.stack(rows, axis=1)
    if "patches" in names:
        tokens = outputs.tokens[:, model.config.arch.prefix :]
        slot = follow_patches(outputs.results)[-1].slot
        answer["patches"] = gather_tokens(tokens, slot)
        dropped = jnp.zeros(answer["patches"].shape[:2], bool)
        answer["kept"] = ~dropped if slot is None else slot != DROPPED
    return {name: jnp.asarray(answer[name], jnp.float32) for name in answer}


def binary_kl_divergence(student, teacher):
    """KL(teacher || student) of sigmoid(logits), summed. [B, C] twice -> [B]."""
    total = 0.0
    # Both outcomes of every class: 1 - sigmoid(x) is sigmoid(-x).
    for sign in (1, -1):
        log_student = jax.nn.log_sigmoid(sign * student)
        log_teacher = jax.nn.log_sigmoid(sign * teacher)
        total += jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return total


def squared_error(student, teacher):
    """Mean squared difference of outputs. [B, C] twice -> [B]."""
    return jnp.mean((student - teacher) ** 2, axis=-1)


def relative_change(student, teacher, kept=None):
    """Squared distance of features, divided by the teacher's square.

    student, teacher: [B, D], or [B, n, D] for n features per image
    kept: [B, n], 1: the feature counts, 0: it does not; None: all count
    Returns [B], means over n.
    """
    distance = jnp.sum((student - teacher) ** 2, axis=-1)
    share = distance / jnp.sum(teacher**2, axis=-1)
    if share.ndim == 1:
        return share
    if kept is None:
        return jnp.mean(share, axis=1)
    # At least 1: an image without kept features gives 0, not NaN.
    count = jnp.maximum(jnp.sum(kept, axis=1), 1)
    return jnp.sum(share * kept, axis=1) / count


# output kind: (the distance's name in reports, function (student, teacher) -> distance,
# [B, C] twice -> [B])
KINDS = {
    "softmax": ("KL", kl_divergence),
    "sigmoid": ("KL", binary_kl_divergence),
    "numbers": ("squared error", squared_error),
    "features": ("change", relative_change),
}


def outputs_of(vit: Pretrained) -> str:
    """The kind of a model's outputs, one of `KINDS`."""
    if not vit.is_classifier:
        return "features"
    if vit.config.problem_type == REGRESSION:
        return "numbers"
    return activation(vit.config.problem_type, vit.config.num_classes)


class Comparison:
    """Student and teacher compared: in the loss, and in the measure."""

    def __init__(self, vit: Pretrained):
        self.outputs = outputs_of(vit)
        self.name, self.distance = KINDS[self.outputs]
        # Term weights in the loss: 1 for outputs, as "logits" and an encoder's patches,
        # and half for the other terms (docs/results/recovery.md, "A step").
        self.term_weights = {}
        if vit.model.config.arch.class_token:
            self.term_weights["class_tokens"] = 0.5
        if self.outputs == "features":
            self.term_weights["patches"] = 1.0
        elif not vit.model.config.arch.class_token:
            self.term_weights["patches"] = 0.5
        self.term_names = tuple(self.term_weights)  # besides "logits"

    def terms(self, student, teacher) -> dict[str, jax.Array]:
        """Unweighted loss terms, {name: [B]}, of two results of `answers`."""
        terms = {"logits": self.distance(student["logits"], teacher["logits"])}
        for name in self.term_names:
            kept = student["kept"] if name == "patches" else None
            terms[name] = relative_change(student[name], teacher[name], kept)
        return terms

    def loss(self, student, teacher) -> jax.Array:
        """Sum all terms with their weights; return the batch mean."""
        total = 0
        for name, term in self.terms(student, teacher).items():
            total = total + self.term_weights.get(name, 1.0) * term
        return jnp.mean(total)

    def measure(self, student, teacher) -> dict[str, jax.Array]:
        """{"distance": [B], "agreement": whether both have the same first class}."""
        terms = self.terms(student, teacher)
        # The distance between features is the mean over pooled vector and patches.
        distance = terms["logits"]
        if self.outputs == "features" and "patches" in terms:
            distance = (distance + terms["patches"]) / 2
        first = first_class(student["logits"])
        expected = first_class(teacher["logits"])
        return {"distance": distance, "agreement": first == expected}


def first_class(logits):
    """Most probable class; of a single class, whether it is probable. [B, C] -> [B]."""
    if logits.shape[-1] == 1:
        return logits[:, 0] > 0
    return jnp.argmax(logits, -1)
