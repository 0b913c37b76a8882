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
import pickletools
import re
import zipfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.state_dicts import DEEPEST, Unread, unreadable

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
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise InputError("it is a zip archive without a data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            order = archive.read(f"{folder}byteorder").decode()
            check_choice("the byte order", order, ["little"])
        storages = _ZipStorages(archive, folder)
        content = _StateDictUnpickler(archive.read(pickles[0]), storages).load()
        return _read_all(select(content))


def _read_all(unread):
    """{name: array} of Unread tensors."""
    return {name: tensor.read() for name, tensor in unread.items()}


def _read_old_torch(file, select):
    """As `read_torch`, of pickles and storages behind each other."""
    storages = _FileStorages(file)
    _unpickled(file, storages)  # the version of the format
    system = _unpickled(file, storages)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise InputError("its byte order is big")
    content = _unpickled(file, storages)
    storages.find(_unpickled(file, storages))
    return _read_all(select(content))


def _unpickled(file, storages):
    """The content of the pickle that begins here."""
    start = file.tell()
    for _ in pickletools.genops(file):
        pass
    size = file.tell() - start
    file.seek(start)
    return _StateDictUnpickler(file.read(size), storages).load()


class _ZipStorages:
    """The storages of a zip archive: raw files by their keys."""

    def __init__(self, archive, folder):
        self._archive = archive
        self._folder = folder

    def check(self, storage):
        """UnpicklingError where the archive lists another size than the pickle."""
        size = self._archive.getinfo(f"{self._folder}data/{storage.key}").file_size
        if size != storage.bytes:
            sizes = f"{size} bytes, needed {storage.bytes}"
            raise pickle.UnpicklingError(f"storage {storage.key} has {sizes}")

    def read(self, storage):
        return self._archive.read(f"{self._folder}data/{storage.key}")


class _FileStorages:
    """The storages behind the pickles of a file: a number of elements, and these."""

    def __init__(self, file):
        self._file = file
        self._needed = {}
        self._places = {}

    def check(self, storage):
        """UnpicklingError where the same key has another type or length."""
        if self._needed.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {storage.key} has two types")

    def find(self, keys):
        """Take the places of the storages with these keys, in this order."""
        if not isinstance(keys, list) or sorted(keys) != sorted(self._needed):
            raise pickle.UnpicklingError("storages of other keys than its tensors")
        for key in keys:
            storage = self._needed[key]
            count = int.from_bytes(self._file.read(8), "little", signed=True)
            if count != storage.size:
                sizes = f"{count} elements, needed {storage.size}"
                raise pickle.UnpicklingError(f"storage {key} has {sizes}")
            self._places[key] = self._file.tell()
            self._file.seek(storage.bytes, io.SEEK_CUR)

    def read(self, storage):
        self._file.seek(self._places[storage.key])
        return self._file.read(storage.bytes)


def _extent(opcodes: bytes) -> tuple[int, int]:
    """What loading a pickle would need: (highest memo index, depth of tuples).

    The memo is as long as its highest index, and tuples are hashed one inside the other
    without a limit.
    """
    stack = []  # how deep each object is, None: a mark
    memo = {}
    deepest = 0
    mark = pickletools.markobject
    for opcode, value, _ in pickletools.genops(opcodes):
        popped = 0
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = value
            if value is None:
                index = len(memo)
            memo[index] = stack[-1]
            continue
        if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])
            continue
        if opcode.name == "DUP":
            stack.append(stack[-1])
            continue
        if mark in opcode.stack_before:
            while (depth := stack.pop()) is not None:
                popped = max(popped, depth)
        for _ in range([*opcode.stack_before, mark].index(mark)):  # below the mark
            popped = max(popped, stack.pop() or 0)
        if opcode.name == "MARK":
            stack.append(None)
        elif opcode.stack_after:
            depth = popped
            if "TUPLE" in opcode.name:
                depth += 1
            deepest = max(deepest, depth)
            stack.append(depth)
    return max(memo, default=0), deepest


class _Storage(NamedTuple):
    """A flat array in the archive of a PyTorch file."""

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
    """

    def __init__(self, opcodes, storages):
        index, depth = _extent(opcodes)
        if index > len(opcodes):
            raise pickle.UnpicklingError(f"memo index {index}")
        if depth > DEEPEST:
            raise pickle.UnpicklingError(f"more than {DEEPEST} tuples in each other")
        super().__init__(io.BytesIO(opcodes))
        self._storages = storages
        self._stored = {}

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
        # The third version builds tensors of types that have no storage class.
        other = r"float8|float4|Complex|UntypedS|_rebuild_tensor_v3"
        if module.startswith("torch") and re.match(other, name):
            raise unreadable("a tensor", "float8, complex64 or another such type")
        raise InputError(
            f"it asks for {module}.{name}, not tensors; save model.state_dict() alone"
        )

    def persistent_load(self, pid):
        """The storage behind a tensor: pid is (kind, type, file, device, length)."""
        kind, storage, key, _, length, *view = pid
        is_whole = kind == "storage" and view in ([], [None])  # no view: before 0.4
        if (
            not is_whole
            or type(key) is not str
            or type(length) is not int
            or length < 0
        ):
            words = f"kind {kind!r}, name {key!r}, length {length!r} and view {view}"
            raise pickle.UnpicklingError(f"no whole storage, but an id of {words}")
        found = _Storage(key, _STORAGE_DTYPES[storage], length)
        self._storages.check(found)
        return found

    def _tensor(self, storage, offset, shape, strides, *_ignored):
        """PyTorch's strided tensor, not read yet; strides count elements."""
        tuples = type(shape) is type(strides) is tuple
        if type(storage) is not _Storage or not tuples:
            raise pickle.UnpicklingError("a tensor without storage, shape or strides")
        numbers = (offset, *shape, *strides)
        if {type(number) for number in numbers} != {int} or max(numbers) >= 2**63:
            raise pickle.UnpicklingError("a tensor of offsets that are no integers")
        count = math.prod(shape)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        # The bounds are checked here because as_strided would read foreign memory.
        if min(numbers) < 0 or count > storage.size:
            raise pickle.UnpicklingError(f"tensor of impossible shape {shape}")
        if count and last >= storage.size:
            raise pickle.UnpicklingError(f"tensor of shape {shape} leaves its storage")
        read = functools.partial(self._read, storage, offset, shape, strides)
        return Unread(count * storage.dtype.itemsize, read)

    def _read(self, storage, offset, shape, strides):
        """A tensor as an array of its own."""
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        if storage.key not in self._stored:  # tensors may be views of one storage
            self._stored[storage.key] = self._storages.read(storage)
        stored = self._stored[storage.key]
        itemsize = storage.dtype.itemsize
        if len(stored) != storage.bytes:  # the archive lists another size
            sizes = f"{len(stored)} bytes, needed {storage.bytes}"
            raise ValueError(f"storage {storage.key} has {sizes}")
        flat = np.frombuffer(stored, storage.dtype)[offset:]
        steps = [s * itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps).copy()

    def _first(self, value, *_ignored):
        """The first argument, in place of what a function would make of all."""
        return value
