import io
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagepiece_jax.weights import tensor_files
from imagepiece_jax.weights.tensor_files import open_tensors, read_state_dict
from tests.helpers import pth_files
from tests.helpers.pth_files import (
    NAMESPACE,
    assert_same,
    integer,
    ints,
    mapping,
    old_tensor,
    old_torch,
    parameter,
    tensor,
    text,
    write_pth,
)
from tests.helpers.refused_calls import refused


def test_real_files_agree_bit_for_bit(assets):
    npz = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.npz")
    pth = read_state_dict(assets / "weights" / "deit_tiny_patch16_224.pth")
    assert len(npz) == 152
    assert sum(value.size for value in npz.values()) == 5_717_416
    assert_same(pth, npz)
    assert {value.dtype for value in pth.values()} == {np.dtype(np.float32)}


def test_npz_and_safetensors_keep_all_types(tmp_path):
    """NumPy writes bfloat16 as two bytes of an unknown type."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    tensors |= {
        "h": np.ones(2, np.float16),
        "b": np.array([1.5, -3e38, 2**-20], jnp.bfloat16),
    }
    np.savez(tmp_path / "a.npz", **tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        assert_same(read_state_dict(tmp_path / name), tensors)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.pth"])
def test_damaged_files_are_refused(tmp_path, name):
    """Zip archives carry checksums; .safetensors does not notice a flipped bit."""
    values = np.arange(3000, dtype=np.float32)
    np.savez(tmp_path / "a.npz", a=values)
    safetensors.numpy.save_file({"a": values}, tmp_path / "a.safetensors")
    content = mapping(a=tensor("0", 3000, (3000,), (1,)))
    write_pth(tmp_path / "a.pth", content, {"0": values})
    path = tmp_path / name
    good = path.read_bytes()
    middle = len(good) // 2
    damaged = [b"these are no weights" * 100]
    damaged += [good[:length] for length in (0, 5, 100, middle, len(good) - 10)]
    if name != "a.safetensors":
        damaged.append(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with refused(f"{path}: it is damaged or"):
            read_state_dict(path)


# PyTorch's files


def test_pth_files_keep_their_types(tmp_path):
    arrays = {
        "Float": np.array([1.5, -2, 3e-40, 7], "<f4"),
        "Double": np.array([1e300, -2, 3, 7], "<f8"),
        "Half": np.array([1.5, -2, 6e-8, 7], "<f2"),
        "BFloat16": np.array([1, -2, 0.15625, 7], jnp.bfloat16),
        "Long": np.array([2**40, -2, 3, 7], "<i8"),
        "Bool": np.array([True, False, True, True]),
    }
    content = {}
    for kind in arrays:
        content[kind] = tensor(kind, 4, (4,), (1,), storage=f"{kind}Storage")
    path = write_pth(tmp_path / "a.pth", mapping(**content), arrays)
    assert_same(read_state_dict(path), arrays)


def test_pth_views_share_one_storage(tmp_path):
    flat = np.arange(12, dtype="<f4")
    content = mapping(
        transposed=tensor("0", 12, (4, 3), (1, 4)),
        column=parameter(tensor("0", 12, (3,), (4,), offset=1)),
        scalar=tensor("0", 12, (), (), offset=5),
        empty=tensor("0", 12, (0, 3), (3, 1)),
    )
    read = read_state_dict(write_pth(tmp_path / "a.pth", content, {"0": flat}))
    column = np.array([1, 5, 9], "<f4")
    expected = {"transposed": flat.reshape(3, 4).T, "column": column}
    expected |= {"scalar": flat[5], "empty": np.zeros((0, 3), "<f4")}
    assert_same(read, expected)
    read["column"][:] = -1
    assert read["scalar"] == 5, "views share memory"


def test_files_before_pytorch_1_6_are_read(tmp_path):
    first = old_tensor("7", 4, (2, 2), (1, 2))
    content = mapping(a=first, b=parameter(old_tensor("3", 5, (5,), (1,))))
    path = tmp_path / "a.pth"
    path.write_bytes(old_torch(content, keys=("3", "7"), counts=(5, 4)))
    expected = np.arange(4, dtype="<f4").reshape(2, 2).T
    assert_same(read_state_dict(path), {"a": expected, "b": np.arange(5, dtype="<f4")})


# Files in parts

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def index(tmp_path):
    """A model in two parts, with its index, as transformers writes it."""
    first = {"a": np.full(500, 1, "<f4"), "b": np.full(500, 2, "<f4")}
    # A part of another save can hold further tensors.
    second = {"a": np.full(500, 9, "<f4"), "c": np.full(500, 3, "<f4")}
    for name, tensors in zip(PARTS, (first, second), strict=True):
        safetensors.numpy.save_file(tensors, tmp_path / name)
    path = tmp_path / "model.safetensors.index.json"
    weight_map = {"a": PARTS[0], "b": PARTS[0], "c": PARTS[1]}
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_parts_are_read_together(index):
    read = read_state_dict(index)
    assert {name: value[0] for name, value in read.items()} == {"a": 1, "b": 2, "c": 3}
    # A part stays closed until one of its tensors is read.
    index.with_name(PARTS[1]).unlink()
    with open_tensors(index) as tensors:
        assert tensors["b"].read()[0] == 2
        with pytest.raises(FileNotFoundError, match=PARTS[1]):
            tensors["c"].read()


def test_a_damaged_index_or_part_is_named_alone(index, tmp_path):
    part = tmp_path / PARTS[1]
    part.write_bytes(part.read_bytes()[:-100])
    with refused(f"weights file {part}: it is damaged or") as caught:
        read_state_dict(index)
    assert PARTS[0] not in str(caught.value)
    index.write_text("{}")
    with refused(index, "weight_map"):
        read_state_dict(index)


@pytest.mark.parametrize("part", ["../x.safetensors", "a.json", 5])
def test_a_part_that_is_not_beside_its_index_is_refused(index, part):
    index.write_text(json.dumps({"weight_map": {"a": part}}))
    with refused(index, "no part beside it"):
        read_state_dict(index)


# Files of several models


def first_values(path, model_key=None):
    with open_tensors(path, model_key) as tensors:
        return {float(tensor.read()[0]) for tensor in tensors.values()}


def test_one_of_several_models_is_chosen_by_its_key(tmp_path):
    values = {"student": 1, "teacher": 2, "model_ema": 3}
    content = {"model": NAMESPACE + mapping(lr=integer(3)) + b"b", "epoch": integer(3)}
    content["dino_loss"] = mapping(center=tensor("student", 2, (2,), (1,)))
    storages = {key: np.full(2, value, "<f4") for key, value in values.items()}
    names = [f"{index}.w" for index in range(tensor_files.MIN_MODEL_TENSORS)]
    for key in values:
        content[key] = mapping(**dict.fromkeys(names, tensor(key, 2, (2,), (1,))))
        if key == "student":  # the only model needs no key
            path = write_pth(tmp_path / "one.pth", mapping(**content), storages)
            assert first_values(path) == first_values(path, key) == {1}
    path = write_pth(tmp_path / "dino.pth", mapping(**content), storages)
    for key in (None, "teach"):
        with refused(path, f"checkpoint is {key!r}", "student or teacher or model_ema"):
            first_values(path, key)
    for key, value in values.items():
        assert first_values(path, key) == {value}


def test_a_single_state_dict_has_no_keys_and_no_counter(tmp_path):
    """Beginnings of names are no keys; PyTorch's AveragedModel counts its averages."""
    tensors = dict.fromkeys(["model.w", "ema_model.w"], np.ones(2, np.float32))
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors | {"n_averaged": np.array(3)}, path)
    assert_same(read_state_dict(path), tensors)
    with refused("checkpoint", "the file has one model"):
        first_values(path, "model")


