"""State dicts: which one a file's content has, beside averages and other models."""

import numpy as np
import safetensors.numpy

from imagepiece_jax.weights.tensor_files import MIN_MODEL_TENSORS, read_state_dict
from tests.helpers.pth_files import (
    NAMESPACE,
    check_same,
    integer,
    mapping,
    tensor,
    write_pth,
)
from tests.helpers.refused_calls import refused


def under_keys(**values):
    """Opcodes and storages of a dict with a model of equal numbers under each key."""
    content = {}
    storages = {}
    for key, value in values.items():
        one = tensor(key, 2, (2,), (1,))
        names = [f"{index}.w" for index in range(MIN_MODEL_TENSORS)]
        content[key] = mapping(**dict.fromkeys(names, one))
        storages[key] = np.full(2, value, "<f4")
    return content, storages


def values(path, **options):
    return {float(array[0]) for array in read_state_dict(path, **options).values()}


def test_the_only_model_is_read_whatever_its_key(tmp_path):
    """Beside the arguments of the script, which may have the key "model"."""
    content, storages = under_keys(encoder=1)
    arguments = NAMESPACE + mapping(lr=integer(3)) + b"b"
    whole = mapping(**content, model=arguments, epoch=integer(3))
    path = write_pth(tmp_path / "one.pth", whole, storages)
    assert values(path) == values(path, model_key="encoder") == {1}


def test_one_of_several_models_is_chosen_by_its_key(tmp_path):
    content, storages = under_keys(student=1, teacher=2, model_ema=3)
    center = mapping(center=tensor("student", 2, (2,), (1,)))
    content |= {"dino_loss": center, "epoch": integer(3)}
    path = write_pth(tmp_path / "dino.pth", mapping(**content), storages)
    with refused(path, "it holds 3 models", "student or teacher or model_ema"):
        read_state_dict(path)
    for key, value in (("student", 1), ("teacher", 2), ("model_ema", 3)):
        assert values(path, model_key=key) == {value}
    with refused("checkpoint", "the file has", "student, teacher, model_ema"):
        read_state_dict(path, model_key="teach")


def test_a_state_dict_alone_has_no_keys(tmp_path):
    """Starts of names are none: namings refuse two models in one state dict."""
    tensors = dict.fromkeys(["model.w", "ema_model.w"], np.ones(2, np.float32))
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path)
    check_same(read_state_dict(path), tensors)
    with refused("checkpoint", "the file has one model under no key"):
        read_state_dict(path, model_key="model")


def test_the_count_of_an_averaged_model_is_no_weight(tmp_path):
    """PyTorch's AveragedModel has it beside the module that it averages."""
    tensors = {"module.w": np.ones(2, np.float32), "n_averaged": np.array(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    del tensors["n_averaged"]
    check_same(read_state_dict(tmp_path / "a.safetensors"), tensors)
