"""Tensors of weights files: .npz, .safetensors, in parts too, and PyTorch's .pth.

PyTorch is not needed: a .pth file is a zip archive of a pickle (names, shapes, strides)
and one raw file per storage, before PyTorch 1.6 one file with these behind each other.
A TorchScript archive has, beside its code, a pickle of modules. The pickle may name
only few globals, none of which is looked up, so reading a file never runs code that
came with it.
"""

import collections
import functools
import io
import json
import math
import os
import pathlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.machine import memory_bytes
from imagepiece_jax.common.warning import warn
from imagepiece_jax.errors import InputError, inside, one_of
from imagepiece_jax.weights.file_names import CONFIG, ORBAX

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
_SAFETENSORS_DTYPES = "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()
# Files of PyTorch before 1.6 are no zip archives: they start with this pickled number.
_OLD_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
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
UNPACKED = 100  # times a file's size, at most: weights hardly become smaller
RECOVERY = "imagepiece_jax.recovery"  # its record in a file's metadata, as JSON
DEEPEST = 100  # tuple inside tuple, in a pickle, and module inside module
MOST_TENSORS = 100_000  # of a module
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
# TorchScript's functions that give back their first argument.
_TYPED = (
    "restore_type_tag",
    "build_intlist",
    "build_doublelist",
    "build_boollist",
    "build_tensorlist",
)
_LFS = b"version https://git-lfs"
_READABLE = "floats of 16, 32 and 64 bits, integers and booleans"
# Three numbers each, which a file may have for its images.
_NORMALIZATION = ("mean", "std")


class _Unread(NamedTuple):
    """A tensor that is still in its file."""

    size: int  # in bytes
    read: Callable[[], np.ndarray] | None = None  # from the file


def read_state_dict(
    path: str | os.PathLike,
    averaged: bool = False,
    choose: Callable[[Collection[str]], Collection[str]] = list,
    checkpoint: str | None = None,
) -> dict[str, np.ndarray]:
    """Named tensors of a weights file, with the file's shapes and types.

    The ending chooses the reader, by _READERS; a state dict under keys of _WRAPPERS is
    unwrapped.

    averaged: read averages, under one of the keys _AVERAGES or with _OF_AVERAGES in
        front of their names; False warns of any, and leaves them out
    choose: the names to read, from all names; other tensors may be many GB
    checkpoint: a key of the file, or a start of names, such as "teacher", of the model
        that is meant, where a file has several
    Raises InputError where the file or a part is missing, of an unknown kind, damaged,
        truncated, or anything but named tensors, and where there are no averages, or no
        such checkpoint.
    """
    path = pathlib.Path(path)

    def select(content):
        """The tensors that `choose` names, not yet read.

        Raises InputError where they are larger than the memory.
        """
        unread = _tensors_of_one(path, content, averaged, checkpoint)
        names = choose([name for name in unread if name not in _NORMALIZATION])
        unread = {name: unread[name] for name in names}
        size = sum(tensor.size for tensor in unread.values())
        _limit_size(path, size, memory_bytes())
        return unread

    tensors = _guarded(path, _READERS, select)
    for name, value in tensors.items():
        if value.dtype.kind not in "biuf" and value.dtype != jnp.bfloat16:
            error = _other_type(f"tensor {name}", value.dtype)
            raise error.inside(place=f"weights file {path}")
    return tensors


def read_normalization(path: str | os.PathLike) -> dict[str, list[float]]:
    """{"mean": .., "std": ..} of the images that a weights file is for; {}: unknown.

    A .npz file has them as arrays, a .safetensors file as JSON lists in its metadata.
    Raises InputError as `read_state_dict` does, and for one without the other.
    """
    path = pathlib.Path(path)
    readers = dict.fromkeys(_READERS, lambda _: {})
    readers |= {".npz": _npz_normalization, ".safetensors": _safetensors_normalization}
    values = _guarded(path, readers)
    if len(values) == 1:
        problem = f"has only {next(iter(values))}"
        raise InputError.at(f"weights file {path}", problem, "mean and std, or neither")
    return values


