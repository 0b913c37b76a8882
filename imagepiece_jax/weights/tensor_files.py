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
from imagepiece_jax.weights.torch_files import LazyTensor, open_torch_file

_LFS_START = b"version https://git-lfs"
_AVERAGES_COUNTER = "n_averaged"  # a counter in PyTorch's AveragedModel, not a weight
MIN_MODEL_TENSORS = 12  # a model has at least the tensors of one block


def weights_title(path: str | os.PathLike | Mapping[str, Any]) -> str:
    """Name a weights file or a state dict in error messages."""
    return "the state dict" if isinstance(path, Mapping) else f"weights file {path}"


def read_state_dict(
    path: str | os.PathLike | Mapping[str, Any], checkpoint: str | None = None
) -> dict[str, np.ndarray]:
    """Read {name: array} from a weights file, with the file's shapes and dtypes.

    A state dict in memory is copied.

    checkpoint: as for `open_tensors`
    """
    with open_tensors(path, checkpoint) as state_dict:
        return state_dict.read(state_dict.tensors)


def read_lazy_tensors(tensors):
    """Read {name: LazyTensor} into {name: array}."""
    return {name: tensor.read() for name, tensor in tensors.items()}


class UnreadTensors(NamedTuple):
    """Tensors of an open weights file, and the function that reads them."""

    tensors: Mapping[str, LazyTensor]
    reader: Callable[[Mapping[str, LazyTensor]], dict[str, np.ndarray]] = (
        read_lazy_tensors
    )

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
def open_tensors(
    path: str | os.PathLike | Mapping[str, Any], checkpoint: str | None = None
) -> Iterator[UnreadTensors]:
    """Open a weights file or a state dict in memory; errors name the file.

    checkpoint: the key of the wanted model in a file with several models
    """
    if isinstance(path, Mapping):
        try:
            yield UnreadTensors(select_model(wrap_arrays(path), checkpoint))
        except InputError as error:
            raise InputError(f"{weights_title(path)}: {error}") from error
    else:
        with _open_file(pathlib.Path(path), _FILE_OPENERS) as content:
            yield content._replace(tensors=select_model(content.tensors, checkpoint))


@contextlib.contextmanager
def _open_file(path, openers):
    """Open a file by its ending, as Unread of its whole content."""
    opener = openers.get(path.suffix.lower() or path.name)
    if opener is None:
        raise InputError(f"{weights_title(path)} ends in none of {', '.join(openers)}")
    try:
        with open(path, "rb") as start:
            if start.read(len(_LFS_START)) == _LFS_START:
                raise InputError(
                    "it is a Git LFS pointer; git lfs pull fetches the file"
                )
        with opener(path) as content:
            yield content
    except InputError as error:
        raise InputError(f"{weights_title(path)}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or header can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{weights_title(path)} is damaged or of another kind: {reason}"
        ) from error


@contextlib.contextmanager
def _open_npz(path):
    # numpy.load would take any other file for a pickle, and say so.
    with np.lib.npyio.NpzFile(path) as archive:
        content = {}
        for name in archive.files:
            content[name] = LazyTensor(
                functools.partial(_read_npz_array, archive, name)
            )
        yield UnreadTensors(content)


def _read_npz_array(archive, name):
    array = archive[name]
    if array.dtype == "V2":  # bfloat16, which NumPy saves as two raw bytes
        return array.view(jnp.bfloat16)
    return array


@contextlib.contextmanager
def _open_safetensors(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        content = {}
        for name in file.keys():
            content[name] = LazyTensor(functools.partial(file.get_tensor, name))
        yield UnreadTensors(content)


@contextlib.contextmanager
def _open_torch(path):
    with open_torch_file(path) as content:
        yield UnreadTensors(content)


def read_weight_map(path: pathlib.Path) -> dict[str, str]:
    """Read the index of .safetensors or .bin in parts: {tensor name: file name}."""
    part_of = read_json(path)["weight_map"]
    for part in part_of.values():
        if pathlib.PurePath(str(part)).name != part:
            raise InputError(f"{path} names the part {part!r}, which is not beside it")
    return part_of


@contextlib.contextmanager
def _open_index(path):
    part_of = read_weight_map(path)
    read_parts = functools.partial(_read_parts, path.parent, part_of)
    yield UnreadTensors(dict.fromkeys(part_of, LazyTensor()), read_parts)


def _read_parts(folder, part_of, names):
    """Read tensors of an index, and open each part once."""
    names_by_part = {}
    for name in names:
        names_by_part.setdefault(part_of[name], []).append(name)
    tensors = {}
    for part, part_names in sorted(names_by_part.items()):
        with _open_file(folder / part, _PART_OPENERS) as content:
            unread = check_named_tensors(content.tensors)
            present = [name for name in part_names if name in unread]
            tensors |= content.reader({name: unread[name] for name in present})
    return tensors


def wrap_arrays(content):
    """Replace arrays and torch tensors in `content` by LazyTensor."""
    if isinstance(content, Mapping):
        return {name: wrap_arrays(value) for name, value in content.items()}
    if hasattr(content, "shape"):
        return LazyTensor(functools.partial(_copy_to_numpy, content))
    return content


def _copy_to_numpy(tensor):
    """Copy a tensor to NumPy, so that later changes by the caller miss the model."""
    # torch tensors may be bfloat16, which NumPy lacks, or on a GPU.
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.array(tensor)


def select_model(content, key=None):
    """Select one model in `content`, {name: LazyTensor}.

    key: needed if the content has several models
    """
    models = {}
    if isinstance(content, dict):
        models = {name: part for name, part in content.items() if _is_state_dict(part)}
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
    return check_named_tensors(content)


def check_named_tensors(content):
    """Check that `content` is a state dict, and drop AveragedModel's counter."""
    if not isinstance(content, dict) or not content:
        raise InputError("it holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise InputError(
                f"it must hold named tensors only, but {name!r} is of type "
                f"{type(value).__name__}"
            )
    return {
        name: tensor for name, tensor in content.items() if name != _AVERAGES_COUNTER
    }


def _is_state_dict(part):
    """Whether a value in the content is a model's state dict."""
    if not isinstance(part, dict) or len(part) < MIN_MODEL_TENSORS:
        return False
    return all(isinstance(value, LazyTensor) for value in part.values())


_FILE_OPENERS = {
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pth": _open_torch,
    ".pt": _open_torch,
    ".tar": _open_torch,  # timm's .pth.tar
    ".bin": _open_torch,
    ".ckpt": _open_torch,  # Lightning
    ".json": _open_index,
}
# Openers for the parts of an index.
_PART_OPENERS = {".safetensors": _open_safetensors, ".bin": _open_torch}
