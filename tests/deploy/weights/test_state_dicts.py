"""State dicts: which one a file's content has, beside averages and other models."""

import numpy as np
import pytest
import safetensors.numpy

from imagepiece_jax.deploy.weights.files import read_state_dict
from imagepiece_jax.deploy.weights.state_dicts import SMALLEST
from tests.deploy.weights.pth import (
    NAMESPACE,
    ORDERED,
    check_same,
    integer,
    mapping,
    tensor,
    text,
    write_pth,
)
from tests.refused import refused


@pytest.mark.parametrize("key", ["state_dict", "model_state", "teacher"])
def test_training_checkpoint_is_unwrapped(tmp_path, key):
    """An OrderedDict with attributes, beside the script's argparse.Namespace.

    A script may call its arguments "model", too.
    """
    item = text("w") + tensor("0", 2, (2,), (1,))
    inner = ORDERED + b"(" + item + b"u"
    inner += mapping(_metadata=b"}") + b"b"
    arguments = NAMESPACE + mapping(lr=integer(3)) + b"b"
    entries = {"epoch": integer(3), "model": arguments, key: inner}
    stored = np.array([4, 5], "<f4")
    path = write_pth(tmp_path / "last.pth.tar", mapping(**entries), {"0": stored})
    check_same(read_state_dict(path), {"w": stored})


def under_keys(**values):
    """Opcodes and storages of a dict with a model of equal numbers under each key."""
    content = {}
    storages = {}
    for key, value in values.items():
        one = tensor(key, 2, (2,), (1,))
        names = [f"{index}.w" for index in range(SMALLEST)]
        content[key] = mapping(**dict.fromkeys(names, one))
        storages[key] = np.full(2, value, "<f4")
    return content, storages


def values(path, **options):
    return {float(array[0]) for array in read_state_dict(path, **options).values()}


@pytest.mark.parametrize(
    "key, name",
    [
        ("state_dict", "state_dict_ema"),
        ("state_dict", "ema_state_dict"),
        ("encoder", "ema"),
    ],
)
def test_averages_of_a_training_checkpoint(tmp_path, key, name):
    """As training scripts save them beside the weights, which alone are read."""
    content, storages = under_keys(**{key: 1, name: 2})
    whole = mapping(epoch=integer(3), **content)
    path = write_pth(tmp_path / "a.pth.tar", whole, storages)
    with pytest.warns(UserWarning, match=f"has averaged weights, too .{name}., which"):
        assert values(path) == {1}
    assert values(path, averaged=True) == {2}
    assert values(path, checkpoint=key) == {1}
    assert values(path, checkpoint=name) == {2}
    alone = mapping(**{name: content[name]})
    path = write_pth(tmp_path / "alone.pth", alone, {name: storages[name]})
    assert values(path) == values(path, averaged=True) == {2}


def test_one_of_several_models_is_chosen_by_its_key(tmp_path):
    content, storages = under_keys(student=1, teacher=2, encoder=3)
    center = mapping(center=tensor("student", 2, (2,), (1,)))
    content |= {"dino_loss": center, "epoch": integer(3)}
    whole = mapping(params=mapping(lr=integer(1)), model=mapping(**content))
    path = write_pth(tmp_path / "dino.pth", whole, storages)
    with refused(path, "it holds 3 models", "student or teacher or encoder"):
        read_state_dict(path)
    for key, value in (("student", 1), ("teacher", 2), ("encoder", 3)):
        assert values(path, checkpoint=key) == {value}
    with refused("checkpoint", "the file has", "student, teacher, encoder"):
        read_state_dict(path, checkpoint="teach")


def test_averages_hold_a_model_under_a_key(tmp_path):
    content, storages = under_keys(student=1, teacher=2, ema=3)
    averages = mapping(student=content["student"], teacher=content.pop("ema"))
    whole = mapping(model=mapping(**content), model_ema=averages)
    path = write_pth(tmp_path / "a.pth", whole, storages)
    assert values(path, averaged=True, checkpoint="teacher") == {3}


def test_a_state_dict_alone_has_no_keys(tmp_path):
    """Starts of names are none: layouts refuse two models in one state dict."""
    tensors = dict.fromkeys(["model.w", "ema_model.w"], np.ones(2, np.float32))
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path)
    check_same(read_state_dict(path), tensors)
    with refused("checkpoint", "the file has one model under no key"):
        read_state_dict(path, checkpoint="model")
    with refused("it has no averaged weights"):
        read_state_dict(path, averaged=True)


def test_the_count_of_an_averaged_model_is_no_weight(tmp_path):
    """PyTorch's AveragedModel has it beside the module that it averages."""
    tensors = {"module.w": np.ones(2, np.float32), "n_averaged": np.array(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    del tensors["n_averaged"]
    check_same(read_state_dict(tmp_path / "a.safetensors"), tensors)
