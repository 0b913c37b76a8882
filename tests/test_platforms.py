"""Branches for other platforms, more devices and small limits, taken by stand-ins."""

import types

import jax
import pytest

from experiments.paper import Clock
from imagepiece_jax.benchmark import workloads
from imagepiece_jax.common import device, parallel, timer, xla_options
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models, tiny_vit

GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
GPU.compute_capability = "9.0"


def test_the_benchmarked_device(monkeypatch):
    assert xla_options.fast_dtype() == "float32"
    assert timer.TimedCall(None).ahead == 0
    assert f"{device.available_cores()} cores" in device.device_name()
    monkeypatch.setattr(jax, "devices", lambda: [GPU])
    assert xla_options.fast_dtype() == "bfloat16"
    assert timer.TimedCall(None).ahead == 2
    assert device.device_name() == "NVIDIA H200"


@pytest.mark.parametrize("dtype, named", [("float32", False), ("bfloat16", True)])
def test_a_speed_is_that_of_what_the_device_takes(monkeypatch, dtype, named):
    vit = tiny_vit.pretrained(dtype=dtype, embed_dim=24)
    here = Clock().setting(vit)
    assert not {"gelu", "sizes"} & here.keys()
    monkeypatch.setattr(jax, "local_devices", lambda: [GPU])
    there = Clock().setting(vit)
    forms = {"gelu": "tanh", "sizes": "direction"} if named else {}
    assert there == here | {"device": there["device"]} | forms


def test_a_training_step_is_measured_on_one_device(monkeypatch):
    model = create_model(named_models.config("deit_ti", image_size=32, depth=1))
    vit = workloads.with_random_weights(model)
    workloads.BenchmarkCase(vit, "train", 64, "float32")
    monkeypatch.setattr(parallel, "device_count", lambda: 8)
    workloads.BenchmarkCase(vit, "inference", 64, "float32")
    with pytest.raises(InputError, match="mode is train on 8 devices"):
        workloads.BenchmarkCase(vit, "train", 64, "float32")
