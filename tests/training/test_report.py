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


def test_results_have_accuracy_best_and_skipped_steps(tmp_path):
    writer = MetricWriter(tmp_path)
    for step, skipped in ((10, 0), (20, 3), (22, 1)):
        writer.write_line("train", step, skipped=skipped)
        writer.write_line("eval", step, acc1=1.0)
    writer.close()
    last = {"acc1": 97.5, "acc5": 99.9, "images": 359, "ema_acc1": 96.0}
    progress = RunProgress([], {"acc1": 98.125, "step": 352}, last)
    setup = types.SimpleNamespace(workdir=tmp_path)
    run = types.SimpleNamespace(setup=setup, progress=progress)
    assert report.describe_results(run).splitlines() == [
        "accuracy     top-1 97.50 %, top-5 99.90 % of 359 images; averaged weights "
        "96.00 %",
        "best         98.12 % at step 352",
        "skipped      4 steps, which were not finite",
    ]


def test_a_runs_flop_count_every_epoch_and_the_teacher():
    """DeiT-S by hand, a keep-rate warm-up, and a teacher without gradients."""
    deit = RunConfig.from_config(base.get_config())
    by_hand = 300 * 1251 * 1024 * 3 * 2 * 4.6e9
    flop = report.count_training_flop(deit, 1_281_167)
    assert flop == pytest.approx(by_hand, rel=1e-3)
    config = small_runs.quickstart_config(epochs=4)
    config.reduction = "evit:blocks=(1,2,3):rate_warmup_start=1:rate_warmup_epochs=2"
    evit = RunConfig.from_config(config)
    macs = [model_macs(evit.create_train_model(epoch)) for epoch in range(4)]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3
    assert macs[0] == model_macs(evit.create_dense_model())
    assert report.count_training_flop(evit, 640) == 2 * 10 * 64 * 3 * sum(macs)
    config.distill.kind = "soft"
    taught_run = RunConfig.from_config(config)
    for known, teacher_macs in ((None, macs[0]), (10, 10)):
        flop = report.count_training_flop(taught_run, 640, known)
        assert flop == 2 * 10 * 64 * (3 * sum(macs) + 4 * teacher_macs)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_needs_pairs(options):
    def check_run(**fields):
        fields |= {"batch_size": 6, "grad_accum_steps": 2}
        run = RunConfig.from_config(small_runs.quickstart_config(**fields))
        data.check_training(run, Placement(accumulation=2))

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
    assert (len(run_data.train), len(run_data.val)) == (1_281_167, 50_000)
    assert run_data.length.steps_per_epoch == 1251
    assert report.describe_data(run, run_data).count("not read") == 2
    other_set = {"data.name": "folder:nowhere"}
    for fields in ({"dry_run": False}, {"num_classes": 10}, other_set):
        with pytest.raises((InputError, FileNotFoundError)):
            open_data(**fields)
