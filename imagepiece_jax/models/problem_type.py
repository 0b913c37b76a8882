"""Problem types of a head, by transformers' names, and their probabilities."""

import numpy as np

from imagepiece_jax.errors import InputError

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"  # its outputs are numbers, not probabilities
# CLIP's, whose outputs are an image's vector; transformers has no such type
PROJECTION = "projection"
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, PROJECTION)


def activation(problem_type: str, classes: int) -> str | None:
    """The activation for probabilities, "softmax" or "sigmoid"; None: there is none."""
    # A single class gets a sigmoid, because its softmax is 1 for any image.
    if problem_type in (REGRESSION, PROJECTION) or not classes:
        return None
    if problem_type == MULTI_LABEL or classes == 1:
        return "sigmoid"
    return "softmax"


def probabilities(logits: np.ndarray, problem_type: str = SINGLE_LABEL) -> np.ndarray:
    """Class probabilities. [.., C] -> [.., C].

    Multi-label probabilities need not add up to 1.
    Raises InputError for other problem types, and for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        raise InputError("the model's outputs are not finite, so they have no classes")
    function = activation(problem_type, logits.shape[-1])
    if function == "sigmoid":
        return 0.5 * (1 + np.tanh(logits / 2))
    if function is None:
        raise InputError(
            f"problem_type is {problem_type!r}, whose outputs are not probabilities; "
            "vit.model.apply(vit.variables, images).logits has the values"
        )
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def check_single_label(problem_type: str, weights: str, reader: str) -> None:
    """Refuse weights for multi-label or regression problems.

    reader: the message's subject, such as "accuracy", which needs one label per image
    """
    if problem_type != SINGLE_LABEL:
        raise InputError(
            f"{weights}: problem_type is {problem_type!r}, but {reader} needs one "
            "label per image"
        )
