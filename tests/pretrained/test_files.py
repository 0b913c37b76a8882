"""Weights files: exactly the tensors that they hold, or a sentence on what is wrong.

PyTorch files are written here by hand, opcode by opcode, as Python's pickletools shows
those that PyTorch leaves: a zip archive with a pickle in `NAME/data.pkl` and the raw
storages in `NAME/data/KEY`.
"""

import collections
import json
import shutil
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from imagepiece_jax.errors import InputError
from imagepiece_jax.pretrained import files
from imagepiece_jax.pretrained.files import read_state_dict


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
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89" + hooks + b"tR"


def parameter(value):
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_parameter\n(" + value + b"\x88" + hooks + b"tR"


def mapping(**items):
    pairs = b"".join(text(name) + value for name, value in items.items())
    return b"}(" + pairs + b"u"


def write_pth(path, content, storages=None, **extra):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        for name, value in extra.items():
            archive.writestr(f"archive/{name}", value)
    return path


def test_real_files_agree_bit_for_bit(assets):
    npz = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.npz")
    pth = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.pth")
    assert len(npz) == 152 and sum(value.size for value in npz.values()) == 5_717_416
    assert npz.keys() == pth.keys()
    for name, value in npz.items():
        assert value.dtype == pth[name].dtype == np.float32
        np.testing.assert_array_equal(value, pth[name])


@pytest.mark.parametrize(
    "storage, array",
    [
        ("FloatStorage", np.array([1.5, -2, 3e-40, 7], "<f4")),
        ("DoubleStorage", np.array([1e300, -2, 3, 7], "<f8")),
        ("HalfStorage", np.array([1.5, -2, 6e-8, 7], "<f2")),
        ("LongStorage", np.array([2**40, -2, 3, 7], "<i8")),
        ("BoolStorage", np.array([True, False, True, True])),
    ],
)
def test_pth_types(tmp_path, storage, array):
    content = mapping(a=tensor("0", 4, (2, 2), (2, 1), storage=storage))
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": array}))
    assert read["a"].dtype == array.dtype
    np.testing.assert_array_equal(read["a"], array.reshape(2, 2))


def test_pth_bfloat16_from_bit_patterns(tmp_path):
    bits = np.array([0x3F80, 0xC000, 0x3E20], "<u2")  # 1, -2, 0.15625
    content = mapping(a=tensor("0", 3, (3,), (1,), storage="BFloat16Storage"))
    read = read_state_dict(write_pth(tmp_path / "a.pt", content, {"0": bits}))["a"]
    assert read.dtype == jnp.bfloat16
    np.testing.assert_array_equal(read.astype(np.float32), [1, -2, 0.15625])


def test_pth_views_of_one_storage(tmp_path):
    """Transposed, sliced, scalar and empty views; parameters are their tensors."""
    flat = np.arange(12, dtype="<f4")
    content = mapping(
        transposed=tensor("0", 12, (4, 3), (1, 4)),
        column=parameter(tensor("0", 12, (3,), (4,), offset=1)),
        scalar=tensor("0", 12, (), (), offset=5),
        empty=tensor("0", 12, (0, 3), (3, 1)),
    )
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": flat}))
    np.testing.assert_array_equal(read["transposed"], flat.reshape(3, 4).T)
    np.testing.assert_array_equal(read["column"], [1, 5, 9])
    assert read["scalar"].shape == () and read["scalar"] == 5
    assert read["empty"].shape == (0, 3)
    read["column"][:] = -1
    assert read["scalar"] == 5 and read["transposed"].min() == 0, "views share memory"


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher"])
def test_training_checkpoint_is_unwrapped(tmp_path, key):
    """An OrderedDict with attributes, as state dicts are, beside other things."""
    item = text("w") + tensor("0", 2, (2,), (1,))
    inner = b"ccollections\nOrderedDict\n)R(" + item + b"u"
    inner += mapping(_metadata=b"}") + b"b"
    content = mapping(epoch=integer(3), **{key: inner})
    path = write_pth(tmp_path / "a.bin", content, {"0": np.array([4, 5], "<f4")})
    read = read_state_dict(path)
    assert list(read) == ["w"]
    np.testing.assert_array_equal(read["w"], [4, 5])


@pytest.mark.parametrize(
    "key, name", [("model", "model_ema"), ("state_dict", "state_dict_ema")]
)
def test_averages_of_a_training_checkpoint(tmp_path, key, name):
    """As DeiT's code and timm save them beside the weights, which alone are read."""
    inner = {
        key: mapping(w=tensor("0", 2, (2,), (1,))),
        name: mapping(w=tensor("1", 2, (2,), (1,))),
    }
    content = mapping(epoch=integer(3), **inner)
    storages = {"0": np.array([4, 5], "<f4"), "1": np.array([6, 7], "<f4")}
    path = write_pth(tmp_path / "a.pth.tar", content, storages)
    with pytest.warns(UserWarning, match=f"has averaged weights, too .{name}., which"):
        np.testing.assert_array_equal(read_state_dict(path)["w"], [4, 5])
    averages = read_state_dict(path, averaged=True)
    np.testing.assert_array_equal(averages["w"], [6, 7])
    path = write_pth(tmp_path / "b.pth", inner[key], {"0": storages["0"]})
    with pytest.raises(InputError, match="b.pth has no averaged weights; allowed:"):
        read_state_dict(path, averaged=True)


def test_npz_and_safetensors(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    np.savez(tmp_path / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        read = read_state_dict(tmp_path / name)
        assert read.keys() == tensors.keys()
        for key, value in tensors.items():
            assert read[key].dtype == value.dtype and read[key].shape == value.shape
            np.testing.assert_array_equal(read[key], value)


def test_pth_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "marker"
    content = mapping(a=b"cos\nsystem\n(" + text(f"touch {marker}") + b"tR")
    with pytest.raises(InputError, match=r"a\.pth asks for os\.system; allowed: te"):
        read_state_dict(write_pth(tmp_path / "a.pth", content))
    assert not marker.exists()


def test_pth_builtins_of_allowed_modules_are_refused(tmp_path):
    content = mapping(a=b"ccollections\ndeque\n)R", b=b"ctorch\nload\n")
    with pytest.raises(InputError, match=r"asks for collections\.deque"):
        read_state_dict(write_pth(tmp_path / "a.pth", content))


@pytest.mark.parametrize(
    "view, reason",
    [
        (tensor("0", 4, (5,), (1,)), "impossible shape"),
        (tensor("0", 4, (2,), (4,)), "leaves its storage"),
        (tensor("0", 4, (2,), (1,), offset=3), "leaves its storage"),
        (tensor("0", 4, (2,), (-1,), offset=3), "impossible shape"),
        (tensor("0", 4, (2**20, 2**20), (0, 0)), "impossible shape"),
        (tensor("0", 5, (2,), (1,)), "storage 0 has 16 bytes, needed 20"),
        (tensor("1", 4, (2,), (1,)), "archive/data/1"),
        (b"}" + text("x") + b"Q", "not enough values|too many values"),
    ],
)
def test_pth_with_impossible_tensors(tmp_path, view, reason):
    path = write_pth(tmp_path / "a.pth", mapping(a=view), {"0": np.ones(4, "<f4")})
    with pytest.raises(InputError, match=f"a.pth is damaged.*({reason})"):
        read_state_dict(path)


@pytest.mark.parametrize("claim", [8, 80, 800])
def test_pth_whose_directory_claims_other_bytes_than_are_stored(tmp_path, claim):
    """16 bytes are there: more than that would be foreign memory."""
    view = mapping(a=tensor("0", claim // 4, (claim // 4,), (1,)))
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + view + b".")
        archive.writestr("archive/data/0", bytes(16))
        archive.filelist[-1].file_size = claim
    with pytest.raises(InputError, match="a.pth is damaged"):
        read_state_dict(tmp_path / "a.pth")


def test_pth_one_storage_under_two_types(tmp_path):
    """Each tensor has the type that it names, and ends where the bytes end."""
    stored = np.arange(4, dtype="<f4")
    wide = tensor("0", 2, (2,), (1,), storage="LongStorage")
    for first, second in ((wide, None), (None, wide)):
        plain = tensor("0", 4, (4,), (1,))
        content = mapping(a=first or plain, b=second or plain)
        read = read_state_dict(
            write_pth(tmp_path / "a.pth", content, {"0": stored}),
        )
        for name, given in (("a", first), ("b", second)):
            want = stored if given is None else stored.view("<i8")
            np.testing.assert_array_equal(read[name], want)


def called(function, *arguments):
    """Opcodes of a call, by the name of a global."""
    return b"c" + function + b"\n(" + b"".join(arguments) + b"tR"


NAMESPACE = b"cargparse\nNamespace\n)\x81"
WIDTH = NAMESPACE + mapping(itemsize=integer(4)) + b"b"
FAKE = mapping(key=text("0"), size=integer(9999), dtype=WIDTH)
REBUILD = b"torch._utils\n_rebuild_tensor_v2"
STORED = tensor("0", 4, (4,), (1,)).split(b"(", 1)[1].split(integer(0))[0]


@pytest.mark.parametrize(
    "opcodes",
    {
        "a storage of the file's own making": mapping(
            a=tensor("0", 4, (4,), (1,)),
            b=called(
                REBUILD,
                NAMESPACE + FAKE + b"b",
                integer(0),
                ints([9999]),
                ints([1]),
            ),
        ),
        "a shape that is a list": mapping(
            a=called(REBUILD, STORED, integer(0), b"](" + integer(4) + b"e", ints([1]))
        ),
        "a float as offset": mapping(
            a=called(REBUILD, STORED, b"G" + bytes(8), ints([4]), ints([1]))
        ),
        "a shape beyond any memory": mapping(
            a=called(REBUILD, STORED, integer(0), b"(\x8a\x09" + b"\xff" * 8 + b"\0t")
        ),
        "a length that is a float": mapping(
            a=tensor("0", 4, (4,), (1,)).replace(
                integer(4) + b"tQ", b"G@\x10" + bytes(6) + b"tQ"
            )
        ),
        "a memo of 34 GB": b"}r\xff\xff\xff\x7f",
        "a key of tuples in each other": b"})" + b"\x85" * 300 + b"Ns",
        "its own way to list tensors": b"ccollections\nOrderedDict\n)R"
        + mapping(items=b"cargparse\nNamespace\n")
        + b"b",
        "a tensor that is read in another way": mapping(
            a=tensor("0", 4, (4,), (1,))
            + mapping(size=integer(0), read=b"ccollections\nOrderedDict\n")
            + b"b"
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_pth_that_is_no_state_dict_of_pytorch(tmp_path, opcodes):
    path = write_pth(tmp_path / "a.pth", opcodes[1], {"0": np.ones(4, "<f4")})
    with pytest.raises(InputError, match="a.pth is (damaged|not a state dict)"):
        read_state_dict(path)


def test_types_that_are_not_read_are_named(tmp_path):
    """float8, as PyTorch and safetensors store it."""
    view = tensor("0", 4, (4,), (1,)).replace(
        b"ctorch\nFloatStorage", b"ctorch.storage\nUntypedStorage"
    )
    path = write_pth(tmp_path / "a.pth", mapping(a=view), {"0": np.ones(4, "u1")})
    with pytest.raises(InputError, match="float8, complex64 or .*; allowed: floats of"):
        read_state_dict(path)
    newer = tensor("0", 4, (4,), (1,)).replace(b"tensor_v2", b"tensor_v3")
    path = write_pth(tmp_path / "b.pth", mapping(a=newer), {"0": np.ones(4, "f4")})
    with pytest.raises(InputError, match="float8, complex64 or .*; allowed: floats of"):
        read_state_dict(path)
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + bytes(4)
    )
    with pytest.raises(InputError, match="tensor a is of type F8_E4M3; allowed: flo"):
        read_state_dict(tmp_path / "a.safetensors")


def test_npz_with_two_members_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, value in (("x", 1), ("x.npy", 2)):
            with archive.open(name, "w") as file:
                np.lib.format.write_array(file, np.full(3, value))
    with pytest.raises(InputError, match="a.npz has two members named 'x'"):
        read_state_dict(tmp_path / "a.npz")


def test_pth_of_other_kinds(tmp_path):
    old = tmp_path / "old.pth"
    old.write_bytes(bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + bytes(100))
    with pytest.raises(InputError, match=r"old\.pth has the format of PyTorch before"):
        read_state_dict(old)
    big = write_pth(tmp_path / "big.pth", mapping(), byteorder="big")
    with pytest.raises(InputError, match=r"big\.pth: byte order is 'big'; all"):
        read_state_dict(big)
    np.savez(tmp_path / "renamed.npz", a=np.ones(2))
    renamed = (tmp_path / "renamed.npz").rename(tmp_path / "renamed.pth")
    with pytest.raises(InputError, match=r"renamed\.pth is a zip archive without"):
        read_state_dict(renamed)


def good_files(folder):
    tensors = {"a": np.arange(3000, dtype=np.float32)}
    np.savez(folder / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")
    content = mapping(a=tensor("0", 3000, (3000,), (1,)))
    write_pth(folder / "a.pth", content, {"0": tensors["a"]})
    return folder


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pth"])
def test_damaged_files(tmp_path, name):
    path = good_files(tmp_path) / name
    whole = path.read_bytes()
    assert read_state_dict(path)["a"][2999] == 2999
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{name} is damaged, truncated or no"):
            read_state_dict(path)
    path.write_bytes(b"these are no weights" * 100)
    with pytest.raises(InputError, match=f"{name} is damaged, truncated or no"):
        read_state_dict(path)


def test_npz_of_bfloat16(tmp_path):
    """NumPy writes its two bytes, and does not say what they are."""
    values = np.array([1.5, -3e38, 2**-20], jnp.bfloat16)
    np.savez(tmp_path / "a.npz", a=values, b=np.ones(2, np.float16))
    read = read_state_dict(tmp_path / "a.npz")
    assert read["a"].dtype == jnp.bfloat16 and read["b"].dtype == np.float16
    np.testing.assert_array_equal(read["a"], values)


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def in_parts(folder, **index):
    """A model in two parts, with its index, as transformers writes it."""
    for name, part in zip("ab", PARTS, strict=True):
        tensors = {f"{name}.{i}": np.full(500, i, np.float32) for i in range(2)}
        safetensors.numpy.save_file(tensors, folder / part)
    places = {f"{name}.{i}": PARTS[name == "b"] for name in "ab" for i in range(2)}
    index = {"metadata": {"total_size": 8000}, "weight_map": places} | index
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_parts_are_read_together(tmp_path):
    read = read_state_dict(in_parts(tmp_path))
    assert sorted(read) == ["a.0", "a.1", "b.0", "b.1"]
    assert (read["b.1"] == 1).all() and read["b.1"].dtype == np.float32
    (tmp_path / PARTS[1]).rename(tmp_path / "model-00001-of-00001.safetensors")
    assert sorted(read_state_dict(tmp_path / "model-00001-of-00001.safetensors")) == [
        "b.0",
        "b.1",
    ]


def test_the_index_says_which_part_a_tensor_is_of(tmp_path):
    """Parts of another saving can hold the same names, and names of their own."""
    path = in_parts(tmp_path)
    other = {"b.0": np.full(500, 7, np.float32), "b.1": np.full(500, 8, np.float32)}
    other |= {"a.0": np.full(500, 9, np.float32), "c": np.ones(2, np.float32)}
    safetensors.numpy.save_file(other, tmp_path / PARTS[1])
    read = read_state_dict(path)
    assert {k: v[0] for k, v in read.items()} == {
        "a.0": 0,
        "a.1": 1,
        "b.0": 7,
        "b.1": 8,
    }


def test_parts_that_lack_something(tmp_path):
    path = in_parts(tmp_path)
    with pytest.raises(InputError, match="00002-of-00002.* is one of 2 parts; allowed"):
        read_state_dict(tmp_path / PARTS[1])
    whole = (tmp_path / PARTS[1]).read_bytes()
    (tmp_path / PARTS[1]).write_bytes(whole[:-100])
    with pytest.raises(InputError, match=f"{PARTS[1]} is damaged, truncated or no"):
        read_state_dict(path)
    (tmp_path / PARTS[1]).unlink()
    with pytest.raises(InputError, match=f"index.json lacks its part {PARTS[1]} besid"):
        read_state_dict(path)
    safetensors.numpy.save_file({"b.0": np.ones(2)}, tmp_path / PARTS[1])
    with pytest.raises(InputError, match=f"its part {PARTS[1]} lacks tensor b.1"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "index, message",
    [
        (
            {"weight_map": {}},
            "index.json has no weight_map; allowed: an index of .sa",
        ),
        ({"weight_map": {"a": "../x.safetensors"}}, "names the part '../x.safetensor"),
        (
            {"weight_map": {"a": ".."}},
            "names the part '..'; allowed: names of .safe",
        ),
        ({"weight_map": {"a": 5}}, "names the part 5; allowed: names of .safetens"),
        ({"weight_map": {"a": ["b"]}}, r"names the part \['b'\]; allowed: names of"),
        ({"weight_map": {"a": "x.bin"}}, "names the part 'x.bin'; allowed:"),
    ],
)
def test_indexes_of_something_else(tmp_path, index, message):
    with pytest.raises(InputError, match=message):
        read_state_dict(in_parts(tmp_path, **index))


def test_json_that_is_no_index(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match="config.json has no weight_map; allowed: an"):
        read_state_dict(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match="config.json is not JSON .*; allowed: an"):
        read_state_dict(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["a.npz", "a.pth"])
def test_flipped_bit_in_the_numbers(tmp_path, name):
    """Zip archives carry checksums; .safetensors has none and cannot notice."""
    path = good_files(tmp_path) / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match="(?i)damaged.*crc"):
        read_state_dict(path)


def test_missing_unknown_and_unreadable(tmp_path):
    with pytest.raises(InputError, match=r"none\.npz does not exist"):
        read_state_dict(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"ends in '.h5'; allowed: \.npz, "):
        read_state_dict(tmp_path / "a.h5")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt is a folder"):
        read_state_dict(tmp_path / "folder.pt")


def test_files_that_hold_something_else(tmp_path):
    cases = {
        "it has int": integer(3),
        "it has none": mapping(),
        "'epoch' is of type int": mapping(epoch=integer(3)),
        "'inner' is of type dict": mapping(inner=mapping(a=integer(1))),
        "3 is of type ndarray": b"}" + integer(3) + tensor("0", 2, (2,), (1,)) + b"s",
    }
    storages = {"0": np.ones(2, "<f4")}
    for message, content in cases.items():
        path = write_pth(tmp_path / "a.pth", content, storages)
        with pytest.raises(InputError, match=f"a.pth is not a state dict: {message}"):
            read_state_dict(path)


def test_npz_that_holds_something_else(tmp_path):
    np.save(tmp_path / "single.npy", np.ones(3))
    single = (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(InputError, match="not a state dict: it has ndarray"):
        read_state_dict(single)
    np.savez(tmp_path / "text.npz", names=np.array(["a", "b"]))
    with pytest.raises(
        InputError, match="tensor names is of type <U1; allowed: floats"
    ):
        read_state_dict(tmp_path / "text.npz")
    objects = np.array([collections.OrderedDict()], dtype=object)
    np.savez(tmp_path / "objects.npz", names=objects)
    with pytest.raises(InputError, match="damaged.*[Oo]bject arrays"):
        read_state_dict(tmp_path / "objects.npz")


def test_checkpoints_of_training_scripts_hold_their_arguments(tmp_path):
    """timm's and DeiT's: an argparse.Namespace beside the weights, in a .pth.tar."""
    stored = np.arange(4, dtype="<f4")
    weights = mapping(w=tensor("0", 4, (2, 2), (2, 1)))
    arguments = b"cargparse\nNamespace\n)\x81" + mapping(lr=integer(3)) + b"b"
    content = mapping(epoch=integer(7), state_dict=weights, args=arguments)
    path = write_pth(tmp_path / "last.pth.tar", content, {"0": stored})
    np.testing.assert_array_equal(read_state_dict(path)["w"], stored.reshape(2, 2))
    other = mapping(student=weights, args=arguments)
    path = write_pth(tmp_path / "other.pth", other, {"0": stored})
    with pytest.raises(InputError, match="alone or under 'model', 'state_dict',"):
        read_state_dict(path)


def test_a_pointer_of_git_lfs_is_no_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        InputError, match="is a pointer of Git LFS, not the file; fetch"
    ):
        read_state_dict(path)


def bomb(path, kind):
    """A small file that claims 20 MB of zeros."""
    zeros = np.zeros(5_000_000, np.float32)
    if kind == "npz":
        np.savez_compressed(path, a=zeros)
        return
    content = tensor("0", zeros.size, zeros.shape, (1,))
    write_pth(path, mapping(a=content), {"0": zeros})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.bin"])
def test_an_archive_that_claims_a_hundred_times_its_size_is_refused(
    tmp_path, name, monkeypatch
):
    path = tmp_path / name
    bomb(path, path.suffix[1:])
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # before any of it is unpacked
    with pytest.raises(InputError, match="20.0 MB unpacked, .* hundred times its"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["w.npz", "w.pth"])
def test_an_archive_that_claims_more_than_memory_is_refused(
    tmp_path, name, monkeypatch
):
    path, values = tmp_path / name, np.arange(100, dtype=np.float32)
    if path.suffix == ".npz":
        np.savez(path, a=values)
    else:
        content = tensor("0", 100, (100,), (1,))
        write_pth(path, mapping(a=content), {"0": values})
    np.testing.assert_array_equal(read_state_dict(path)["a"], values)
    monkeypatch.setattr(files, "memory_bytes", lambda: 300)
    with pytest.raises(InputError, match="more than this machine's memory"):
        read_state_dict(path)


def test_tensors_of_one_storage_that_are_more_than_the_file(tmp_path):
    """Each of them is an array of its own."""
    values = np.zeros(10_000, np.float32)
    shared = tensor("0", values.size, values.shape, (1,))
    many = {f"t{n}": shared for n in range(200)}
    path = write_pth(tmp_path / "w.pth", mapping(**many), {"0": values})
    with pytest.raises(InputError, match="hundred times its"):
        read_state_dict(path)


def test_an_array_larger_than_its_part_of_the_archive(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        with archive.open("a.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match="damaged, truncated or no .npz file"):
        read_state_dict(tmp_path / "w.npz")


def beside(folder, name):
    """A file of a tensor and of one of 40 MB, which is damaged or not there at all."""
    small, large = np.arange(6, dtype=np.float32), np.zeros(10_000_000, np.float32)
    path, tensors = folder / name, {"small": small, "large": large}
    if name.endswith(".json"):
        places = {"small": "a.safetensors", "large": "missing.safetensors"}
        safetensors.numpy.save_file({"small": small}, folder / "a.safetensors")
        path.write_text(json.dumps({"weight_map": places}))
    elif name == files.ORBAX:
        path = folder / "params" / name
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)  # a folder an array
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.parent.absolute(), {"params": tensors})
        shutil.rmtree(path.parent / "params.large")
    elif name.endswith(".npz"):
        np.savez(path, **tensors)
        raw = bytearray(path.read_bytes())
        raw[-20_000_000] ^= 1
        path.write_bytes(raw)
    else:
        content = mapping(
            small=tensor("0", 6, (6,), (1,)),
            large=tensor("1", large.size, large.shape, (1,)),
        )
        write_pth(path, content, {"0": small, "1": large})
        raw = bytearray(path.read_bytes())
        raw[20_000_000] ^= 1
        path.write_bytes(raw)
    return path, small


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.index.json", files.ORBAX])
def test_what_is_not_chosen_is_not_read(tmp_path, monkeypatch, name):
    path, small = beside(tmp_path, name)
    monkeypatch.setattr(files, "memory_bytes", lambda: 1_000_000)
    read = read_state_dict(path, choose={"small", "params/small"}.intersection)
    assert [array.tolist() for array in read.values()] == [small.tolist()]
    with pytest.raises(InputError, match="lacks its|memory|cannot be read"):
        read_state_dict(path)


def test_of_a_large_file_as_much_is_read_as_is_chosen(tmp_path):
    """A file of a terabyte without a byte on the disk but for the first."""
    entries = {"small": ((2,), 0, 8), "large": ((2**38,), 8, 8 + 2**40)}
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": places}
        for name, (shape, *places) in entries.items()
    }
    text = json.dumps(header).encode()
    with open(tmp_path / "w.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(np.array([3, 4], "<f4").tobytes())
        file.truncate(8 + len(text) + 8 + 2**40)
    read = read_state_dict(tmp_path / "w.safetensors", choose=lambda _: ["small"])
    assert read["small"].tolist() == [3, 4]
