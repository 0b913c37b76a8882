"""Weights files: exactly the tensors that they hold, or a sentence on what is wrong.

PyTorch files are written here by hand, opcode by opcode, as Python's pickletools shows
those that PyTorch leaves: a zip archive with a pickle in `NAME/data.pkl` and the raw
storages in `NAME/data/KEY`.
"""

import collections
import itertools
import json
import pathlib
import re
import shutil
import struct
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import files
from imagepiece_jax.weights.file_names import ORBAX
from imagepiece_jax.weights.files import read_state_dict
from imagepiece_jax.weights.state_dicts import SMALLEST
from tests.refused import refused

ORDERED = b"ccollections\nOrderedDict\n)R"


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
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89" + ORDERED + b"tR"


def parameter(value):
    start = b"ctorch._utils\n_rebuild_parameter\n("
    return start + value + b"\x88" + ORDERED + b"tR"


def mapping(**items):
    pairs = b"".join(text(name) + value for name, value in items.items())
    return b"}(" + pairs + b"u"


def write_pth(path, content, storages=None, compression=zipfile.ZIP_STORED, **extra):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        for name, value in extra.items():
            archive.writestr(f"archive/{name}", value)
    return path


NAMESPACE = b"cargparse\nNamespace\n)\x81"
ITEMS = mapping(items=b"cargparse\nNamespace\n")
FLOAT8 = "float8, complex64 or another such type"


def test_real_files_agree_bit_for_bit(assets):
    npz = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.npz")
    pth = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.pth")
    assert len(npz) == 152
    assert sum(value.size for value in npz.values()) == 5_717_416
    check_same(pth, npz)
    assert {value.dtype for value in pth.values()} == {np.dtype(np.float32)}


def check_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize(
    "storage, array",
    [
        ("FloatStorage", np.array([1.5, -2, 3e-40, 7], "<f4")),
        ("DoubleStorage", np.array([1e300, -2, 3, 7], "<f8")),
        ("HalfStorage", np.array([1.5, -2, 6e-8, 7], "<f2")),
        ("BFloat16Storage", np.array([1, -2, 0.15625, 7], jnp.bfloat16)),
        ("LongStorage", np.array([2**40, -2, 3, 7], "<i8")),
        ("BoolStorage", np.array([True, False, True, True])),
    ],
)
def test_pth_types(tmp_path, storage, array):
    content = mapping(a=tensor("0", 4, (2, 2), (2, 1), storage=storage))
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": array}))
    check_same(read, {"a": array.reshape(2, 2)})


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
    assert read["scalar"].shape == ()
    assert read["scalar"] == 5
    assert read["empty"].shape == (0, 3)
    read["column"][:] = -1
    assert read["scalar"] == 5 and read["transposed"].min() == 0, "views share memory"


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state", "params", "teacher", "module", "net"]
)
def test_training_checkpoint_is_unwrapped(tmp_path, key):
    """An OrderedDict with attributes, beside the script's argparse.Namespace."""
    item = text("w") + tensor("0", 2, (2,), (1,))
    inner = ORDERED + b"(" + item + b"u"
    inner += mapping(_metadata=b"}") + b"b"
    arguments = NAMESPACE + mapping(lr=integer(3)) + b"b"
    content = mapping(epoch=integer(3), args=arguments, **{key: inner})
    stored = np.array([4, 5], "<f4")
    path = write_pth(tmp_path / "last.pth.tar", content, {"0": stored})
    check_same(read_state_dict(path), {"w": stored})


def test_arguments_under_the_key_of_weights_are_none(tmp_path):
    """A script may call its argparse.Namespace "model"."""
    arguments = NAMESPACE + mapping(lr=integer(3)) + b"b"
    weights = mapping(w=tensor("0", 2, (2,), (1,)))
    content = mapping(model=arguments, state_dict=weights)
    stored = np.array([4, 5], "<f4")
    path = write_pth(tmp_path / "last.pth", content, {"0": stored})
    check_same(read_state_dict(path), {"w": stored})


