"""Weights files: .npz, .safetensors, in parts too, and PyTorch's .pth.

Of a file's tensors those that are chosen are read.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.state_dicts import (
    LazyTensor,
    in_memory,
    named_tensors,
    read_all,
    tensors_of_one,
)
from imagepiece_jax.weights.torch_files import read_torch

_LFS = b"version https://git-lfs"


def title(path: str | os.PathLike | Mapping[str, Any]) -> str:
    """What sentences call a weights file, or a state dict in memory."""
    return "the state dict" if isinstance(path, Mapping) else f"weights file {path}"


def read_state_dict(
    path: str | os.PathLike | Mapping[str, Any],
    choose: Callable[[Collection[str]], Collection[str]] = list,
    checkpoint: str | None = None,
) -> dict[str, np.ndarray]:
    """Named tensors of a weights file, with the file's shapes and types.

    The ending chooses the reader, by _READERS; `state_dicts.tensors_of_one` finds the
    state dict in what it reads. A state dict in memory is copied.

    choose: the names to read, from all names; other tensors may be many GB
    checkpoint: the key of the model that is meant, where a file has several
    """

    def select(content):
        """The tensors that `choose` names, not yet read."""
        unread = tensors_of_one(content, checkpoint)
        return {name: unread[name] for name in choose([*unread])}

    if isinstance(path, Mapping):
        try:
            tensors = read_all(select(in_memory(path)))
        except InputError as error:
            raise InputError(f"{title(path)}: {error}") from error
    else:
        tensors = _read(pathlib.Path(path), _READERS, select)
    for name, value in tensors.items():
        if value.dtype.kind not in "biuf" and value.dtype != jnp.bfloat16:
            raise InputError(
                f"{title(path)}: tensor {name} is of type {value.dtype}; it must "
                "be of floats, integers or booleans"
            )
    return tensors


def _read(path, readers, select):
    """{name: array} by the reader for a file's ending, whose failures name the file.

    select: function from the file's content to {name: LazyTensor}
    """
    file = f"weights file {path}"
    reader = readers.get(path.suffix.lower() or path.name)
    if reader is None:
        raise InputError(f"{file} ends in none of {', '.join(readers)}")
    try:
        with open(path, "rb") as start:
            if start.read(len(_LFS)) == _LFS:
                raise InputError("it is a pointer of Git LFS; git lfs pull fetches it")
        return reader(path, select)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or header can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{file} is damaged or of another kind: {reason}") from error


def _read_npz(path, select):
    # Not numpy.load, which takes another file for a pickle, and says so.
    with np.lib.npyio.NpzFile(path) as archive:
        content = {}
        for name in archive.files:
            content[name] = LazyTensor(functools.partial(_array, archive, name))
        return read_all(select(content))


def _array(archive, name):
    """An array of an .npz file."""
    array = archive[name]
    if array.dtype == "V2":  # bfloat16, which NumPy does not have, as two raw bytes
        return array.view(jnp.bfloat16)
    return array


def _read_safetensors(path, select):
    with safetensors.safe_open(path, framework="numpy") as file:
        content = {}
        for name in file.keys():
            content[name] = LazyTensor(functools.partial(file.get_tensor, name))
        return read_all(select(content))


def parts(path: pathlib.Path) -> dict[str, str]:
    """{tensor: the file with it} of the index of .safetensors or .bin in parts."""
    places = read_json(path)["weight_map"]
    for part in places.values():
        if pathlib.PurePath(str(part)).name != part:
            raise InputError(f"{path} names the part {part!r}, which is not beside it")
    return places


def _read_parts(path, select):
    """The selected tensors of an index, each from the part that has it."""
    part_of = parts(path)
    names_by_part = {}
    for name in select(dict.fromkeys(part_of, LazyTensor())):
        names_by_part.setdefault(part_of[name], []).append(name)
    tensors = {}
    for part, names in sorted(names_by_part.items()):
        file = path.parent / part
        tensors |= _read(file, _PARTS, functools.partial(_only, names))
    return tensors


def _only(names, content):
    """The tensors in `content`, not yet read, that have one of the names."""
    unread = named_tensors(content)
    return {name: unread[name] for name in names if name in unread}


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": read_torch,
    ".pt": read_torch,
    ".tar": read_torch,  # .pth.tar, timm's
    ".bin": read_torch,
    ".ckpt": read_torch,  # Lightning's
    ".json": _read_parts,
}
_PARTS = {".safetensors": _read_safetensors, ".bin": read_torch}  # of several files
