import types

import pytest

from configs import base
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training import data, report
from imagepiece_jax.training.cluster.checkpoint import RunProgress
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import MetricWriter
from tests.helpers import small_runs
from tests.helpers.refused_calls import refused

LAST = {"acc1": 97.5, "acc5": 99.9, "loss": 0.1, "images": 359}
PROGRESS = RunProgress([], {"acc1": 98.125, "step": 352}, LAST)


def result_rows(workdir, progress=PROGRESS, **fields):
    config = RunConfig.from_config(small_runs.quickstart_config(fields))
    setup = types.SimpleNamespace(workdir=workdir, config=config)
    run = types.SimpleNamespace(setup=setup, progress=progress)
    table = report.describe_results(run)
    return {line[:12].strip(): line[13:] for line in table.split("\n")}


def write_rates(workdir, *rates):
    """Write training lines of (step, images per second, skipped steps)."""
    writer = MetricWriter(workdir)
    for step, rate, skipped in rates:
        writer.write_line("train", step, throughput=rate, skipped=skipped)
        writer.write_line("eval", step, throughput=1.0)
    writer.close()


def test_time_and_throughput_come_from_the_log(tmp_path):
    write_rates(tmp_path, (1, None, 0), (10, 64.0, 0), (20, 6.4, 3), (22, 12.8, 1))
    table = result_rows(tmp_path)
    assert table["time"] == "2 min of steps, 13 img/s (median)"
    assert table["skipped"] == "4 steps, which were not finite"
    write_rates(tmp_path, (1, None, 0))
    assert "time" not in result_rows(tmp_path)


def test_a_runs_flop_count_every_epoch_and_the_teacher():
    """DeiT-S by hand, a keep-rate warm-up, and a teacher without gradients."""
    images = 1281167
    deit = RunConfig.from_config(base.get_config())
    length = data.find_run_length(deit, images)
    assert (length.steps_per_epoch, length.steps) == (1251, 375300)
    by_hand = 300 * 1251 * 1024 * 3 * 2 * 4.6e9
    assert report.count_training_flop(deit, images) == pytest.approx(by_hand, rel=1e-3)
    config = small_runs.quickstart_config(epochs=4)
    config.reduction = "evit:blocks=(1,2,3):rate_warmup_start=1:rate_warmup_epochs=2"
    evit = RunConfig.from_config(config)
    macs = [model_macs(evit.create_train_model(epoch)) for epoch in range(4)]
    assert report.list_epoch_macs(evit) == macs == sorted(macs, reverse=True)
    assert len(set(macs)) == 3
    assert macs[0] == model_macs(evit.create_dense_model())
    assert report.count_training_flop(evit, 640) == 2 * 10 * 64 * 3 * sum(macs)
    config.distill.kind = "soft"
    taught_run = RunConfig.from_config(config)
    taught_flop = report.count_training_flop(taught_run, 640)
    assert taught_flop == 2 * 10 * 64 * (3 * sum(macs) + 4 * macs[0])
    known_flop = report.count_training_flop(taught_run, 640, teacher_macs=10)
    assert known_flop == 2 * 10 * 64 * (3 * sum(macs) + 4 * 10)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_needs_pairs(options):
    def check_run(**fields):
        config = small_runs.quickstart_config(
            batch_size=6, grad_accum_steps=2, **fields
        )
        data.check_training(RunConfig.from_config(config), Placement(accumulation=2))

    with refused("config.batch_size makes odd micro-batches"):
        check_run(**options)
    check_run()
    check_run(**options, mixup_prob=0.0)


def test_a_dry_run_needs_no_imagenet_files(tmp_path):
    """It knows 1,281,167 training images and 50,000 validation images."""

    def open_data(dry_run=True, **fields):
        config = base.get_config()
        config.update_from_flattened_dict({"data.dir": f"{tmp_path}/nowhere"} | fields)
        run = RunConfig.from_config(config)
        return run, data.RunData(run, Placement(), dry_run)

    run, run_data = open_data()
    assert run_data.image_counts == [1_281_167, 50_000]
    assert run_data.length.steps_per_epoch == 1_281_167 // run.batch_size
    assert "not read: train and val" in report.describe_data(run, run_data)
    other_set = {"data.name": "folder:nowhere"}
    for fields in ({"dry_run": False}, {"num_classes": 10}, other_set):
        with pytest.raises((InputError, FileNotFoundError)):
            open_data(**fields)