@pytest.mark.parametrize(
    "key, name",
    [
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),
        ("model_state_dict", "model_ema_state_dict"),
        ("params", "params_ema"),
    ],
)
def test_averages_of_a_training_checkpoint(tmp_path, key, name):
    """As training scripts save them beside the weights, which alone are read."""
    inner = {
        key: mapping(w=tensor("0", 2, (2,), (1,))),
        name: mapping(w=tensor("1", 2, (2,), (1,))),
    }
    content = mapping(epoch=integer(3), **inner)
    storages = {"0": np.array([4, 5], "<f4"), "1": np.array([6, 7], "<f4")}
    path = write_pth(tmp_path / "a.pth.tar", content, storages)
    with pytest.warns(UserWarning, match=f"has averaged weights, too .{name}., which"):
        check_same(read_state_dict(path), {"w": storages["0"]})
    check_same(read_state_dict(path, averaged=True), {"w": storages["1"]})
    path = write_pth(tmp_path / "b.pth", inner[key], {"0": storages["0"]})
    with pytest.raises(InputError, match="b.pth has no averaged weights; allowed:"):
        read_state_dict(path, averaged=True)


def models(**values):
    """Tensors of so many models as a block has them, whose names have these starts."""
    tensors = {}
    for start, value in values.items():
        start = start.replace("__", ".")
        names = [f"{start}.{index}.w" for index in range(SMALLEST)]
        tensors |= dict.fromkeys(names, np.full(2, value, np.float32))
    return tensors


def values(path, **options):
    return {float(array[0]) for array in read_state_dict(path, **options).values()}


@pytest.mark.parametrize(
    "plain, averages",
    [
        ("model", "ema_model"),
        ("model", "model_ema"),
        ("model", "ema_model__module"),  # PyTorch's AveragedModel
        ("module", "ema"),
        ("net", "swa_net"),
        ("module__base_encoder", "module__momentum_encoder"),  # MoCo v3
        ("averager", "averaged_model"),
    ],
)
def test_averages_have_names_with_another_start(tmp_path, plain, averages):
    """As Lightning saves a module with two models."""
    path = tmp_path / "last.safetensors"
    safetensors.numpy.save_file(models(**{plain: 1, averages: 2}), path)
    with pytest.warns(UserWarning, match="has averaged weights, too .*averaged=True"):
        assert values(path) == {1}
    assert values(path, averaged=True) == {2}
    for start, value in ((plain, 1), (averages, 2)):
        assert values(path, checkpoint=start.replace("__", ".")) == {value}
        assert values(path, checkpoint=start.rpartition("__")[2]) == {value}


@pytest.mark.parametrize("plain", ["model", "blocks"])
def test_a_model_is_read_beside_averages_of_two_kinds(tmp_path, plain):
    path = tmp_path / "last.safetensors"
    tensors = models(**{plain: 1}, ema_model=2, swa_model=3)
    safetensors.numpy.save_file(tensors, path)
    with pytest.warns(UserWarning, match="averaged weights, too .ema_model and swa_"):
        assert values(path) == {1}
    assert values(path, checkpoint="swa_model") == {3}


def test_averages_alone_are_all_there_is(tmp_path):
    """As ema_pytorch saves them, with a count beside."""
    path = tmp_path / "ema.safetensors"
    tensors = models(ema_model=2)
    safetensors.numpy.save_file(tensors | {"step": np.ones(1, np.float32)}, path)
    assert values(path) == {1, 2}
    assert values(path, averaged=True) == {2}
    safetensors.numpy.save_file(models(ema_a=1, ema_b=2), path)
    with pytest.raises(InputError, match="of several .*'ema_a' or checkpoint='ema_b'"):
        read_state_dict(path, averaged=True)


