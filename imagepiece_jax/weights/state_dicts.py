"""State dicts in the content of a weights file, and the one that a caller means.

Training scripts save a state dict alone, or under a key beside optimizer and epoch;
averages of the weights or a second model may be beside it. Its tensors are chosen by
name before they are read.
"""

import collections
import pickle
import re
from collections.abc import Callable, Collection
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
# Words in names of averaged weights in a state dict, such as Lightning's of a module
# with two models: ema_model.cls_token, model_ema.., swa_model.., momentum_encoder..
_OF_AVERAGES = {"ema", "swa", "average", "averaged", "momentum", "shadow"}
_COUNT = "n_averaged"  # of models, which PyTorch's AveragedModel has beside its module
SMALLEST = 12  # tensors of a model, at least: those of one block
DEEPEST = 100  # dict in dict, and tuple in tuple in a pickle
_READABLE = "floats of 16, 32 and 64 bits, integers and booleans"


class Unread(NamedTuple):
    """A tensor that is still in its file."""

    size: int  # in bytes
    read: Callable[[], np.ndarray] | None = None  # from the file


def unreadable(tensor, dtype):
    """The error for a tensor of a type that is not read."""
    return InputError(f"{tensor} is of type {dtype}; convert it to {_READABLE}")


def tensors_of_one(path, content, averaged, checkpoint):
    """{name: Unread} of the model in `content` that the caller means.

    averaged, checkpoint: as `read_state_dict` takes them
    """
    start = ""
    if checkpoint is not None:
        inner = _entry(content, checkpoint)
        if inner is None:
            start = checkpoint
        else:
            content = inner
    key = _name_of_averages(content)
    if key is not None and not start:
        if averaged:
            return named_tensors(content[key])
        if _wrapper(content) is not None:  # else the averages are all there is
            _warn_of_averages(path, key)
    tensors = named_tensors(content)
    if start:
        named = _under(start, tensors)
        if not named:
            models = _models_by_names(tensors) or [*_models(content)]
            raise InputError(
                f"checkpoint is {start!r}; the file has {', '.join(models) or 'none'}"
            )
        tensors = named
    elif not averaged and checkpoint is None:
        _warn_of_others(path, content, key)
    return _averaged_or_not(path, tensors, averaged, start)


def _averaged_or_not(path, tensors, averaged, start):
    """The averages among named tensors, or the tensors without them.

    averaged: whether the averages are wanted. Else a warning says that they are left
        out, and where they are all there is, they are kept
    start: the caller's `checkpoint`, which all names begin with or contain, and which
        is no mark of averages itself
    """
    by_start = _averages(tensors, start)
    if averaged and len(by_start) == 1:
        [averages] = by_start.values()
        return averages
    if averaged:
        if by_start:
            raise InputError(f"it has averages of several models{choice_of(by_start)}")
        raise InputError(
            f"it has no averaged weights{choice_of(_models_by_names(tensors))}"
        )
    averages = set().union(*by_start.values())
    others = {name: tensors[name] for name in tensors if name not in averages}
    largest = max(map(len, by_start.values()), default=0)
    if averages and len(others) >= largest:  # else the averages are all there is
        _warn_of_averages(path, " and ".join(by_start))
        return others
    return tensors


def _warn_of_averages(path, key):
    """Warn of averages that are left out: under a key, or of names with a start."""
    warn(
        f"{path} has averaged weights, too ({key}), which are left out: "
        "averaged=True reads them"
    )


def _warn_of_others(path, content, averages):
    """Warn of models beside that which the key in `_WRAPPERS` chooses.

    averages: the key of averaged weights, of which `_warn_of_averages` warns, or None
    """
    while isinstance(content, dict) and (key := _wrapper(content)) is not None:
        others = [name for name in _models(content) if name not in (key, averages)]
        if others:
            warn(
                f"{path} has other weights, too ({', '.join(others)}), which are left "
                f"out{choice_of(others)}"
            )
        content = content[key]


def choice_of(models: Collection[str]) -> str:
    """A clause on how a caller names one of these models; "": there is none.

    models: keys, or starts of the names of tensors
    """
    if not models:
        return ""
    ways = [f"checkpoint={model!r}" for model in models]
    verb = "reads it" if len(ways) == 1 else "reads one of them"
    return f"; {' or '.join(ways)} {verb}"


def _averages(tensors, behind):
    """{start of names, without its last dot: the tensors}, for averaged weights.

    behind: what is in front of all names, and is no mark of averages itself
    """
    by_start = {}
    for name, tensor in tensors.items():
        end = -1
        for part in re.split("[./]", name)[:-1]:
            end += 1 + len(part)
            marked = not _OF_AVERAGES.isdisjoint(part.split("_"))
            if marked and end > len(behind):
                by_start.setdefault(name[:end], {})[name] = tensor
                break
    return by_start


def _under(start, tensors):
    """The tensors whose names begin with these words, or else have them inside."""
    for front in ("", r".*[./]"):
        is_under = re.compile(rf"{front}{re.escape(start)}[./]").match
        found = {name: tensors[name] for name in tensors if is_under(name)}
        if found:
            break
    return found


def _models_by_names(tensors):
    """The first words of names, if they are those of several models; else []."""
    words = [re.split("[./]", name) for name in tensors]
    while len(words) > 1 and len({*[each[0] for each in words]}) == 1:
        words = [each[1:] for each in words if each[1:]]
    sizes = collections.Counter([each[0] for each in words])
    models = [word for word, size in sizes.items() if size >= SMALLEST]
    return models if len(models) > 1 else []


def _entry(content, key):
    """What nested dicts have under a key, behind keys of _WRAPPERS; None: nothing."""
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            return None
        if isinstance(content.get(key), dict):
            return content[key]
        content = content.get(_wrapper(content))
    return None


def _models(content):
    """{key: state dict} of the parts of `content` that are those of whole models."""
    models = {}
    if not isinstance(content, dict):
        return models
    for key, part in content.items():
        if isinstance(key, str) and isinstance(part, dict) and len(part) >= SMALLEST:
            if all(type(value) is Unread for value in part.values()):
                models[key] = part
    return models


def _name_of_averages(content):
    """The key of the averages in `content`, or None."""
    if isinstance(content, dict):
        for name in _AVERAGES:
            if isinstance(content.get(name), dict):
                return name
    return None


def named_tensors(content):
    """The state dict in `content`."""
    content = _unwrapped(content)
    models = _models(content)
    if len(models) == 1:  # among a script's other things
        [content] = models.values()
    elif models:
        raise InputError(
            f"it holds {len(models)} models, {', '.join(models)}{choice_of(models)}"
        )
    if not isinstance(content, dict) or not content:
        raise InputError("it holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Unread):
            raise InputError(
                f"it holds other things than named tensors: {name!r} is of type "
                f"{type(value).__name__}"
            )
    is_count = re.compile(rf"(.*\.)?{_COUNT}").fullmatch
    return {name: tensor for name, tensor in content.items() if not is_count(name)}


def _unwrapped(content):
    """The state dict inside nested dicts."""
    for _ in range(DEEPEST):
        if not isinstance(content, dict):
            return content
        key = _wrapper(content)
        if key is None:
            return content
        content = content[key]
    raise pickle.UnpicklingError(f"more than {DEEPEST} dicts in each other")


def _wrapper(content):
    """The first key of _WRAPPERS under which a dict has a dict, or None."""
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict):
            return key
    return None