def read_recovery(path: str | os.PathLike) -> dict[str, Any] | None:
    """The record of a recovery that changed the tensors of a file; None: there is none.

    Earlier versions wrote such files.

    Raises InputError as `read_state_dict` does.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".safetensors":
        return None
    return _guarded(path, {".safetensors": _safetensors_recovery})


def _guarded(path, readers, *options):
    """The result of the reader for a file's ending, whose failures are InputErrors."""
    with inside(place=f"weights file {path}"):
        reader = readers.get(path.suffix.lower() or path.name)
        if reader is None:
            allowed = ", ".join(readers)
            problem = f"ends in {path.suffix!r}"
            raise InputError(value=path.suffix, allowed=allowed, problem=problem)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise InputError(problem=problem)
        try:
            _look_into(path)
            return reader(path, *options)
        except InputError:
            raise
        except OSError as error:
            raise InputError(problem=f"cannot be read: {error}") from error
        except Exception as error:  # a damaged pickle or header can raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            reason = reason.partition(" [tensorstore_spec=")[0]  # of Orbax: a page
            kind = path.suffix or path.name
            raise InputError(
                problem=f"is damaged, truncated or not a {kind} file: {reason}"
            ) from error


def _look_into(path):
    """Raise InputError for a pointer of Git LFS, and for an archive that is a bomb."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            hint = "fetch it by git lfs pull"
            raise InputError(problem="is a pointer of Git LFS, not the file", hint=hint)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _limit_size(path, sum(part.file_size for part in archive.infolist()))


def _limit_size(path, unpacked, memory=math.inf):
    """Raise InputError for more bytes than the memory or an archive's weights have."""
    limits = {f"this machine's memory, {memory / 1e6:.1f} MB": memory}
    if zipfile.is_zipfile(path):
        size = path.stat().st_size
        limits[f"a hundred times its own {size / 1e6:.3f} MB"] = UNPACKED * size
    limit = min(limits, key=limits.get)
    if unpacked > limits[limit]:
        problem = f"has {unpacked / 1e6:.1f} MB unpacked, which is more than {limit}"
        raise InputError(value=unpacked, problem=problem)


def _tensors_of_one(path, content, averaged, checkpoint):
    """{name: _Unread} of the model in `content` that the caller means.

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
            return _named_tensors(content[key])
        if _wrapper(content) is not None:  # else the averages are all there is
            _warn_of_averages(path, key)
    tensors = _named_tensors(content)
    if start:
        named = _under(start, tensors)
        if not named:
            models = _models_by_names(tensors) or [*_models(content)]
            hint = "" if models else "leave it out"
            allowed = " or ".join(map(repr, models))
            raise InputError("checkpoint", start, allowed, hint=hint)
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
    Raises InputError where averages are wanted of a file that has none, or several.
    """
    by_start = _averages(tensors, start)
    if averaged and len(by_start) == 1:
        [averages] = by_start.values()
        return averages
    if averaged:
        if by_start:
            problem = "has averages of several models"
            raise InputError(problem=problem, hint=choice_of(by_start))
        problem = "has no averaged weights"
        allowed = f"files with {', '.join(_AVERAGES[:-1])} or {_AVERAGES[-1]}"
        hint = choice_of(_models_by_names(tensors))
        raise InputError(allowed=allowed, problem=problem, hint=hint)
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
                f"out: {choice_of(others)}"
            )
        content = content[key]


def choice_of(models: Collection[str]) -> str:
    """How a caller names one of these models in a file, as a clause; "": there is none.

    models: keys, or starts of the names of tensors
    """
    if not models:
        return ""
    ways = [f"checkpoint={model!r}" for model in models]
    verb = "reads it" if len(ways) == 1 else "reads one of them"
    return f"{' or '.join(ways)} {verb}"


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
        if isinstance(content.get(key), dict | _Module):
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
            if all(type(value) is _Unread for value in part.values()):
                models[key] = part
    return models


def _name_of_averages(content):
    """The key of the averages in `content`, or None."""
    if isinstance(content, dict):
        for name in _AVERAGES:
            if isinstance(content.get(name), dict):
                return name
    return None


def _named_tensors(content):
    """The state dict in `content`. Raises InputError where there is anything else."""
    content = _unwrapped(content)
    models = _models(content)
    if len(models) == 1:  # among a script's other things
        [content] = models.values()
    elif models:
        problem = f"holds {len(models)} models, {', '.join(models)}"
        raise InputError(
            value=[*models], allowed="one", problem=problem, hint=choice_of(models)
        )
    problem = "is not a state dict"
    allowed = "named tensors"
    if not isinstance(content, dict) or not content:
        found = "none" if isinstance(content, dict) else type(content).__name__
        raise InputError(
            value=found, allowed=allowed, problem=f"{problem}: it has {found}"
        )
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, _Unread):
            continue
        if any(isinstance(part, dict) for part in content.values()):
            allowed += f", alone or under {', '.join(map(repr, _WRAPPERS))}"
        kind = np.ndarray if isinstance(value, _Unread) else type(value)
        problem = f"{problem}: {name!r} is of type {kind.__name__}"
        raise InputError(value=name, allowed=allowed, problem=problem)
    is_count = re.compile(rf"(.*\.)?{_COUNT}").fullmatch
    return {name: tensor for name, tensor in content.items() if not is_count(name)}