@pytest.mark.parametrize("inside", ["", "model__", "module__"])
def test_a_model_is_chosen_by_the_start_of_its_names(tmp_path, inside):
    names = {f"{inside}student": 1, f"{inside}teacher": 2}
    np.savez(tmp_path / "a.npz", **models(**names))
    assert values(tmp_path / "a.npz") == {1, 2}  # which is no one's model
    assert values(tmp_path / "a.npz", checkpoint="student") == {1}
    assert values(tmp_path / "a.npz", checkpoint="teacher") == {2}
    with refused("checkpoint", "teach", "allowed: 'student' or 'teacher'"):
        read_state_dict(tmp_path / "a.npz", checkpoint="teach")
    with pytest.raises(InputError, match="no averaged .*checkpoint='student' or chec"):
        read_state_dict(tmp_path / "a.npz", averaged=True)


def test_a_checkpoint_of_a_file_with_one_model_is_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", **models(blocks=1))
    with refused("checkpoint", "teacher", "leave it out"):
        read_state_dict(tmp_path / "a.npz", checkpoint="teacher")


def under_keys(**values):
    """Opcodes and storages of a dict with a model under each key."""
    content = {}
    storages = {}
    for key, value in values.items():
        one = tensor(key, 2, (2,), (1,))
        names = [f"{index}.w" for index in range(SMALLEST)]
        content[key] = mapping(**dict.fromkeys(names, one))
        storages[key] = np.full(2, value, "<f4")
    return content, storages


def test_a_model_is_chosen_by_its_key(tmp_path):
    """DINO's teacher is read beside a student, which is said."""
    content, storages = under_keys(student=1, teacher=2)
    center = mapping(center=tensor("student", 2, (2,), (1,)))
    content |= {"dino_loss": center, "epoch": integer(3)}
    path = write_pth(tmp_path / "dino.pth", mapping(**content), storages)
    with pytest.warns(UserWarning, match=r"other weights, too \(student\).*='student'"):
        assert values(path) == {2}
    assert values(path, checkpoint="student") == {1}
    assert values(path, checkpoint="teacher") == {2}
    with refused("checkpoint", "x", "allowed: 'student' or 'teacher'"):
        read_state_dict(path, checkpoint="x")
    several, storages_of_three = under_keys(student=1, teacher=2, ema=3)
    three = write_pth(tmp_path / "three.pth", mapping(**several), storages_of_three)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert values(three) == {2}
    averages, others = said
    assert "averaged weights, too (ema)" in str(averages.message)
    assert "other weights, too (student)" in str(others.message)
    assert averages.filename == others.filename == __file__
    inside = mapping(model=mapping(**content))
    path = write_pth(tmp_path / "inside.pth", inside, storages)
    assert values(path, checkpoint="student") == {1}


def test_models_under_keys_of_their_own(tmp_path):
    """The only one is read; of several, the sentence names each."""
    content, storages = under_keys(encoder=1, target_encoder=2)
    path = write_pth(tmp_path / "jepa.pth", mapping(**content), storages)
    ways = "checkpoint='encoder' or checkpoint='target_encoder' reads one"
    with pytest.raises(InputError, match=f"holds 2 models, .*{ways}"):
        read_state_dict(path)
    assert values(path, checkpoint="target_encoder") == {2}
    with pytest.raises(InputError, match=f"holds 2 models, .*{ways}"):
        read_state_dict(path, checkpoint="x")
    del content["encoder"]
    content["epoch"] = integer(3)
    path = write_pth(tmp_path / "one.pth", mapping(**content), storages)
    assert values(path) == {2}
    content["model_ema"] = content.pop("target_encoder")
    path = write_pth(tmp_path / "ema.pth", mapping(**content), storages)
    assert values(path) == values(path, averaged=True) == {2}


