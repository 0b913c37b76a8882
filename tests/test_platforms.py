"""Stand-ins take the branches of other platforms and more devices."""

import types

import jax
import pytest

from imagepiece_jax.benchmark import workloads
from imagepiece_jax.common import device, parallel, timer, xla_options
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models

GPU = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
GPU.compute_capability = "9.0"


def test_defaults_follow_the_device(monkeypatch):
    assert xla_options.fast_dtype() == "float32"
    assert timer.TimedCall(None).ahead == 0
    assert f"{device.available_cores()} cores" in device.device_name()
    monkeypatch.setattr(jax, "devices", lambda: [GPU])
    assert xla_options.fast_dtype() == "bfloat16"
    assert timer.TimedCall(None).ahead == 2
    assert device.device_name() == "NVIDIA H200"


def test_training_steps_are_measured_on_one_device(monkeypatch):
    model = create_model(named_models.config("deit_ti", image_size=32, depth=1))
    vit = workloads.with_random_weights(model)
    workloads.BenchmarkCase(vit, "train", 64, "float32")
    monkeypatch.setattr(parallel, "device_count", lambda: 8)
    workloads.BenchmarkCase(vit, "inference", 64, "float32")
    with pytest.raises(InputError, match="mode train takes 1 of 8"):
        workloads.BenchmarkCase(vit, "train", 64, "float32")
