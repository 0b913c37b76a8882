"""Files of PyTorch, written by hand.

Their opcodes are the ones that Python's pickletools shows for PyTorch's own files:
a zip archive with a pickle in `NAME/data.pkl` and the raw storages in `NAME/data/KEY`.
"""

import struct
import zipfile

import chex
import numpy as np

EMPTY = b"ccollections\nOrderedDict\n)R"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value):
    return b"J" + struct.pack("<i", value)


def ints(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(key, count, shape, strides, offset=0, storage="FloatStorage"):
    """Pickle opcodes of one tensor: a view of `count` elements stored under `key`."""
    kind = b"ctorch\n" + storage.encode() + b"\n"
    where = text("storage") + kind + text(key) + text("cpu") + integer(count)
    view = b"(" + where + b"tQ" + integer(offset) + ints(shape) + ints(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89" + EMPTY + b"tR"


def parameter(value):
    return b"ctorch._utils\n_rebuild_parameter\n(" + value + b"\x88" + EMPTY + b"tR"


def mapping(**items):
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def write_pth(path, content, storages=None, compression=zipfile.ZIP_STORED, **extra):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        for name, value in extra.items():
            archive.writestr(f"archive/{name}", value)
    return path


NAMESPACE = b"cargparse\nNamespace\n)\x81"


def assert_same(tensors, expected):
    chex.assert_trees_all_equal({**tensors}, {**expected}, strict=True)


# PyTorch before 1.6

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def old_torch(content, keys=("0",), counts=(4,), little=b"\x88"):
    """A file in PyTorch's format without an archive: pickles, then storages."""
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    pickles = [b"M\xe9\x03", mapping(little_endian=little), content, listed]
    parts = [MAGIC, *[b"\x80\x02" + part + b"." for part in pickles]]
    for count in counts:
        stored = np.arange(count, dtype="<f4").tobytes()
        parts += [struct.pack("<q", count), stored]
    return b"".join(parts)


def old_tensor(key, count, shape, strides, view=b"N"):
    """`tensor`, whose storage has a sixth part in this format."""
    return tensor(key, count, shape, strides).replace(b"tQ", view + b"tQ", 1)