# Refused files


def pth(content, **options):
    """The bytes of a .pth file with a storage of four floats."""
    file = io.BytesIO()
    write_pth(file, content, {"0": np.ones(4, "<f4")}, **options)
    return file.getvalue()


ONE = tensor("0", 4, (4,), (1,))
FAKE = NAMESPACE + mapping(key=text("0"), size=integer(9999)) + b"b"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
UNTYPED = ONE.replace(b"ctorch\nFloatS", b"ctorch.storage\nUntypedS")
TOUCH = b"cos\nsystem\n(" + text("touch marker") + b"tR"
OLD = mapping(a=old_tensor("0", 4, (4,), (1,)))
AS_A_VIEW = text("v") + integer(0) + integer(4) + b"\x87"
OLD_VIEW = mapping(a=old_tensor("0", 4, (4,), (1,), AS_A_VIEW))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"

IMPOSSIBLE = [  # (tensor of a storage of four floats, its fault)
    (tensor("0", 4, (2,), (1,), offset=3), "leaves its storage"),
    (tensor("0", 4, (2,), (-1,), offset=3), "leaves its storage"),
    (tensor("0", 4, (2**20, 2**20), (0, 0)), "leaves its storage"),
    (tensor("0", 5, (2,), (1,)), "storage 0 is cut"),
    # A storage made by the file itself, a float as offset, and a faked method.
    (REBUILD + FAKE + integer(0) + ints([9999]) + ints([1]) + b"tR", "without storage"),
    (ONE.replace(b"Q" + integer(0), b"QG" + bytes(8)), "without storage"),
    (ONE + mapping(read=b"ccollections\nOrderedDict\n") + b"b", ""),
]
REFUSED = [  # name, content, part of the sentence
    *(("a.pth", pth(mapping(a=x)), f"is damaged.*({said})") for x, said in IMPOSSIBLE),
    ("a.pth", pth(mapping(a=TOUCH)), r"asks for os\.system"),
    ("a.pth", pth(mapping(a=UNTYPED)), "asks for .*; save model.state_dict"),
    ("a.pth", pth(pth_files.EMPTY), "no named tensors"),
    ("a.pth", pth(mapping(a=integer(3))), "'a' is"),
    ("a.pth", pth(mapping(a=ONE), byteorder="big"), "byte order"),
    ("a.safetensors", LFS, "is a Git LFS pointer"),
    ("a.h5", b"", "ends in none of .npz"),
    # PyTorch before 1.6.
    ("a.pth", old_torch(OLD)[:-3], "storage 0 is cut"),
    ("a.pth", old_torch(OLD, counts=(3,)), "storage 0 has 3 elements"),
    ("a.pth", old_torch(OLD, little=b"\x89"), "byte order"),
    ("a.pth", old_torch(OLD_VIEW), "is a view"),
    ("a.pth", old_torch(mapping(a=TOUCH)), r"asks for os\.system"),
]


@pytest.mark.parametrize("name, content, message", REFUSED)
def test_a_refused_file_runs_no_code(tmp_path, monkeypatch, name, content, message):
    """Its code would leave a marker."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content)
    with refused(f"weights file {path}") as caught:
        read_state_dict(path)
    assert re.search(message, str(caught.value))
    assert [*tmp_path.iterdir()] == [path]