def _unwrapped(content):
    """The state dict inside nested dicts, or the tensors of a TorchScript module."""
    for _ in range(DEEPEST):
        if isinstance(content, _Module):
            return content.tensors()
        if not isinstance(content, dict):
            return content
        key = _wrapper(content)
        if key is None:
            return content
        content = content[key]
    raise pickle.UnpicklingError(f"more than {DEEPEST} dicts in each other")


def _wrapper(content):
    """The first key of _WRAPPERS under which a dict has a dict or module, or None."""
    for key in _WRAPPERS:
        if isinstance(content.get(key), dict | _Module):
            return key
    return None


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
            name = part.filename.removesuffix(".npy")
            if name in sizes:
                problem = f"has two members named {name!r}, with or without .npy"
                raise InputError(value=name, allowed="one", problem=problem)
            sizes[name] = part.file_size
        chosen = select({name: _Unread(sizes[name]) for name in archive.files})
        arrays = {name: archive[name] for name in chosen}
    for name, array in arrays.items():
        # NumPy has no bfloat16, and reads such numbers as two raw bytes, V2.
        if array.dtype == "V2":
            arrays[name] = array.view(jnp.bfloat16)
    return arrays


def _whole(read):
    """A reader for whole files, of one for parts. It raises InputError for a part."""

    @functools.wraps(read)
    def reader(path, select):
        part = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})", path.stem)
        if part and int(part[2]) > 1:
            allowed = f"the index of all, {part[1]}{path.suffix}.index.json"
            raise InputError(allowed=allowed, problem=f"is one of {int(part[2])} parts")
        return read(path, select)

    return reader


def _read_safetensors(path, select):
    """The tensors of a .safetensors file that `select` chooses, {name: array}."""
    with safetensors.safe_open(path, framework="numpy") as file:
        # Sizes of 0, as tensors of such a file cannot unpack to more than its own size.
        chosen = select(dict.fromkeys(file.keys(), _Unread(0)))
        for name in chosen:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS_DTYPES:
                raise _other_type(f"tensor {name}", dtype)
        return {name: file.get_tensor(name) for name in chosen}


def _other_type(tensor, dtype):
    error = InputError(tensor, str(dtype), _READABLE, problem=f"is of type {dtype}")
    return error.inside(hint="convert it first")


def _read_orbax(path, select):
    """Arrays of the Orbax checkpoint in the folder of `path`, by their paths."""
    from imagepiece_jax.common import orbax_files  # which not all installations have

    paths = {}
    for tree in read_json(path)["tree_metadata"].values():
        keys = [part["key"] for part in tree["key_metadata"]]
        paths["/".join(map(str, keys))] = tuple(keys)
    chosen = select(dict.fromkeys(paths, _Unread(0)))
    folder = path.parent.absolute()
    arrays = orbax_files.read_arrays(folder, [paths[name] for name in chosen])
    return {name: np.asarray(arrays[paths[name]]) for name in chosen}


def parts(path: pathlib.Path) -> dict[str, str]:
    """{tensor: the file with it} of the index of .safetensors or .bin in parts.

    Raises InputError for another form, and for a part in another folder.
    """
    places = read_json(path).get("weight_map")
    place = f"weights file {path}"
    if not isinstance(places, dict) or not places:
        is_config = path.name == CONFIG
        hint = f"did you mean its folder, {path.parent}?" if is_config else ""
        allowed = "an index of .safetensors or .bin in parts"
        raise InputError.at(place, "has no weight_map", allowed, hint)
    ending = pathlib.PurePath(path.name.removesuffix(".index.json")).suffix
    endings = [*_PARTS]
    if ending in _PARTS:
        endings = [ending]
    for part in places.values():
        file = pathlib.PurePath(str(part))
        if file.name != part or file.suffix not in endings:
            allowed = f"names of {' or '.join(endings)} files beside it"
            raise InputError.at(place, f"names the part {part!r}", allowed, value=part)
    return places


