"""PyTorch's files, .pth and others, which are read without PyTorch.

They are zip archives of a pickle (names, shapes, strides) and one raw file per storage,
before PyTorch 1.6 one file with these behind each other. The pickle may name only few
globals, none of which is looked up, so reading a file never runs code that came with
it.
"""

import functools
import io
import math
import pickle
import re
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.state_dicts import LazyTensor, read_all

# PyTorch's storages by name; complex and quantized ones hold no weights of ours.
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
# Files of PyTorch before 1.6 are no zip archives: they start with this pickled number.
_OLD_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# Globals of what training scripts save beside the weights: sizes and types of tensors,
# arguments, and the settings of Lightning.
_IGNORED_TYPES = re.compile(
    r"argparse\.Namespace|pathlib\.\w*Path|datetime\.\w+|typing\.\w+|_codecs\.encode|"
    r"torch\.(Size|device|dtype|layout|strided|bool|bfloat16|(float|u?int)\d+)|"
    r"collections\.(defaultdict|Counter)|"
    r"numpy(\.\w+)*\.(scalar|dtype|ndarray|_reconstruct)|"
    r"(pytorch_)?lightning(_\w+|\.)[\w.]*|omegaconf\.[\w.]+|"
    r"(__builtin__|builtins)\.(bool|bytes|complex|dict|float|frozenset|int|list|object|"
    r"range|set|slice|str|tuple)"
)


def read_torch(path, select):
    """Tensors of a file, or of a part, that PyTorch's save wrote."""
    with open(path, "rb") as file:
        if file.read(len(_OLD_TORCH_MAGIC)) == _OLD_TORCH_MAGIC:
            return _read_old_torch(file, select)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        folder, _, _ = names[0].partition("/")
        order = f"{folder}/byteorder"
        if order in names and archive.read(order) != b"little":
            raise InputError("its byte order is big")

        def stored(storage):
            return archive.read(f"{folder}/data/{storage.key}")

        pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))
        content = _StateDictUnpickler(pickled, stored).load()
        return read_all(select(content))


def _read_old_torch(file, select):
    """As `read_torch`, of pickles and storages behind each other."""
    places = {}

    def stored(storage):
        file.seek(places[storage.key])
        return file.read(storage.bytes)

    _StateDictUnpickler(file, stored).load()  # the version of the format
    system = _StateDictUnpickler(file, stored).load()
    if not system["little_endian"]:
        raise InputError("its byte order is big")
    unpickler = _StateDictUnpickler(file, stored)
    content = unpickler.load()
    for key in _StateDictUnpickler(file, stored).load():
        storage = unpickler.storages[key]
        size = int.from_bytes(file.read(8), "little")
        if size != storage.size:
            sizes = f"{size} elements, needed {storage.size}"
            raise pickle.UnpicklingError(f"storage {key} has {sizes}")
        places[key] = file.tell()
        file.seek(storage.bytes, io.SEEK_CUR)
    return read_all(select(content))


class _Storage(NamedTuple):
    """A flat array in a PyTorch file."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def bytes(self):
        """Its size in bytes."""
        return self.size * self.dtype.itemsize


class _WithoutAttributes:
    """An object that is no dict, so never the weights, and takes no state."""

    __slots__ = ()

    def __setstate__(self, state):
        pass


class _IgnoredObject(_WithoutAttributes):
    """Stands for an object that a training script saved beside the weights.

    It takes whatever a pickle gives it and keeps nothing.
    """

    __slots__ = ()

    def __init__(self, *_ignored):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        """Take no element."""

    def extend(self, values):
        """Take no elements."""


class _OrderedDict(_WithoutAttributes, dict):
    """PyTorch's, without the attributes that it may have."""

    __slots__ = ()


class _StateDictUnpickler(pickle.Unpickler):
    """Gives tensors of the file in place of PyTorch's, and refuses all other globals.

    A pickle may call any result of `find_class` with anything, so every argument is
    checked, and nothing that it can reach has attributes to overwrite.

    stored: function from a _Storage to its bytes in the file
    """

    def __init__(self, file, stored):
        super().__init__(file)
        self._stored = functools.cache(stored)  # tensors may be views of one storage
        self.storages = {}

    def find_class(self, module, name):
        # Bound methods, because a pickle can overwrite the defaults of plain functions.
        allowed = {
            ("collections", "OrderedDict"): _OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._first,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if _IGNORED_TYPES.fullmatch(f"{module}.{name}"):
            return _IgnoredObject
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        raise InputError(
            f"it asks for {module}.{name}; save model.state_dict() alone, in floats of "
            "16, 32 or 64 bits"
        )

    def persistent_load(self, pid):
        """The storage behind a tensor: pid is (kind, type, file, device, length)."""
        _, storage, key, _, size, *view = pid
        if view not in ([], [None]):  # no view: before 0.4
            raise pickle.UnpicklingError(f"storage {key} is a view, {view}")
        self.storages[key] = _Storage(key, _STORAGE_DTYPES[storage], size)
        return self.storages[key]

    def _tensor(self, storage, offset, shape, strides, *_ignored):
        """PyTorch's strided tensor, not read yet; strides count elements."""
        # A list could be changed after these checks.
        tuples = type(shape) is type(strides) is tuple
        if type(storage) is not _Storage or not tuples:
            raise pickle.UnpicklingError("a tensor without storage, shape or strides")
        numbers = (offset, *shape, *strides)
        if {type(number) for number in numbers} != {int}:
            raise pickle.UnpicklingError("a tensor of offsets that are no integers")
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # The bounds are checked here because as_strided would read foreign memory.
        inside = min(numbers) >= 0 and count <= storage.size
        if not inside or (count and last >= storage.size):
            raise pickle.UnpicklingError(f"tensor of shape {shape} leaves its storage")
        return LazyTensor(
            functools.partial(self._read, storage, offset, shape, strides)
        )

    def _read(self, storage, offset, shape, strides):
        """A tensor as an array of its own."""
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        stored = self._stored(storage)
        if len(stored) != storage.bytes:
            sizes = f"{len(stored)} bytes, needed {storage.bytes}"
            raise pickle.UnpicklingError(f"storage {storage.key} has {sizes}")
        flat = np.frombuffer(stored, storage.dtype)[offset:]
        steps = [s * storage.dtype.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()

    def _first(self, value, *_ignored):
        """The first argument, in place of what a function would make of all."""
        return value
