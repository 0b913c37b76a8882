"""Find the state dict in a weights file's content.

Training scripts save a state dict alone, or under a key beside optimizer and epoch.
Weight averages or a second model may have keys of their own.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from imagepiece_jax.errors import InputError

_COUNT = "n_averaged"  # a counter in PyTorch's AveragedModel, not a weight
SMALLEST = 12  # a model has at least the tensors of one block


class LazyTensor(NamedTuple):
    """A tensor that was not read yet."""

    read: Callable[[], np.ndarray] | None = None


def read_all(tensors):
    """Read {name: LazyTensor} into {name: array}."""
    return {name: tensor.read() for name, tensor in tensors.items()}


def in_memory(content):
    """Replace arrays and torch tensors in `content` by LazyTensor."""
    if isinstance(content, Mapping):
        return {name: in_memory(value) for name, value in content.items()}
    if hasattr(content, "shape"):
        return LazyTensor(functools.partial(_copied, content))
    return content


def _copied(tensor):
    """Copy a tensor to NumPy, so that later changes by the caller miss the model."""
    # torch tensors may be bfloat16, which NumPy lacks, or on a GPU.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.array(tensor)


def tensors_of_one(content, key=None):
    """Select one model in `content`, {name: LazyTensor}.

    key: needed if the content has several models
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
    """Check that `content` is a state dict, and drop AveragedModel's counter."""
    if not isinstance(content, dict) or not content:
        raise InputError("it holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise InputError(
                f"it must hold named tensors only, but {name!r} is of type "
                f"{type(value).__name__}"
            )
    return {name: tensor for name, tensor in content.items() if name != _COUNT}


def _is_model(part):
    """Whether a value in the content is a model's state dict."""
    if not isinstance(part, dict) or len(part) < SMALLEST:
        return False
    return all(isinstance(value, LazyTensor) for value in part.values())
