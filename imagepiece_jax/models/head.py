"""Head: how many outputs a model has, and what they mean."""

import dataclasses

import numpy as np

from imagepiece_jax.errors import InputError

# Problem types, by transformers' names.
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"  # its outputs are numbers, not probabilities
# CLIP's, whose outputs are an image's vector; transformers has no such type
PROJECTION = "projection"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, PROJECTION)


@dataclasses.dataclass(frozen=True)
class Head:
    """A model's head, as `ViTConfig.head` returns it."""

    num_classes: int  # number of outputs; 0: no head
    problem_type: str = SINGLE_LABEL  # the outputs' meaning, from PROBLEM_TYPES

    @property
    def is_projection(self) -> bool:
        """Whether the head is a projection, as in CLIP."""
        return self.num_classes > 0 and self.problem_type == PROJECTION

    @property
    def is_classifier(self) -> bool:
        """Whether the head has classes: neither missing nor a projection."""
        return self.num_classes > 0 and self.problem_type != PROJECTION

    @property
    def is_single_label(self) -> bool:
        """Whether the head gives one class per image, so that images have labels."""
        return self.num_classes > 0 and self.problem_type == SINGLE_LABEL

    @property
    def has_classes(self) -> bool | None:
        """Whether the outputs are logits of classes; None: a regression's numbers."""
        if self.num_classes and self.problem_type == REGRESSION:
            return None
        return self.is_classifier

    @property
    def activation(self) -> str | None:
        """The function from logits to probabilities: "softmax", "sigmoid" or None."""
        if not self.has_classes:
            return None
        # A single class gets a sigmoid, because its softmax is 1 for any image.
        if self.problem_type == MULTI_LABEL or self.num_classes == 1:
            return "sigmoid"
        return "softmax"

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities. [.., C] -> [.., C].

        Multi-label probabilities need not add up to 1.
        Raises InputError for outputs that are not classes, and for logits that are not
            finite.
        """
        if not np.isfinite(logits).all():
            raise InputError("the model's outputs are not finite")
        if self.activation is None:
            raise InputError(f"problem_type is {self.problem_type!r}, without classes")
        if self.activation == "sigmoid":
            return 0.5 * (1 + np.tanh(logits / 2))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def check_single_label(self, weights_title: str, reader: str) -> None:
        """Refuse multi-label and regression weights for a `reader` of one label."""
        if self.problem_type != SINGLE_LABEL:
            problem = f"problem_type is {self.problem_type!r}"
            raise InputError(f"{weights_title}: {problem}; {reader} needs one label")
