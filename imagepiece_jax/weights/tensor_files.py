"""Read chosen tensors from .npz, .safetensors (also in parts) and PyTorch files."""

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
    """Name a weights file or a state dict in error messages."""
    return "the state dict" if isinstance(path, Mapping) else f"weights file {path}"


def read_state_dict(
    path: str | os.PathLike | Mapping[str, Any],
    choose: Callable[[Collection[str]], Collection[str]] = list,
    checkpoint: str | None = None,
) -> dict[str, np.ndarray]:
    """Read {name: array} from a weights file, with the file's shapes and dtypes.

    A state dict in memory is copied.

    choose: all names -> the names to read; all other tensors, maybe many GB, stay in
        the file
    checkpoint: the key of the wanted model in a file with several models
    """

    def select(content):
        """Select the chosen tensors without reading them."""
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
                f"{title(path)}: tensor {name} is of type {value.dtype}; it must have "
                "floats, integers or booleans"
            )
    return tensors


def _read(path, readers, select):
    """Read {name: array} with the reader for the file's ending; errors name the file.

    select: the file's content -> {name: LazyTensor}
    """
    file = f"weights file {path}"
    reader = readers.get(path.suffix.lower() or path.name)
    if reader is None:
        raise InputError(f"{file} ends in none of {', '.join(readers)}")
    try:
        with open(path, "rb") as start:
            if start.read(len(_LFS)) == _LFS:
                raise InputError(
                    "it is a Git LFS pointer; git lfs pull fetches the file"
                )
        return reader(path, select)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or header can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{file} is damaged or of another kind: {reason}") from error


def _read_npz(path, select):
    # numpy.load would take any other file for a pickle, and say so.
    with np.lib.npyio.NpzFile(path) as archive:
        content = {}
        for name in archive.files:
            content[name] = LazyTensor(functools.partial(_array, archive, name))
        return read_all(select(content))


def _array(archive, name):
    array = archive[name]
    if array.dtype == "V2":  # bfloat16, which NumPy saves as two raw bytes
        return array.view(jnp.bfloat16)
    return array


def _read_safetensors(path, select):
    with safetensors.safe_open(path, framework="numpy") as file:
        content = {}
        for name in file.keys():
            content[name] = LazyTensor(functools.partial(file.get_tensor, name))
        return read_all(select(content))


def parts(path: pathlib.Path) -> dict[str, str]:
    """Read the index of .safetensors or .bin in parts: {tensor name: file name}."""
    part_of = read_json(path)["weight_map"]
    for part in part_of.values():
        if pathlib.PurePath(str(part)).name != part:
            raise InputError(f"{path} names the part {part!r}, which is not beside it")
    return part_of


def _read_parts(path, select):
    """Read the selected tensors of an index from their parts."""
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
    """Select tensors by name from a part's content, without reading them."""
    unread = named_tensors(content)
    return {name: unread[name] for name in names if name in unread}


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pth": read_torch,
    ".pt": read_torch,
    ".tar": read_torch,  # timm's .pth.tar
    ".bin": read_torch,
    ".ckpt": read_torch,  # Lightning
    ".json": _read_parts,
}
# Readers for the parts of an index.
_PARTS = {".safetensors": _read_safetensors, ".bin": read_torch}
