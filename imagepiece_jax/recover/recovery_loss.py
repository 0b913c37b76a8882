"""The loss of a recovery, and its measure: how student and teacher are compared."""

import jax
import jax.numpy as jnp

from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import REGRESSION, activation
from imagepiece_jax.models.vit import ViT, with_states
from imagepiece_jax.reduction.provenance import follow, rows_of
from imagepiece_jax.reduction.state import DROPPED
from imagepiece_jax.reduction.token_selector import kl_divergence


def answers(model: ViT, variables, images, read: tuple[str, ...]):
    """Outputs of a model in which student and teacher are compared, by name, float32.

    "logits" [B, C]; the pooled vector of a model without classes. A model without a
        pool has its class token there, or else the mean of its tokens.
    "class_tokens" [B, depth, D]: the class token after each block.
    "patches" [B, n, D]: for each patch its token after the final norm.
    "kept" [B, n]: whether each patch is in a token; comes with "patches".

    read: names of the outputs to return besides "logits"
    """
    if model.config.arch.pool == "none":
        pool = "token" if model.config.arch.class_token else "mean"
        model = model.clone(config=model.config.with_arch(pool=pool))
    model = model.with_execution(head_only="patches" not in read)
    outputs, states = with_states(model, variables, images)
    found = {"logits": outputs.logits}
    if "class_tokens" in read:
        rows = [state.x[:, 0].astype(jnp.float32) for state in states]
        found["class_tokens"] = jnp.stack(rows, axis=1)
    if "patches" in read:
        tokens = outputs.tokens[:, model.config.arch.prefix :]
        slot = follow(outputs.results)[-1].slot
        found["patches"] = rows_of(tokens, slot)
        gone = jnp.zeros(found["patches"].shape[:2], bool)
        if slot is None:
            found["kept"] = ~gone
        else:
            found["kept"] = slot != DROPPED
    return {name: jnp.asarray(found[name], jnp.float32) for name in found}


def binary_kl_divergence(student, teacher):
    """Sum over classes of KL(teacher || student) of sigmoid(logits).

    [B, C] twice -> [B]
    """
    total = 0.0
    for sign in (1, -1):
        ours = jax.nn.log_sigmoid(sign * student)
        theirs = jax.nn.log_sigmoid(sign * teacher)
        total += jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)
    return total


def squared_error(student, teacher):
    """Mean squared difference of outputs. [B, C] twice -> [B]."""
    return jnp.mean((student - teacher) ** 2, axis=-1)


def relative_change(student, teacher, kept=None):
    """Squared distance of features, divided by the square of the teacher's.

    student, teacher: [B, D], or [B, n, D] for n features of each image
    kept: [B, n], 1 for features that count and 0 for others; None: all count
    Returns [B], means over n.
    """
    distance = jnp.sum((student - teacher) ** 2, axis=-1)
    share = distance / jnp.sum(teacher**2, axis=-1)
    if share.ndim == 1:
        return share
    if kept is None:
        return jnp.mean(share, axis=1)
    number = jnp.maximum(jnp.sum(kept, axis=1), 1)
    return jnp.sum(share * kept, axis=1) / number


# kind of outputs: (name of the distance in reports, function (student, teacher) of it,
# [B, C] twice -> [B])
KINDS = {
    "softmax": ("KL", kl_divergence),
    "sigmoid": ("KL", binary_kl_divergence),
    "numbers": ("squared error", squared_error),
    "features": ("change", relative_change),
}


def outputs_of(vit: Pretrained) -> str:
    """The kind of a model's outputs, one of `KINDS`."""
    if not vit.config.num_classes or vit.has_projection:
        return "features"
    if vit.config.problem_type == REGRESSION:
        return "numbers"
    return activation(vit.config.problem_type, vit.config.num_classes)


class Comparison:
    """How student and teacher are compared: in the loss, and in the measure."""

    def __init__(self, vit: Pretrained):
        self.outputs = outputs_of(vit)
        self.name, self.distance = KINDS[self.outputs]
        self.weights = {}  # of the loss's terms besides that of logits, which has 1
        if vit.model.config.arch.class_token:
            self.weights["class_tokens"] = 0.5
        if self.outputs == "features":
            self.weights["patches"] = 1.0
        elif not vit.model.config.arch.class_token:
            self.weights["patches"] = 0.5
        self.read = tuple(self.weights)

    def terms(self, student, teacher) -> dict[str, jax.Array]:
        """{name: term of the loss [B]}, without weights.

        student, teacher: results of `answers`
        """
        terms = {"logits": self.distance(student["logits"], teacher["logits"])}
        for name in self.read:
            kept = student["kept"] if name == "patches" else None
            terms[name] = relative_change(student[name], teacher[name], kept)
        return terms

    def loss(self, student, teacher) -> jax.Array:
        """The weighted sum of all terms, as a mean over the batch."""
        total = 0
        for name, term in self.terms(student, teacher).items():
            total = total + self.weights.get(name, 1.0) * term
        return jnp.mean(total)

    def measure(self, student, teacher) -> dict[str, jax.Array]:
        """{"distance": .., "agreement": ..} of the two, [B] each.

        The distance is that of logits; of features the mean of it and of that of
        patches, if the loss compares them. The agreement is whether both have the same
        first class.
        """
        terms = self.terms(student, teacher)
        distance = terms["logits"]
        if self.outputs == "features" and "patches" in terms:
            distance = (distance + terms["patches"]) / 2
        first = first_class(student["logits"])
        expected = first_class(teacher["logits"])
        return {"distance": distance, "agreement": first == expected}


def first_class(logits):
    """The most probable class; of a single class, whether it is probable.

    [B, C] -> [B]
    """
    if logits.shape[-1] == 1:
        return logits[:, 0] > 0
    return jnp.argmax(logits, -1)
