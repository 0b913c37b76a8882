"""The problem that a head answers, by transformers' names, and its probabilities."""

import numpy as np

from imagepiece_jax.errors import InputError

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"  # its outputs are numbers, not probabilities
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def activation(problem_type: str, classes: int) -> str | None:
    """What makes probabilities of logits: "softmax" or "sigmoid"; None: nothing does.

    One class has a sigmoid, too: its softmax is 1 whatever the image.
    """
    if problem_type == REGRESSION or not classes:
        return None
    if problem_type == MULTI_LABEL or classes == 1:
        return "sigmoid"
    return "softmax"


def probabilities(logits: np.ndarray, problem_type: str = SINGLE_LABEL) -> np.ndarray:
    """Probabilities of the classes. [.., C] -> [.., C].

    Those of "multi_label_classification" need not add up to 1.
    Raises InputError for "regression", which has none.
    """
    kind = activation(problem_type, logits.shape[-1])
    if kind == "sigmoid":
        return 0.5 * (1 + np.tanh(logits / 2))
    if kind is None:
        raise InputError(
            f"problem_type is {problem_type!r}, whose outputs are not probabilities; "
            "vit.model.apply(vit.variables, images).logits has its numbers"
        )
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def check_single_label(problem_type: str, place: str, reader: str) -> None:
    """Refuse weights whose images have several labels, or numbers.

    place: the weights, in words
    reader: what needs one label per image, such as "accuracy"
    """
    if problem_type != SINGLE_LABEL:
        raise InputError(
            f"{place}: problem_type is {problem_type!r}, but {reader} needs one label "
            "per image"
        )
