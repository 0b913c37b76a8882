"""Read chosen tensors from .npz, .safetensors (also in parts) and PyTorch files.

Training scripts save a state dict alone, or under a key beside optimizer and epoch.
Weight averages or a second model may have keys of their own.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Generator, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import safetensors

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.weights.torch_files import LazyTensor, open_torch_file

_LFS_START = b"version https://git-lfs"
_COUNTER_NAME = "n_averaged"  # a counter in PyTorch's AveragedModel, not a weight
MIN_MODEL_TENSORS = 12  # a model has at least the tensors of one block

NamedArrays = dict[str, np.ndarray]  # {name: array}
LazyTensors = dict[str, LazyTensor]
PathOrStateDict: TypeAlias = str | os.PathLike | Mapping[str, Any]


def weights_title(weights: PathOrStateDict) -> str:
    """Name a weights file or a state dict in error messages."""
    if isinstance(weights, Mapping):
        return "the state dict"
    return f"weights file {weights}"


def read_state_dict(path: str | os.PathLike) -> NamedArrays:
    """Read {name: array} from a file of one model, with its shapes and dtypes."""
    with open_tensors(path) as lazy_tensors:
        return {name: tensor.read() for name, tensor in lazy_tensors.items()}


@contextlib.contextmanager
def open_tensors(
    weights: PathOrStateDict, model_key: str | None = None
) -> Generator[LazyTensors]:
    """Open a weights file or a state dict in memory; errors name the file.

    Tensors that nobody reads, maybe many GB, stay in the file.

    model_key: the key of the wanted model in a file with several models
    """
    if isinstance(weights, Mapping):
        with titled_errors(weights_title(weights)):
            yield select_model_tensors(wrap_arrays(weights), model_key)
    else:
        with _open_file(pathlib.Path(weights)) as content:
            yield select_model_tensors(content, model_key)


@contextlib.contextmanager
def _open_file(path):
    """Open a file by its ending, and give its content with every array a LazyTensor."""
    opener = _FILE_OPENERS.get(path.suffix.lower())
    if opener is None:
        endings = ", ".join(_FILE_OPENERS)
        raise InputError(f"{weights_title(path)} ends in none of {endings}")
    with titled_errors(weights_title(path)):
        with open(path, "rb") as file:
            if file.read(len(_LFS_START)) == _LFS_START:
                raise InputError("it is a Git LFS pointer; `git lfs pull` fetches it")
        try:
            with opener(path) as content:
                yield content
        except (InputError, OSError):
            raise
        except Exception as error:  # a damaged pickle or header can raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"it is damaged or of another kind: {reason}") from error


def _make_lazy_tensors(names, read_tensor):
    return {name: LazyTensor(functools.partial(read_tensor, name)) for name in names}


@contextlib.contextmanager
def _open_npz(path):
    # numpy.load would take any other file for a pickle, and say so.
    with open(path, "rb") as file, np.lib.npyio.NpzFile(file) as archive:

        def read_array(name):
            array = archive[name]  # NumPy saves bfloat16 as two raw bytes
            return array.view(jnp.bfloat16) if array.dtype == "V2" else array

        yield _make_lazy_tensors(archive.files, read_array)


@contextlib.contextmanager
def _open_safetensors(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        yield _make_lazy_tensors(file.keys(), file.get_tensor)


def read_weight_map(path: pathlib.Path) -> dict[str, str]:
    """Read the index of .safetensors or .bin in parts: {tensor name: file name}."""
    file_of_tensor = read_json(path)["weight_map"]
    for file_name in file_of_tensor.values():
        path_in_index = pathlib.PurePath(str(file_name))
        is_part = path_in_index.suffix in (".safetensors", ".bin")
        if path_in_index.name != file_name or not is_part:
            raise InputError(f"{path} names {file_name!r}, which is no part beside it")
    return file_of_tensor


@contextlib.contextmanager
def _open_index(path):
    """Open an index, and a part when a tensor in it is read."""
    file_of_tensor = read_weight_map(path)
    open_parts = contextlib.ExitStack()

    @functools.cache
    def open_part(file_name):
        return open_parts.enter_context(_open_file(path.parent / file_name))

    def read_tensor(name):
        return open_part(file_of_tensor[name])[name].read()

    try:
        yield _make_lazy_tensors(file_of_tensor, read_tensor)
    finally:
        # Not `with open_parts`: every open part would put its name before an error.
        open_parts.close()


def wrap_arrays(content: Any) -> Any:
    """Replace arrays and torch tensors in `content` by LazyTensor."""
    if isinstance(content, Mapping):
        return {name: wrap_arrays(value) for name, value in content.items()}
    if not hasattr(content, "shape"):  # no array, such as an epoch
        return content

    def copy_to_numpy():
        # torch tensors may be bfloat16, which NumPy lacks, or on a GPU. A copy, so that
        # later changes by the caller miss the model.
        is_torch = hasattr(content, "detach")
        return np.array(content.detach().cpu().float().numpy() if is_torch else content)

    return LazyTensor(copy_to_numpy)


def select_model_tensors(content: Any, model_key: str | None = None) -> LazyTensors:
    """Select one model's tensors; `model_key` is needed if there are several models."""
    state_dicts = {}  # {key: {name: LazyTensor}}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, dict) and len(value) >= MIN_MODEL_TENSORS:
            if all(isinstance(tensor, LazyTensor) for tensor in value.values()):
                state_dicts[key] = value
    if model_key not in state_dicts and (model_key is not None or len(state_dicts) > 1):
        allowed_keys = " or ".join(state_dicts) or "None, as the file has one model"
        raise InputError(f"checkpoint is {model_key!r}; it must be {allowed_keys}")
    tensors = content  # a state dict itself, if it holds none
    if state_dicts:
        tensors = state_dicts[model_key or next(iter(state_dicts))]
    if not isinstance(tensors, dict) or not tensors:
        raise InputError("it holds no named tensors")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, LazyTensor):
            raise InputError(f"{name!r} is a {type(value).__name__}, no named tensor")
    return {name: tensor for name, tensor in tensors.items() if name != _COUNTER_NAME}


_FILE_OPENERS = {
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pth": open_torch_file,
    ".pt": open_torch_file,
    ".tar": open_torch_file,  # timm's .pth.tar
    ".bin": open_torch_file,
    ".ckpt": open_torch_file,  # Lightning
    ".json": _open_index,
}
