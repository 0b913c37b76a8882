import numpy as np
import pytest

from imagepiece_jax.benchmark import workloads
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import create_model
from tests.helpers import named_models, tiny_vit
from tests.helpers.tiny_benchmark import Mean


@pytest.fixture
def vit():
    return tiny_vit.pretrained("tome:r=2", depth=2)


def test_inputs_differ_and_rotate(vit, monkeypatch):
    made = []

    def optimize(*args, **options):
        made.append(Mean(*args, **options))
        return made[0]

    monkeypatch.setattr(workloads.optimize, "optimize", optimize)
    case = workloads.BenchmarkCase(vit, "inference", 3, "float32")
    call = case.compile_workload().timed_call.call
    for number in range(2 * workloads.NUM_INPUTS):
        call(number)
    first = made[0].seen[: workloads.NUM_INPUTS]
    again = made[0].seen[workloads.NUM_INPUTS :]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len({float(images.std()) for images in first}) == workloads.NUM_INPUTS
    assert all(images.shape == (3, tiny_vit.SIDE, tiny_vit.SIDE, 3) for images in first)
    assert all(images.std() > 0.5 for images in first)  # no zeros


def test_the_optimized_model_is_timed(vit):
    work = workloads.BenchmarkCase(vit, "inference", 4, "float32").compile_workload()
    logits = work.timed_call.call(0)
    work.timed_call.wait(logits)
    assert logits.shape == (4, tiny_vit.CLASSES)
    assert np.isfinite(logits).all()
    assert work.columns["peak_memory"] > 4 * tiny_vit.SIDE**2 * 3
    assert (work.num_images, work.macs) == (4, 4 * model_macs(vit.model))


@pytest.mark.slow  # compiles a step of training
def test_a_training_step_changes_the_state_and_counts_three_forward_passes():
    sizes = {"depth": 1, "patch_size": 4, "embed_dim": 8, "num_heads": 2}
    sizes |= {"image_size": 16, "num_classes": 10}
    model = create_model(named_models.config("vit_mini", **sizes))
    vit = workloads.with_random_weights(model).with_reduction("tome:r=2")
    work = workloads.BenchmarkCase(vit, "train", 4, "float32").compile_workload()
    first, second = (work.timed_call.call(number) for number in range(2))
    work.timed_call.wait(second)
    assert first["loss"] != second["loss"]
    assert (work.num_images, work.macs) == (4, 3 * 4 * model_macs(vit.model))
