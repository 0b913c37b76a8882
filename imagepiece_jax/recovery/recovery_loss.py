"""The loss and the metrics of a recovery: how student and teacher are compared."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagepiece_jax.data.normalize import NormalizedImages
from imagepiece_jax.kernels.merging import DROPPED
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.provenance import follow_patches, gather_tokens
from imagepiece_jax.reduction.token_selector import kl_divergence

ComparedOutputs = Mapping[str, jax.Array]  # from `OutputComparison.compute_outputs`
Logits = Float[Array, "batch classes"]
Numbers = Float[Array, "batch numbers"]  # a regression's
BatchValues = Float[Array, " batch"]


def binary_kl_divergence(student_logits: Logits, teacher_logits: Logits) -> BatchValues:
    """KL(teacher || student) of sigmoid(logits), summed over classes."""

    def outcome_divergence(sign):
        student_log_share = jax.nn.log_sigmoid(sign * student_logits)
        teacher_log_share = jax.nn.log_sigmoid(sign * teacher_logits)
        log_ratio = teacher_log_share - student_log_share
        return jnp.sum(jnp.exp(teacher_log_share) * log_ratio, axis=-1)

    # Both outcomes of every class: 1 - sigmoid(x) is sigmoid(-x).
    return outcome_divergence(1) + outcome_divergence(-1)


def squared_error(student_numbers: Numbers, teacher_numbers: Numbers) -> BatchValues:
    """Mean squared difference of outputs."""
    return jnp.mean((student_numbers - teacher_numbers) ** 2, axis=-1)


def relative_change(
    student_features: Float[Array, "batch *features dim"],
    teacher_features: Float[Array, "batch *features dim"],
    kept_mask: Float[Array, "batch patches"] | None = None,
) -> BatchValues:
    """Squared distance of features, divided by the teacher's square.

    Of several features per image it is the mean.

    kept_mask: 1: the feature counts, 0: it does not; None: all count
    """
    squared_distance = jnp.sum((student_features - teacher_features) ** 2, axis=-1)
    change = squared_distance / jnp.sum(teacher_features**2, axis=-1)  # [batch, ..]
    if change.ndim == 1:  # one feature per image
        return change
    if kept_mask is None:
        return jnp.mean(change, axis=1)
    # At least 1: an image without kept features gives 0, not NaN.
    num_kept = jnp.maximum(jnp.sum(kept_mask, axis=1), 1)
    return jnp.sum(change * kept_mask, axis=1) / num_kept


# output kind: (the distance's name in reports, its function of student and teacher)
OUTPUT_DISTANCES: dict[str, tuple[str, Callable[..., jax.Array]]] = {
    "softmax": ("KL", kl_divergence),
    "sigmoid": ("KL", binary_kl_divergence),
    "numbers": ("squared error", squared_error),
    "features": ("change", relative_change),
}


class OutputComparison:
    """Student and teacher compared: in the loss, and in the metrics."""

    def __init__(self, pretrained: Pretrained) -> None:
        head = pretrained.config.head
        self.output_kind = "features"  # a key of `OUTPUT_DISTANCES`
        if head.is_classifier:
            self.output_kind = head.activation or "numbers"  # a regression has none
        self.distance_name, self.output_distance = OUTPUT_DISTANCES[self.output_kind]
        # Weights of terms besides "outputs": 1 like that one for an encoder's patches,
        # which are outputs, and half for others (docs/results/recovery.md, "A step").
        self.term_weights = {}
        if pretrained.model.config.arch.class_token:
            self.term_weights["class_tokens"] = 0.5
        if self.output_kind == "features":
            self.term_weights["patches"] = 1.0
        elif not pretrained.model.config.arch.class_token:
            self.term_weights["patches"] = 0.5

    def compute_outputs(
        self, model: ViT, variables: Mapping[str, Any], images: NormalizedImages
    ) -> ComparedOutputs:
        """Compute the compared outputs of the student or the teacher, float32.

        "outputs" [B, C]: logits; of a model without classes, its pooled vector
        "class_tokens" [B, depth, D]: the class token after every block
        "patches" [B, n, D]: for every patch, its token after the final norm
        "kept_mask" [B, n]: whether a token holds the patch; comes with "patches"
        """
        # A model without a pool gets one: its class token, else the mean of its tokens.
        if model.config.arch.pool == "none":
            pool = "token" if model.config.arch.class_token else "mean"
            model = model.clone(config=model.config.with_arch(pool=pool))
        model = model.with_execution(head_only="patches" not in self.term_weights)
        outputs = model.apply(variables, images, with_states=True)
        arrays = {"outputs": outputs.logits}
        if "class_tokens" in self.term_weights:
            # The class token is the first of a block's tokens, [B, tokens, D].
            per_block = [state.x[:, 0].astype(jnp.float32) for state in outputs.states]
            arrays["class_tokens"] = jnp.stack(per_block, axis=1)
        if "patches" in self.term_weights:
            tokens = outputs.tokens[:, model.config.arch.prefix :]  # [B, tokens, D]
            # After the last block; None if no block reduces: patch n is token n.
            token_of_patch = follow_patches(outputs.results)[-1].token_of_patch
            arrays["patches"] = gather_tokens(tokens, token_of_patch)
            if token_of_patch is None:
                arrays["kept_mask"] = jnp.ones(arrays["patches"].shape[:2], bool)
            else:
                arrays["kept_mask"] = token_of_patch != DROPPED
        return {name: jnp.asarray(arrays[name], jnp.float32) for name in arrays}

    def loss_terms(
        self, predictions: ComparedOutputs, targets: ComparedOutputs
    ) -> dict[str, BatchValues]:
        """Unweighted loss terms, by name. The teacher gives the targets."""
        pair = predictions["outputs"], targets["outputs"]
        terms = {"outputs": self.output_distance(*pair)}
        for name in self.term_weights:
            kept_mask = predictions["kept_mask"] if name == "patches" else None
            terms[name] = relative_change(predictions[name], targets[name], kept_mask)
        return terms

    def mean_loss(
        self, predictions: ComparedOutputs, targets: ComparedOutputs
    ) -> Float[Array, ""]:
        """Sum all terms with their weights; return the batch mean."""
        terms = self.loss_terms(predictions, targets)
        weights = {"outputs": 1.0, **self.term_weights}
        return jnp.mean(sum(weights[name] * term for name, term in terms.items()))

    def measure_images(
        self, predictions: ComparedOutputs, targets: ComparedOutputs
    ) -> dict[str, jax.Array]:
        """Compare images: {"distance": [B], "agreement": [B], of the top classes}."""
        terms = self.loss_terms(predictions, targets)
        # The distance between features is the mean over pooled vector and patches.
        distance = terms["outputs"]
        if self.output_kind == "features" and "patches" in terms:
            distance = (distance + terms["patches"]) / 2
        student_class = find_top_class(predictions["outputs"])
        has_same_class = student_class == find_top_class(targets["outputs"])
        return {"distance": distance, "agreement": has_same_class}


def find_top_class(logits: Logits) -> jax.Array:
    """Most probable class, [B]; of a single class, whether it is probable."""
    if logits.shape[-1] == 1:
        return logits[:, 0] > 0  # a probability above one half
    return jnp.argmax(logits, -1)
