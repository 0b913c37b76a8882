import numpy as np
import safetensors.numpy

from imagepiece_jax.weights.tensor_files import MIN_MODEL_TENSORS, read_state_dict
from tests.helpers.pth_files import (
    NAMESPACE,
    assert_same,
    integer,
    mapping,
    tensor,
    write_pth,
)
from tests.helpers.refused_calls import refused


def models_under_keys(**values):
    """Opcodes and storages of {key: a model whose values are all equal}."""
    content = {}
    storages = {}
    for key, value in values.items():
        opcodes = tensor(key, 2, (2,), (1,))
        names = [f"{index}.w" for index in range(MIN_MODEL_TENSORS)]
        content[key] = mapping(**dict.fromkeys(names, opcodes))
        storages[key] = np.full(2, value, "<f4")
    return content, storages


def first_values(path, **options):
    return {float(array[0]) for array in read_state_dict(path, **options).values()}


def test_the_only_model_is_read_whatever_its_key(tmp_path):
    """Beside the script's arguments, which may have the key "model"."""
    content, storages = models_under_keys(encoder=1)
    arguments = NAMESPACE + mapping(lr=integer(3)) + b"b"
    whole = mapping(**content, model=arguments, epoch=integer(3))
    path = write_pth(tmp_path / "one.pth", whole, storages)
    assert first_values(path) == first_values(path, model_key="encoder") == {1}


def test_one_of_several_models_is_chosen_by_its_key(tmp_path):
    content, storages = models_under_keys(student=1, teacher=2, model_ema=3)
    center = mapping(center=tensor("student", 2, (2,), (1,)))
    content |= {"dino_loss": center, "epoch": integer(3)}
    path = write_pth(tmp_path / "dino.pth", mapping(**content), storages)
    with refused(path, "checkpoint is None", "student or teacher or model_ema"):
        read_state_dict(path)
    for key, value in (("student", 1), ("teacher", 2), ("model_ema", 3)):
        assert first_values(path, model_key=key) == {value}
    with refused("checkpoint is 'teach'", "student or teacher or model_ema"):
        read_state_dict(path, model_key="teach")


def test_a_single_state_dict_has_no_keys(tmp_path):
    """Beginnings of names are no keys: namings refuse two models in one state dict."""
    tensors = dict.fromkeys(["model.w", "ema_model.w"], np.ones(2, np.float32))
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path)
    assert_same(read_state_dict(path), tensors)
    with refused("checkpoint", "the file has one model"):
        read_state_dict(path, model_key="model")


def test_an_averaged_models_count_is_no_tensor(tmp_path):
    """PyTorch's AveragedModel stores it beside its module."""
    tensors = {"module.w": np.ones(2, np.float32), "n_averaged": np.array(3)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    del tensors["n_averaged"]
    assert_same(read_state_dict(tmp_path / "a.safetensors"), tensors)