def test_the_count_of_an_averaged_model_is_no_weight(tmp_path):
    """PyTorch's AveragedModel has it beside the module that it averages."""
    tensors = {"module.w": np.ones(2, np.float32), "n_averaged": np.array(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    check_same(
        read_state_dict(tmp_path / "a.safetensors"), {"module.w": tensors["module.w"]}
    )


def test_npz_and_safetensors(tmp_path):
    """NumPy writes bfloat16 as two bytes, and does not say what they are."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    tensors |= {"h": np.ones(2, np.float16)}
    tensors |= {"b": np.array([1.5, -3e38, 2**-20], jnp.bfloat16)}
    np.savez(tmp_path / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        check_same(read_state_dict(tmp_path / name), tensors)


def called(*arguments):
    """Opcodes of a tensor that is built of these."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(arguments) + b"tR"


ONE = tensor("0", 4, (4,), (1,))
STORED = ONE.split(b"(", 1)[1].split(integer(0))[0]
START = integer(0)
WIDTH = NAMESPACE + mapping(itemsize=integer(4)) + b"b"
FAKE = NAMESPACE + mapping(key=text("0"), size=integer(9999), dtype=WIDTH) + b"b"
UNTYPED = ONE.replace(b"ctorch\nFloatS", b"ctorch.storage\nUntypedS")


@pytest.mark.parametrize("types", [("Long", "Float"), ("Float", "Long")])
def test_pth_one_storage_under_two_types(tmp_path, types):
    """Each tensor has the type that it names, and ends where the bytes end."""
    stored = np.arange(4, dtype="<f4")
    long = tensor("0", 2, (2,), (1,), storage="LongStorage")
    views = {"Long": (long, stored.view("<i8")), "Float": (ONE, stored)}
    one, other = (views[name] for name in types)
    path = write_pth(tmp_path / "a.pth", mapping(a=one[0], b=other[0]), {"0": stored})
    check_same(read_state_dict(path), {"a": one[1], "b": other[1]})


def npz_of_two_names(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in (("x", 1), ("x.npy", 2)):
            with archive.open(name, "w") as file:
                np.lib.format.write_array(file, np.full(3, value))


def npz_of_one_array(path):
    with open(path, "wb") as file:
        np.save(file, np.ones(3))


def npz_of_a_huge_array(path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)


def safetensors_of_float8(path):
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def zip_of_another_kind(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"")


OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + bytes(100)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
OBJECTS = np.array([collections.OrderedDict()], dtype=object)


def good_files(folder):
    tensors = {"a": np.arange(3000, dtype=np.float32)}
    np.savez(folder / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, folder / "a.safetensors")
    content = mapping(a=tensor("0", 3000, (3000,), (1,)))
    write_pth(folder / "a.pth", content, {"0": tensors["a"]})
    return folder


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pth"])
def test_damaged_files(tmp_path, name):
    """Zip archives carry checksums; .safetensors does not notice a flipped bit."""
    path = good_files(tmp_path) / name
    good = path.read_bytes()
    assert read_state_dict(path)["a"][2999] == 2999
    damaged = [good[:length] for length in (0, 5, 100, len(good) // 2, len(good) - 10)]
    for content in (*damaged, b"these are no weights" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged, truncated or not a"):
            read_state_dict(path)
    if name != "a.safetensors":
        flip_bit(path, good)
        with pytest.raises(InputError, match="(?i)damaged.*crc"):
            read_state_dict(path)


def flip_bit(path, content):
    """Write the content with another bit in the middle."""
    raw = bytearray(content)
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def in_parts(folder, **index):
    """A model in two parts, with its index, as transformers writes it."""
    for name, part in zip("ab", PARTS, strict=True):
        tensors = {f"{name}.{i}": np.full(500, i, np.float32) for i in range(2)}
        safetensors.numpy.save_file(tensors, folder / part)
    places = {
        f"{name}.{i}": PARTS[name == "b"]
        for name, i in itertools.product("ab", range(2))
    }
    index = {"metadata": {"total_size": 8000}, "weight_map": places} | index
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_parts_are_read_together(tmp_path):
    read = read_state_dict(in_parts(tmp_path))
    assert sorted(read) == ["a.0", "a.1", "b.0", "b.1"]
    assert (read["b.1"] == 1).all()
    assert read["b.1"].dtype == np.float32
    only = (tmp_path / PARTS[1]).rename(tmp_path / "model-00001-of-00001.safetensors")
    assert sorted(read_state_dict(only)) == ["b.0", "b.1"]
    # Parts of another saving can hold the same names, and names of their own.
    path = in_parts(tmp_path)
    values = {"b.0": 7, "b.1": 8, "a.0": 9, "c": 1}
    other = {name: np.full(500, i, np.float32) for name, i in values.items()}
    safetensors.numpy.save_file(other, tmp_path / PARTS[1])
    read = {name: value[0] for name, value in read_state_dict(path).items()}
    assert read == {"a.0": 0, "a.1": 1, "b.0": 7, "b.1": 8}


def test_parts_that_lack_something(tmp_path):
    path = in_parts(tmp_path)
    part = tmp_path / PARTS[1]
    with pytest.raises(InputError, match="00002-of-00002.* is one of 2 parts; allowed"):
        read_state_dict(part)
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{PARTS[1]} is damaged, truncated or not a"):
        read_state_dict(path)
    part.unlink()
    with pytest.raises(InputError, match=f"index.json lacks its part {PARTS[1]} besid"):
        read_state_dict(path)
    safetensors.numpy.save_file({"b.0": np.ones(2)}, part)
    with pytest.raises(InputError, match=f"its part {PARTS[1]} lacks tensor b.1"):
        read_state_dict(path)


@pytest.mark.parametrize("part", ["../x.safetensors", "..", 5, ["b"], "x.bin"])
def test_indexes_of_something_else(tmp_path, part):
    """test_hub has those without a weight_map."""
    with pytest.raises(InputError) as error:
        read_state_dict(in_parts(tmp_path, weight_map={"a": part}))
    assert error.value.value == part
    assert "names of .safet" in error.value.allowed


@pytest.mark.parametrize("folder", ["vit", "."])
def test_a_config_in_place_of_its_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path(folder) / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"model_type": "dinov2"}')
    with pytest.raises(InputError, match=rf"did you mean its folder, {folder}\?$"):
        read_state_dict(path)


def test_parts_of_pytorch_are_read_together(tmp_path):
    """As transformers' save_pretrained(.., safe_serialization=False) wrote them."""
    places = {}
    stored = np.arange(4, dtype="<f4")
    for number, names in ((1, "ab"), (2, "c")):
        part = f"pytorch_model-0000{number}-of-00002.bin"
        content = mapping(**{name: tensor("0", 4, (4,), (1,)) for name in names})
        write_pth(tmp_path / part, content, {"0": stored * number})
        places |= dict.fromkeys(names, part)
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    wanted = {"a": stored, "b": stored, "c": stored * 2}
    check_same(read_state_dict(path), wanted)
    with pytest.raises(
        InputError, match="is one of 2 parts; .*pytorch_model.bin.index"
    ):
        read_state_dict(tmp_path / part)


# TorchScript

LINEAR = b"c__torch__.torch.nn.modules.linear\nLinear\n)\x81"
TRAINING = b"\x88"


def module(**attributes):
    """Opcodes of a module of TorchScript, as torch.jit.save leaves them."""
    return LINEAR + mapping(training=TRAINING, **attributes) + b"b"


def test_torchscript_gives_its_tensors(tmp_path):
    """OpenAI's CLIP files are such archives; settings and code are left out."""
    stored = np.arange(4, dtype="<f4")
    one = tensor("0", 4, (2, 2), (2, 1))
    typed = b"ctorch.jit._pickle\nrestore_type_tag\n](" + text("a") + b"e"
    typed += text("List[str]") + b"\x86R"
    inner = module(weight=one, names=typed, scale=integer(3), none=b"N")
    content = module(proj=one, **{"0": module(conv=inner)})
    path = write_pth(tmp_path / "a.pt", content, {"0": stored})
    wanted = stored.reshape(2, 2)
    check_same(read_state_dict(path), {"proj": wanted, "0.conv.weight": wanted})


# PyTorch before 1.6

MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")


def old_torch(content, keys=("0",), counts=(4,), little=b"\x88"):
    """A file of PyTorch's format without an archive: pickles, then storages."""
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    pickles = [b"M\xe9\x03", mapping(little_endian=little), content, listed]
    parts = [MAGIC, *[b"\x80\x02" + part + b"." for part in pickles]]
    for count in counts:
        stored = np.arange(count, dtype="<f4").tobytes()
        parts += [struct.pack("<q", count), stored]
    return b"".join(parts)


def old_tensor(key, count, shape, strides, view=b"N"):
    """`tensor` with the sixth part that its storage has there."""
    return tensor(key, count, shape, strides).replace(b"tQ", view + b"tQ", 1)


def test_files_of_pytorch_before_1_6(tmp_path):
    first = old_tensor("7", 4, (2, 2), (1, 2))
    second = old_tensor("3", 5, (5,), (1,))
    content = mapping(model=mapping(a=first, b=parameter(second)), epoch=integer(3))
    path = tmp_path / "a.pth"
    path.write_bytes(old_torch(content, keys=("3", "7"), counts=(5, 4)))
    wanted = np.arange(4, dtype="<f4").reshape(2, 2).T
    check_same(read_state_dict(path), {"a": wanted, "b": np.arange(5, dtype="<f4")})


OLD = mapping(a=old_tensor("0", 4, (4,), (1,)))
AS_A_VIEW = text("v") + integer(0) + integer(4) + b"\x87"
OLD_VIEW = mapping(a=old_tensor("0", 4, (4,), (1,), AS_A_VIEW))
OLD_NEGATIVE = mapping(a=old_tensor("0", -4, (0,), (1,)))


def with_damaged(folder, name):
    """A file of a tensor and of one of 40 MB, which is damaged or not there at all."""
    small = np.arange(6, dtype=np.float32)
    large = np.zeros(10_000_000, np.float32)
    path = folder / name
    tensors = {"small": small, "large": large}
    if name.endswith(".json"):
        places = {"small": "a.safetensors", "large": "missing.safetensors"}
        safetensors.numpy.save_file({"small": small}, folder / "a.safetensors")
        path.write_text(json.dumps({"weight_map": places}))
    elif name == ORBAX:
        path = folder / "params" / name
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)  # a folder an array
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path.parent.absolute(), {"params": tensors})
        shutil.rmtree(path.parent / "params.large")
    elif name.endswith(".npz"):
        np.savez(path, **tensors)
        flip_bit(path, path.read_bytes())
    else:
        views = [tensor("0", 6, (6,), (1,)), tensor("1", large.size, large.shape, (1,))]
        content = mapping(**dict(zip(tensors, views, strict=True)))
        write_pth(path, content, {"0": small, "1": large})
        flip_bit(path, path.read_bytes())
    return path, small


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.index.json", ORBAX])
def test_what_is_not_chosen_is_not_read(tmp_path, monkeypatch, name):
    path, small = with_damaged(tmp_path, name)
    monkeypatch.setattr(files, "memory_bytes", lambda: 1_000_000)
    read = read_state_dict(path, choose={"small", "params/small"}.intersection)
    assert [array.tolist() for array in read.values()] == [small.tolist()]
    with pytest.raises(InputError, match="lacks its|memory|cannot be read"):
        read_state_dict(path)


def test_only_the_chosen_part_of_a_large_file_is_read(tmp_path):
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


# What is refused


def pth(content, **options):
    """A writer of a .pth file with a storage of four floats."""
    storages = {"0": np.ones(4, "<f4")}
    return lambda path: write_pth(path, content, storages, **options)


def holding(content):
    """A writer of these bytes."""
    return lambda path: path.write_bytes(content)


def claiming(claim):
    """A writer of a .pth file with 16 bytes of a storage, of which it claims others.

    More than that would be foreign memory.
    """

    def write(path):
        view = mapping(a=tensor("0", claim // 4, (claim // 4,), (1,)))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + view + b".")
            archive.writestr("archive/data/0", bytes(16))
            archive.filelist[-1].file_size = claim

    return write


def npz_of_zeros(path):
    np.savez_compressed(path, a=ZEROS)


def pth_of_zeros(path):
    content = mapping(a=tensor("0", ZEROS.size, ZEROS.shape, (1,)))
    write_pth(path, content, {"0": ZEROS}, compression=zipfile.ZIP_DEFLATED)


def pth_of_one_storage_for_many(path):
    """Each of the tensors is an array of its own."""
    shared = tensor("0", 10_000, (10_000,), (1,))
    many = {f"t{n}": shared for n in range(200)}
    write_pth(path, mapping(**many), {"0": ZEROS[:10_000]})


ZEROS = np.zeros(5_000_000, np.float32)  # 20 MB
TOUCH = b"cos\nsystem\n(" + text("touch marker") + b"tR"
RUNS = b"cos\nsystem\n" + text("true") + b"\x85R"
NO_TENSOR = "without storage, shape or strides"

IMPOSSIBLE = [  # tensors of a storage of four floats, and what is wrong with them
    (tensor("0", 4, (5,), (1,)), "impossible shape"),
    (tensor("0", 4, (2,), (4,)), "leaves its storage"),
    (tensor("0", 4, (2,), (1,), offset=3), "leaves its storage"),
    (tensor("0", 4, (2,), (-1,), offset=3), "impossible shape"),
    (tensor("0", 4, (2**20, 2**20), (0, 0)), "impossible shape"),
    (tensor("0", 5, (2,), (1,)), "storage 0 has 16 bytes, needed 20"),
    (tensor("1", 4, (2,), (1,)), "archive/data/1"),
    (b"}" + text("x") + b"Q", "not enough values|too many values"),
    # A storage of the file's own making, a shape that is a list, a float as offset.
    (called(FAKE, START, ints([9999]), ints([1])), NO_TENSOR),
    (called(STORED, START, b"](" + integer(4) + b"e", ints([1])), NO_TENSOR),
    (
        called(STORED, b"G" + bytes(8), ints([4]), ints([1])),
        "offsets that are no integers",
    ),
    # A shape beyond any memory, a length that is a float, what is read in another way.
    (
        called(STORED, START, b"(\x8a\x09" + b"\xff" * 8 + b"\0t"),
        "missing 1 required",
    ),
    (
        ONE.replace(integer(4) + b"tQ", b"G@\x10" + bytes(6) + b"tQ"),
        "no whole storage.*length 4.0",
    ),
    (ONE + mapping(size=integer(0), read=b"ccollections\nOrderedDict\n") + b"b", ""),
]
REFUSED = [  # name, writer, part of the sentence, value
    *(
        ("a.pth", pth(mapping(a=tensor)), f"is damaged.*({problem})", None)
        for tensor, problem in IMPOSSIBLE
    ),
    *(("a.pth", claiming(claim), "is damaged", None) for claim in (8, 80, 800)),
    ("a.pth", pth(mapping(a=TOUCH)), r"asks for os\.system; allowed: te", None),
    ("a.pth", pth(mapping(a=b"ccollections\ndeque\n)R")), "asks for coll", None),
    ("a.pth", pth(b"}r\xff\xff\xff\x7f"), "is damaged", None),  # a memo of 34 GB
    ("a.pth", pth(b"})" + b"\x85" * 300 + b"Ns"), "is damaged", None),  # nested tuples
    ("a.pth", pth(ORDERED + ITEMS + b"b"), "is not a state dict: it has none", "none"),
    ("a.pth", pth(integer(3)), "is not a state dict: it has int", "int"),
    ("a.pth", pth(mapping()), "is not a state dict: it has none", "none"),
    ("a.pth", pth(mapping(a=integer(3))), "is not a st.*: 'a' is of type int", "a"),
    ("a.pth", pth(mapping(a=mapping(b=ONE))), "is not a st.*: 'a' is of type d", "a"),
    ("a.pth", pth(b"}" + integer(3) + ONE + b"s"), "is not a st.*: 3 is of ty", 3),
    ("a.pth", pth(mapping(a=UNTYPED)), "is of type", FLOAT8),
    ("a.pth", pth(mapping(a=ONE.replace(b"_v2", b"_v3"))), "is of type", FLOAT8),
    ("a.pth", holding(OLD_TORCH), "is damaged", None),
    ("a.pth", pth(b"}", byteorder="big"), "", "big"),
    ("a.pth", zip_of_another_kind, "is a zip archive without a data.pkl", None),
    ("a.npz", npz_of_two_names, "has two members named 'x'", "x"),
    ("a.npz", npz_of_one_array, "is not a state dict: it has ndarray", "ndarray"),
    ("a.npz", npz_of_a_huge_array, "is damaged, truncated or not a .npz", None),
    ("a.npz", lambda path: np.savez(path, a=np.array(["x"])), "is of ty", "<U1"),
    ("a.npz", lambda path: np.savez(path, a=OBJECTS), "is damaged", None),
    ("a.safetensors", safetensors_of_float8, "is of type", "F8_E4M3"),
    ("a.safetensors", holding(LFS), "is a pointer", None),
    ("a.npz", lambda path: None, "does not exist", None),
    ("a.h5", lambda path: None, "ends in '.h5'", ".h5"),
    ("a.pt", lambda path: path.mkdir(), "is a folder", None),
    # TorchScript: a module in itself, a state that is none, calls of functions.
    ("a.pt", pth(LINEAR + b"q\x00}(" + text("a") + b"h\x00ub"), "", None),
    ("a.pt", pth(LINEAR + b"Nb"), "is not a state dict", "none"),
    ("a.pt", pth(RUNS), "asks for", None),
    ("a.pt", pth(RUNS.replace(b"cos", b"c__torch__.os")), "", None),
    # PyTorch before 1.6.
    ("a.pth", holding(old_torch(OLD)[:-3]), "", None),
    ("a.pth", holding(old_torch(OLD, counts=(3,))), "", None),
    ("a.pth", holding(old_torch(OLD, keys=("1",))), "", None),
    ("a.pth", holding(old_torch(OLD, keys=("0", "0"), counts=(4, 4))), "", None),
    ("a.pth", holding(old_torch(OLD, little=b"\x89")), "byte order", "big"),
    ("a.pth", holding(old_torch(OLD_VIEW)), "", None),
    ("a.pth", holding(old_torch(OLD_NEGATIVE, counts=(-4,))), "", None),
    ("a.pth", holding(old_torch(mapping(a=RUNS))), "", None),
    ("a.pth", pth_of_one_storage_for_many, "hundred times its", 8_000_000),
]


@pytest.mark.parametrize("name, write, said, value", REFUSED)
def test_what_is_refused(tmp_path, monkeypatch, name, write, said, value):
    """Nothing of it is run: a marker would be left."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    write(path)
    place = f"weights file {path}"
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert (caught.value.place, caught.value.value) == (place, value)
    assert re.search(said, str(caught.value))
    assert {*tmp_path.iterdir()} <= {path}


@pytest.mark.parametrize(
    "name, write", [("a.npz", npz_of_zeros), ("a.pth", pth_of_zeros)]
)
def test_a_hundred_times_the_size_is_not_unpacked(tmp_path, monkeypatch, name, write):
    path = tmp_path / name
    write(path)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(InputError, match="20.0 MB unpacked, .* hundred times its"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["a.npz", "a.pth"])
def test_what_is_larger_than_memory_is_not_unpacked(tmp_path, name, monkeypatch):
    path = good_files(tmp_path) / name
    monkeypatch.setattr(files, "memory_bytes", lambda: 11_000)
    with pytest.raises(InputError, match="more than this machine's memory"):
        read_state_dict(path)