def _read_parts(path, select):
    """The selected tensors of an index, each from the part that has it."""
    part_of = parts(path)
    # Of size 0, as an index has no sizes.
    chosen = select(dict.fromkeys(part_of, _Unread(0)))
    names_by_part = {}
    for name in chosen:
        names_by_part.setdefault(part_of[name], []).append(name)
    tensors = {}
    for part, names in sorted(names_by_part.items()):
        file = path.parent / part
        if not file.is_file():
            raise InputError(value=part, problem=f"lacks its part {part} beside it")
        tensors |= _guarded(file, _PARTS, functools.partial(_only, names))
    for name in chosen:
        if name not in tensors:
            part = f"its part {part_of[name]}"
            raise InputError(part, name, problem=f"lacks tensor {name}")
    return tensors


def _only(names, content):
    """The tensors in `content`, not yet read, that have one of the names."""
    unread = _named_tensors(content)
    return {name: unread[name] for name in names if name in unread}


def _npz_normalization(path):
    """The mean and std that an .npz file may have, {name: numbers}."""
    # Opened here: NumPy leaves its own file open where the archive is damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {k: archive[k] for k in _NORMALIZATION if k in archive}
    written = {}
    for name, values in arrays.items():
        written[name] = values.tolist()
        if values.dtype == np.float32:  # whose 0.485 is another number in float64
            written[name] = [float(str(value)) for value in values.ravel()]
    return written


def _safetensors_normalization(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
        return {k: json.loads(metadata[k]) for k in _NORMALIZATION if k in metadata}


def _safetensors_recovery(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        record = (file.metadata() or {}).get(RECOVERY)
    return record and json.loads(record)


def _read_torch(path, select):
    """Tensors of a file, or of a part, that PyTorch's save or TorchScript's wrote."""
    with open(path, "rb") as file:
        if file.read(len(_OLD_TORCH_MAGIC)) == _OLD_TORCH_MAGIC:
            return _read_old_torch(file, select)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise InputError(problem="is a zip archive without a data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names:
            order = archive.read(f"{folder}byteorder").decode()
            one_of("byte order", order, ["little"])
        storages = _ZipStorages(archive, folder)
        content = _StateDictUnpickler(archive.read(pickles[0]), storages).load()
        return _read_all(select(content))


def _read_all(unread):
    """{name: array} of _Unread tensors."""
    return {name: tensor.read() for name, tensor in unread.items()}


def _read_old_torch(file, select):
    """As `_read_torch`, of pickles and storages behind each other."""
    storages = _FileStorages(file)
    _unpickled(file, storages)  # the version of the format
    system = _unpickled(file, storages)
    if isinstance(system, dict) and system.get("little_endian") is False:
        one_of("byte order", "big", ["little"])
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


class _Module:
    """A module of TorchScript: its attributes are tensors, modules and settings."""

    __slots__ = ("attributes",)

    def __init__(self):
        self.attributes = {}

    def __setstate__(self, state):
        self.attributes = {}
        if isinstance(state, dict):
            self.attributes = state

    def tensors(self):
        """{dotted name: tensor} of the module and the modules in it."""
        found = {}
        todo = [("", self)]
        while todo:
            start, module = todo.pop()
            for name, value in module.attributes.items():
                path = f"{start}{name}"
                if start.count(".") >= DEEPEST or len(found) + len(todo) > MOST_TENSORS:
                    raise pickle.UnpicklingError("modules in each other without an end")
                if isinstance(value, _Module):
                    todo.append((f"{path}.", value))
                elif isinstance(value, _Unread):
                    found[path] = value
        return found


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
        if module.partition(".")[0] == "__torch__":
            return _Module
        if module == "torch.jit._pickle" and name in _TYPED:
            return self._first
        if _IGNORED_TYPES.fullmatch(f"{module}.{name}"):
            return _IgnoredObject
        if module == "torch" and name in _STORAGE_DTYPES:
            return name
        # The third version builds tensors of types that have no storage class.
        other = r"float8|float4|Complex|UntypedS|_rebuild_tensor_v3"
        if module.startswith("torch") and re.match(other, name):
            raise _other_type("a tensor", "float8, complex64 or another such type")
        raise InputError(
            allowed="tensors",
            problem=f"asks for {module}.{name}",
            hint="save model.state_dict() alone",
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
        return _Unread(count * storage.dtype.itemsize, read)

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


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _whole(_read_safetensors),
    ".pth": _whole(_read_torch),
    ".pt": _whole(_read_torch),
    ".tar": _whole(_read_torch),  # .pth.tar, timm's
    ".bin": _whole(_read_torch),
    ".ckpt": _whole(_read_torch),  # Lightning's
    ".json": _read_parts,
    ORBAX: _read_orbax,
}
_PARTS = {".safetensors": _read_safetensors, ".bin": _read_torch}  # of several files
