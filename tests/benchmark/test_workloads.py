"""What the programs of a benchmark compute, and the MACs that they count."""

import numpy as np
import pytest

from imagepiece_jax.benchmark import workloads
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models.cost import dead_macs, model_macs
from tests import programs
from tests.benchmark.small import Mean, simplify, tiny_config


@pytest.fixture(autouse=True)
def _compiled_anew():
    """The seconds of compiling are told of programs that are compiled."""
    with programs.compiled_anew():
        yield


@pytest.mark.parametrize("mode", ["inference", "copy"])
def test_inputs_differ_and_rotate(mode, monkeypatch):
    made = []
    monkeypatch.setattr(
        workloads.optimize,
        "optimize",
        lambda *args, **options: made.append(Mean(*args, **options)) or made[0],
    )
    job = workloads.Case(tiny_config(), mode, 3, "float32").workload().job
    for number in range(2 * workloads.INPUTS):
        job.call(number)
    first = made[0].seen[: workloads.INPUTS]
    again = made[0].seen[workloads.INPUTS :]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len({float(images.std()) for images in first}) == workloads.INPUTS
    assert all(images.shape == (3, 16, 16, 3) for images in first)
    assert all(images.std() > 0.5 for images in first)  # no zeros
    assert all(isinstance(images, np.ndarray) == (mode == "copy") for images in first)


def test_end_to_end_reads_files_through_the_loader(monkeypatch):
    simplify(monkeypatch)
    with workloads.InputStreams() as streams:
        case = workloads.Case(tiny_config(), "end_to_end", 3, "float32")
        case.check()
        job = case.workload(streams).job
        colors = [np.asarray(job.call(number)) for number in range(2)]
    assert colors[0].shape == (3, 3)
    assert (colors[0] != colors[1]).any()
    assert all((0 < c).all() and (c < 255).all() for c in colors)  # of pixels


def test_cases_with_the_same_images_share_a_loader():
    case = workloads.Case(tiny_config(), "end_to_end", 5, "float32")
    same = workloads.Case(tiny_config(), "end_to_end", 5, "float32")
    other = workloads.Case(tiny_config(), "end_to_end", 6, "float32")
    with workloads.InputStreams() as streams:
        first = streams.batches(case.reading)
        assert streams.batches(same.reading) is first
        assert streams.batches(other.reading) is not first
        batches = [next(first) for _ in range(2)]
        assert [(b.shape, b.dtype) for b in batches] == [((5, 16, 16, 3), "uint8")] * 2
        assert (batches[0] != batches[1]).any()


def test_the_optimized_model_is_timed():
    work = workloads.Case(tiny_config(), "copy", 4, "float32").workload()
    logits = work.job.call(0)
    work.job.wait(logits)
    assert logits.shape == (4, 10)
    assert np.isfinite(logits).all()
    assert work.facts["compile_s"] > 0
    assert work.facts["peak_memory"] > 4 * 16 * 16 * 3
    model = RunConfig.from_config(tiny_config()).create_model()
    assert (work.images, work.macs) == (4, 4 * model_macs(model, 16))
    assert work.skipped == 4 * dead_macs(model) > 0


@pytest.mark.slow  # compiles a step of training
def test_a_training_step_changes_the_state_and_counts_three_forward_passes():
    config = tiny_config()
    config.model.update(depth=1, stem="patch")
    config.reduction = "imagepiece:merge_blocks=():prune_blocks=(0,)"
    case = workloads.Case(config, "train", 4, "float32")
    work = case.workload()
    first, second = (work.job.call(number) for number in range(2))
    work.job.wait(second)
    assert first["loss"] != second["loss"]
    forward = model_macs(case.model, case.config.image_size)
    assert (work.images, work.macs) == (4, 3 * 4 * forward)
    assert work.skipped == 3 * 4 * dead_macs(case.model) > 0
    assert work.facts["compile_s"] > 0
