"""Weights files: .npz, .safetensors, in parts too, and PyTorch's .pth.

Of a file's tensors those that are chosen are read.
"""

import functools
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Collection

import jax.numpy as jnp
import numpy as np
import safetensors

from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.machine import memory_bytes
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.state_dicts import (
    Unread,
    named_tensors,
    tensors_of_one,
    unreadable,
)
from imagepiece_jax.weights.torch_files import read_torch

_SAFETENSORS_DTYPES = "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()
UNPACKED = 100  # times a file's size, at most: weights hardly become smaller
_LFS = b"version https://git-lfs"


def read_state_dict(
    path: str | os.PathLike,
    averaged: bool = False,
    choose: Callable[[Collection[str]], Collection[str]] = list,
    checkpoint: str | None = None,
) -> dict[str, np.ndarray]:
    """Named tensors of a weights file, with the file's shapes and types.

    The ending chooses the reader, by _READERS; `state_dicts.tensors_of_one` finds the
    state dict in what it reads.

    averaged: read averages, under a key of their own or with a word such as "ema" in
        front of their names; False warns of any, and leaves them out
    choose: the names to read, from all names; other tensors may be many GB
    checkpoint: a key of the file, or a start of names, such as "teacher", of the model
        that is meant, where a file has several
    """
    path = pathlib.Path(path)

    def select(content):
        """The tensors that `choose` names, not yet read."""
        unread = tensors_of_one(path, content, averaged, checkpoint)
        names = choose([*unread])
        unread = {name: unread[name] for name in names}
        size = sum(tensor.size for tensor in unread.values())
        _limit_size(path, size, memory_bytes())
        return unread

    tensors = _guarded(path, _READERS, select)
    for name, value in tensors.items():
        if value.dtype.kind not in "biuf" and value.dtype != jnp.bfloat16:
            error = unreadable(f"tensor {name}", value.dtype)
            raise InputError(f"weights file {path}: {error}")
    return tensors


def _guarded(path, readers, *options):
    """The result of the reader for a file's ending, whose failures name the file."""
    file = f"weights file {path}"
    reader = readers.get(path.suffix.lower() or path.name)
    if reader is None:
        raise InputError(f"{file} ends in none of {', '.join(readers)}")
    try:
        _look_into(path)
        return reader(path, *options)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or header can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{file} is damaged or of another kind: {reason}") from error


def _look_into(path):
    """Refuse a pointer of Git LFS, and an archive that is a bomb."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise InputError("it is a pointer of Git LFS; git lfs pull fetches it")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _limit_size(path, sum(part.file_size for part in archive.infolist()))


def _limit_size(path, unpacked, memory=math.inf):
    """Refuse more bytes than the memory or an archive's weights have."""
    limits = {f"this machine's memory, {memory / 1e6:.1f} MB": memory}
    if zipfile.is_zipfile(path):
        size = path.stat().st_size
        limits[f"a hundred times its own {size / 1e6:.3f} MB"] = UNPACKED * size
    limit = min(limits, key=limits.get)
    if unpacked > limits[limit]:
        raise InputError(
            f"it has {unpacked / 1e6:.1f} MB unpacked, which is more than {limit}"
        )


def _read_npz(path, select):
    """The arrays of an .npz file that `select` chooses, {name: array}."""
    with open(path, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except ValueError as error:  # its text advises to run code of the file
            raise ValueError("it holds no arrays of NumPy's") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            return select(archive)
        sizes = {}
        for part in archive.zip.infolist():
            sizes[part.filename.removesuffix(".npy")] = part.file_size
        chosen = select({name: Unread(sizes[name]) for name in archive.files})
        arrays = {name: archive[name] for name in chosen}
    for name, array in arrays.items():
        # NumPy has no bfloat16, and reads such numbers as two raw bytes, V2.
        if array.dtype == "V2":
            arrays[name] = array.view(jnp.bfloat16)
    return arrays


def _read_safetensors(path, select):
    """The tensors of a .safetensors file that `select` chooses, {name: array}."""
    with safetensors.safe_open(path, framework="numpy") as file:
        # Sizes of 0, as tensors of such a file cannot unpack to more than its own size.
        chosen = select(dict.fromkeys(file.keys(), Unread(0)))
        for name in chosen:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS_DTYPES:
                raise unreadable(f"tensor {name}", dtype)
        return {name: file.get_tensor(name) for name in chosen}


def parts(path: pathlib.Path) -> dict[str, str]:
    """{tensor: the file with it} of the index of .safetensors or .bin in parts."""
    places = read_json(path)["weight_map"]
    ending = pathlib.PurePath(path.name.removesuffix(".index.json")).suffix
    endings = [*_PARTS]
    if ending in _PARTS:
        endings = [ending]
    for part in places.values():
        file = pathlib.PurePath(str(part))
        if file.name != part or file.suffix not in endings:
            raise InputError(
                f"{path} names the part {part!r}; a part is a file of "
                f"{' or '.join(endings)} beside it"
            )
    return places


def _read_parts(path, select):
    """The selected tensors of an index, each from the part that has it."""
    part_of = parts(path)
    # Of size 0, as an index has no sizes.
    chosen = select(dict.fromkeys(part_of, Unread(0)))
    names_by_part = {}
    for name in chosen:
        names_by_part.setdefault(part_of[name], []).append(name)
    tensors = {}
    for part, names in sorted(names_by_part.items()):
        file = path.parent / part
        tensors |= _guarded(file, _PARTS, functools.partial(_only, names))
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
