"""Read PyTorch's files (.pth and others) without PyTorch.

A file is a zip archive with a pickle (names, shapes, strides) and one raw file per
storage. Before PyTorch 1.6 the same parts follow each other in one plain file. Only
listed globals are allowed and none is looked up, so no code from a file ever runs.
"""

import contextlib
import functools
import io
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Generator
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.errors import InputError

# PyTorch's storages. Complex and quantized storages are refused.
_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Files from before PyTorch 1.6 are not zip archives. They start with this number,
# pickled.
_OLD_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# Globals of objects that training scripts save beside the weights: tensor sizes and
# dtypes, arguments, and Lightning's settings.
_IGNORED_TYPES = re.compile(
    r"argparse\.Namespace|pathlib\.\w*Path|datetime\.\w+|typing\.\w+|_codecs\.encode|"
    r"torch\.(Size|device|dtype|layout|strided|bool|bfloat16|(float|u?int)\d+)|"
    r"collections\.(defaultdict|Counter)|"
    r"numpy(\.\w+)*\.(scalar|dtype|ndarray|_reconstruct)|"
    r"(pytorch_)?lightning(_\w+|\.)[\w.]*|omegaconf\.[\w.]+|"
    r"(__builtin__|builtins)\.(bool|bytes|complex|dict|float|frozenset|int|list|object|"
    r"range|set|slice|str|tuple)"
)


class LazyTensor(NamedTuple):
    """A tensor that was not read yet."""

    read: Callable[[], np.ndarray]


@contextlib.contextmanager
def open_torch_file(path: pathlib.Path) -> Generator[Any]:
    """Open a torch.save file, and give its content with every tensor a LazyTensor."""
    with open(path, "rb") as file:
        if file.read(len(_OLD_TORCH_MAGIC)) == _OLD_TORCH_MAGIC:
            yield _read_old_file(file)
            return
    with zipfile.ZipFile(path) as archive:
        member_names = archive.namelist()
        folder, _, _ = member_names[0].partition("/")
        order_name = f"{folder}/byteorder"
        if order_name in member_names and archive.read(order_name) != b"little":
            raise InputError("its byte order is big")

        def read_bytes(storage):
            return archive.read(f"{folder}/data/{storage.key}")

        pickle_file = io.BytesIO(archive.read(f"{folder}/data.pkl"))
        yield _StateDictUnpickler(pickle_file, read_bytes).load()


def _read_old_file(file):
    """Read a file from before PyTorch 1.6: pickles, then the bytes of each storage."""
    offsets: dict[str, int] = {}  # {storage key: its first byte in the file}

    def read_bytes(storage):
        file.seek(offsets[storage.key])
        return file.read(storage.num_bytes)

    _StateDictUnpickler(file, read_bytes).load()  # the version of the format
    if not _StateDictUnpickler(file, read_bytes).load()["little_endian"]:
        raise InputError("its byte order is big")
    unpickler = _StateDictUnpickler(file, read_bytes)
    content = unpickler.load()
    for key in _StateDictUnpickler(file, read_bytes).load():
        storage = unpickler.storages[key]
        # Every storage begins with its element count, in eight bytes.
        stored_count = int.from_bytes(file.read(8), "little")
        if stored_count != storage.num_values:
            raise pickle.UnpicklingError(f"storage {key} has {stored_count} elements")
        offsets[key] = file.tell()
        file.seek(storage.num_bytes, io.SEEK_CUR)
    return content


class _Storage(NamedTuple):
    """A flat array in a PyTorch file."""

    key: str
    dtype: np.dtype
    num_values: int

    @property
    def num_bytes(self) -> int:
        return self.num_values * self.dtype.itemsize


class _WithoutAttributes:
    """Base class that ignores a pickled state, so no attribute is ever set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredObject(_WithoutAttributes, list):
    """Placeholder for an object beside the weights; no dict, so it never is weights."""

    __slots__ = ()

    def __init__(self, *_ignored: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _OrderedDict(_WithoutAttributes, dict):
    """PyTorch's OrderedDict without attributes."""

    __slots__ = ()


class _StateDictUnpickler(pickle.Unpickler):
    """Unpickles tensors as LazyTensor, and refuses unlisted globals."""

    # A pickle may call any result of `find_class` with any arguments. So every argument
    # is checked, and no reachable object has attributes to overwrite.

    def __init__(self, file: BinaryIO, read_bytes: Callable[[_Storage], bytes]) -> None:
        super().__init__(file)
        # Consecutive tensors may share a storage. Only one is kept, because a file may
        # have many GB.
        self._read_bytes = functools.lru_cache(maxsize=1)(read_bytes)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global; refuse a global that is not listed."""
        # Methods are bound, because a pickle can overwrite a plain function's defaults.
        allowed_globals = {
            ("collections", "OrderedDict"): _OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
        }
        if (module, name) in allowed_globals:
            return allowed_globals[module, name]
        if _IGNORED_TYPES.fullmatch(f"{module}.{name}"):
            return _IgnoredObject
        if module == "torch" and name in _STORAGE_DTYPES:
            return name  # which `persistent_load` gets as the storage's type
        raise InputError(f"it asks for {module}.{name}; save model.state_dict() alone")

    def persistent_load(self, pid: Any) -> _Storage:
        """Record a storage. pid is (kind, type, file, device, length)."""
        _, storage_type, key, _, num_values, *view = pid
        # Old files have a sixth entry: None, or a view before PyTorch 0.4.
        if view not in ([], [None]):
            raise pickle.UnpicklingError(f"storage {key} is a view, {view}")
        self.storages[key] = _Storage(key, _STORAGE_DTYPES[storage_type], num_values)
        return self.storages[key]

    def _rebuild_tensor(self, storage, offset, shape, strides, *_ignored):
        """Make a LazyTensor of a strided tensor; strides count elements."""
        # Exact types: a pickle could change a list after these checks, and True is 1.
        is_tensor = type(storage) is _Storage and type(shape) is type(strides) is tuple
        if not is_tensor or {*map(type, (offset, *shape, *strides))} != {int}:
            raise pickle.UnpicklingError("a tensor without storage, shape or strides")
        num_values = math.prod(shape)
        last_offset = offset
        for side, stride in zip(shape, strides, strict=True):
            last_offset += (side - 1) * stride
        # Without these checks as_strided would read foreign memory.
        has_negative = min((offset, *shape, *strides)) < 0
        is_expanded = num_values > storage.num_values  # by stride 0, maybe to terabytes
        is_outside = num_values > 0 and last_offset >= storage.num_values
        if has_negative or is_expanded or is_outside:
            raise pickle.UnpicklingError(f"tensor of shape {shape} leaves its storage")
        view = (storage, offset, shape, strides)
        return LazyTensor(functools.partial(self._read_tensor, *view))

    def _read_tensor(self, storage, offset, shape, strides):
        """Copy a tensor out of its storage; offset and strides count elements."""
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        storage_bytes = self._read_bytes(storage)
        if len(storage_bytes) != storage.num_bytes:
            raise pickle.UnpicklingError(f"storage {storage.key} is cut")
        flat_values = np.frombuffer(storage_bytes, storage.dtype)[offset:]
        byte_strides = [stride * storage.dtype.itemsize for stride in strides]
        # A copy, because views of one storage would share memory.
        return np.lib.stride_tricks.as_strided(flat_values, shape, byte_strides).copy()

    def _rebuild_parameter(self, tensor, *_ignored):
        return tensor
