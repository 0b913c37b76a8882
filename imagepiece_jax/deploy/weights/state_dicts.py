"""State dicts in the content of a weights file, and the one that a caller means.

Training scripts save a state dict alone, or under a key beside optimizer and epoch;
averages of the weights or a second model may be beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from imagepiece_jax.common.warning import warn
from imagepiece_jax.errors import InputError

# Keys under which training scripts save weights, next to optimizer and epoch: DeepSpeed
# and EVA-02 under "module", Lightning under "state_dict".
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "network")
_WRAPPERS += ("model_state", "params", "weights", "teacher")
# Keys of averaged weights beside them: timm's, DeiT's and those of other scripts.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")
_AVERAGES += ("model_ema_state_dict", "params_ema")
_COUNT = "n_averaged"  # of models, which PyTorch's AveragedModel has beside its module
SMALLEST = 12  # tensors of a model under any other key, at least: those of one block
_DEEPEST = 100  # dict in dict


class Unread(NamedTuple):
    """A tensor that is still in its file."""

    read: Callable[[], np.ndarray] | None = None  # from the file


def read_all(tensors):
    """{name: array} of {name: Unread}."""
    return {name: tensor.read() for name, tensor in tensors.items()}


def tensors_of_one(path, content, averaged, checkpoint):
    """{name: Unread} of the model in `content` that the caller means.

    averaged, checkpoint: as `files.read_state_dict` takes them
    """
    keys = []
    for _ in range(_DEEPEST):
        models = _models(content)
        keys.extend(models)
        averages = [key for key in models if key in _AVERAGES]
        chosen = [key for key in models if key not in _AVERAGES] or averages
        if checkpoint in models:
            chosen = [checkpoint]
            checkpoint = None
        elif averaged and averages:
            chosen = averages
            averaged = False
        elif averages and chosen != averages:
            warn(
                f"{path} has averaged weights, too ({', '.join(averages)}), which are "
                "left out: averaged=True reads them"
            )
        if len(chosen) != 1:
            break
        content = models[chosen[0]]
    if checkpoint is not None:
        listed = ", ".join(keys) or "one model under no key"
        raise InputError(f"checkpoint is {checkpoint!r}; the file has {listed}")
    if chosen:
        raise InputError(
            f"it holds {len(chosen)} models; checkpoint must be the key of one, "
            f"{' or '.join(chosen)}"
        )
    if averaged:
        raise InputError("it has no averaged weights")
    return named_tensors(content)


def named_tensors(content):
    """`content`, which must be a state dict, without PyTorch's count of averages."""
    if not isinstance(content, dict) or not content:
        raise InputError("it holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Unread):
            raise InputError(
                f"it holds other things than named tensors: {name!r} is of type "
                f"{type(value).__name__}"
            )
    return {name: tensor for name, tensor in content.items() if name != _COUNT}


def _models(content):
    """{key: dict} of what holds a model in a dict, alone or under keys of its own."""
    models = {}
    if isinstance(content, dict):
        for key, part in content.items():
            if isinstance(part, dict) and _has_model(key, part):
                models[key] = part
    return models


def _has_model(key, part):
    """Whether a dict under a key holds a model."""
    are_tensors = [isinstance(value, Unread) for value in part.values()]
    if key in _WRAPPERS or key in _AVERAGES:
        return any(are_tensors) or bool(_models(part))
    return len(part) >= SMALLEST and all(are_tensors)
