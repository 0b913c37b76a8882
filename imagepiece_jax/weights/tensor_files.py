"""Read chosen tensors from .npz, .safetensors (also in parts) and PyTorch files.

Training scripts save a state dict alone, or under a key beside optimizer and epoch.
Weight averages or a second model may have keys of their own.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.torch_files import LazyTensor, opened_torch

_LFS = b"version https://git-lfs"
_COUNT = "n_averaged"  # a counter in PyTorch's AveragedModel, not a weight
SMALLEST = 12  # a model has at least the tensors of one block


def title(path: str | os.PathLike | Mapping[str, Any]) -> str:
    """Name a weights file or a state dict in error messages."""
    return "the state dict" if isinstance(path, Mapping) else f"weights file {path}"


def read_state_dict(
    path: str | os.PathLike | Mapping[str, Any], checkpoint: str | None = None
) -> dict[str, np.ndarray]:
    """Read {name: array} from a weights file, with the file's shapes and dtypes.

    A state dict in memory is copied.

    checkpoint: as for `opened`
    """
    with opened(path, checkpoint) as state_dict:
        return state_dict.read(state_dict.tensors)


def read_all(tensors):
    """Read {name: LazyTensor} into {name: array}."""
    return {name: tensor.read() for name, tensor in tensors.items()}


class Unread(NamedTuple):
    """Tensors of an open weights file, and the function that reads them."""

    tensors: Mapping[str, LazyTensor]
    reader: Callable[[Mapping[str, LazyTensor]], dict[str, np.ndarray]] = read_all

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Read {name: array}; all other tensors, maybe many GB, stay in the file."""
        tensors = self.reader({name: self.tensors[name] for name in names})
        for name, value in tensors.items():
            if value.dtype.kind not in "biuf" and value.dtype != jnp.bfloat16:
                raise InputError(
                    f"tensor {name} is of type {value.dtype}; it must have floats, "
                    "integers or booleans"
                )
        return tensors


@contextlib.contextmanager
def opened(
    path: str | os.PathLike | Mapping[str, Any], checkpoint: str | None = None
) -> Iterator[Unread]:
    """Open a weights file or a state dict in memory; errors name the file.

    checkpoint: the key of the wanted model in a file with several models
    """
    if isinstance(path, Mapping):
        try:
            yield Unread(tensors_of_one(in_memory(path), checkpoint))
        except InputError as error:
            raise InputError(f"{title(path)}: {error}") from error
    else:
        with _opened(pathlib.Path(path), _OPENERS) as content:
            yield content._replace(tensors=tensors_of_one(content.tensors, checkpoint))


@contextlib.contextmanager
def _opened(path, openers):
    """Open a file by its ending, as Unread of its whole content."""
    opener = openers.get(path.suffix.lower() or path.name)
    if opener is None:
        raise InputError(f"{title(path)} ends in none of {', '.join(openers)}")
    try:
        with open(path, "rb") as start:
            if start.read(len(_LFS)) == _LFS:
                raise InputError(
                    "it is a Git LFS pointer; git lfs pull fetches the file"
                )
        with opener(path) as content:
            yield content
    except InputError as error:
        raise InputError(f"{title(path)}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or header can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{title(path)} is damaged or of another kind: {reason}"
        ) from error


@contextlib.contextmanager
def _npz(path):
    # numpy.load would take any other file for a pickle, and say so.
    with np.lib.npyio.NpzFile(path) as archive:
        content = {}
        for name in archive.files:
            content[name] = LazyTensor(functools.partial(_array, archive, name))
        yield Unread(content)


def _array(archive, name):
    array = archive[name]
    if array.dtype == "V2":  # bfloat16, which NumPy saves as two raw bytes
        return array.view(jnp.bfloat16)
    return array


@contextlib.contextmanager
def _safetensors(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        content = {}
        for name in file.keys():
            content[name] = LazyTensor(functools.partial(file.get_tensor, name))
        yield Unread(content)


@contextlib.contextmanager
def _torch(path):
    with opened_torch(path) as content:
        yield Unread(content)


def parts(path: pathlib.Path) -> dict[str, str]:
    """Read the index of .safetensors or .bin in parts: {tensor name: file name}."""
    part_of = read_json(path)["weight_map"]
    for part in part_of.values():
        if pathlib.PurePath(str(part)).name != part:
            raise InputError(f"{path} names the part {part!r}, which is not beside it")
    return part_of


@contextlib.contextmanager
def _index(path):
    part_of = parts(path)
    read_parts = functools.partial(_read_parts, path.parent, part_of)
    yield Unread(dict.fromkeys(part_of, LazyTensor()), read_parts)


def _read_parts(folder, part_of, names):
    """Read tensors of an index, and open each part once."""
    names_by_part = {}
    for name in names:
        names_by_part.setdefault(part_of[name], []).append(name)
    tensors = {}
    for part, part_names in sorted(names_by_part.items()):
        with _opened(folder / part, _PARTS) as content:
            unread = named_tensors(content.tensors)
            present = [name for name in part_names if name in unread]
            tensors |= content.reader({name: unread[name] for name in present})
    return tensors


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


_OPENERS = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pth": _torch,
    ".pt": _torch,
    ".tar": _torch,  # timm's .pth.tar
    ".bin": _torch,
    ".ckpt": _torch,  # Lightning
    ".json": _index,
}
# Openers for the parts of an index.
_PARTS = {".safetensors": _safetensors, ".bin": _torch}
