"""The state dict in the content of a weights file.

Training scripts save a state dict alone, or under a key beside optimizer and epoch;
averages of the weights or a second model may be beside it, under keys of their own.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError

_COUNT = "n_averaged"  # of models, which PyTorch's AveragedModel has beside its module
SMALLEST = 12  # tensors of a model, at least: those of one block


class LazyTensor(NamedTuple):
    """A tensor that is still in its file."""

    read: Callable[[], np.ndarray] | None = None  # from the file


def read_all(tensors):
    """{name: array} of {name: LazyTensor}."""
    return {name: tensor.read() for name, tensor in tensors.items()}


def in_memory(content):
    """`content`, in which arrays and torch's tensors are LazyTensor, as in a file."""
    if isinstance(content, Mapping):
        return {name: in_memory(value) for name, value in content.items()}
    if hasattr(content, "shape"):
        return LazyTensor(functools.partial(_copied, content))
    return content


def _copied(tensor):
    """A NumPy array of its own: of the caller's, changes would reach the model."""
    if hasattr(tensor, "detach"):  # torch's, which may be bfloat16, or on a GPU
        tensor = tensor.detach().cpu().float().numpy()
    return np.array(tensor)


def tensors_of_one(content, key=None):
    """{name: LazyTensor} of the model in `content` that the caller means.

    key: of the model, where the content has several
    """
    models = {}
    if isinstance(content, dict):
        models = {name: part for name, part in content.items() if _is_model(part)}
    if key is not None and key not in models:
        listed = ", ".join(models) or "one model under no key"
        raise InputError(f"checkpoint is {key!r}; the file has {listed}")
    if key is None and len(models) > 1:
        raise InputError(
            f"it holds {len(models)} models; checkpoint must be the key of one, "
            f"{' or '.join(models)}"
        )
    if models:
        content = models[key or next(iter(models))]
    return named_tensors(content)


def named_tensors(content):
    """`content`, which must be a state dict, without PyTorch's count of averages."""
    if not isinstance(content, dict) or not content:
        raise InputError("it holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise InputError(
                f"it holds other things than named tensors: {name!r} is of type "
                f"{type(value).__name__}"
            )
    return {name: tensor for name, tensor in content.items() if name != _COUNT}


def _is_model(part):
    """Whether a value of the content is a model's state dict."""
    if not isinstance(part, dict) or len(part) < SMALLEST:
        return False
    return all(isinstance(value, LazyTensor) for value in part.values())
