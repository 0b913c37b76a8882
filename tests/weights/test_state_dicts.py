"""State dicts: which one a file's content has, beside averages and other models."""

import warnings

import numpy as np
import pytest
import safetensors.numpy

from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.files import read_state_dict
from imagepiece_jax.weights.state_dicts import SMALLEST
from tests.refused import refused
from tests.weights.pth import (
    NAMESPACE,
    ORDERED,
    check_same,
    integer,
    mapping,
    tensor,
    text,
    write_pth,
)


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
    with pytest.raises(InputError, match="b.pth: it has no averaged weights"):
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
    with refused("checkpoint", "the file has student, teacher"):
        read_state_dict(tmp_path / "a.npz", checkpoint="teach")
    with pytest.raises(InputError, match="no averaged .*checkpoint='student' or chec"):
        read_state_dict(tmp_path / "a.npz", averaged=True)


def test_a_checkpoint_of_a_file_with_one_model_is_left_out(tmp_path):
    np.savez(tmp_path / "a.npz", **models(blocks=1))
    with refused("checkpoint", "the file has none"):
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
    with refused("checkpoint", "the file has student, teacher"):
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
