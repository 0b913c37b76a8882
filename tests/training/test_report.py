import pytest

from configs import base
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training import data, report
from imagepiece_jax.training.config import RunConfig
from tests.helpers import small_runs
from tests.helpers.refused_calls import refused


def test_a_runs_flop_count_every_epoch_and_the_teacher():
    """DeiT-S by hand, a keep-rate warm-up, and a teacher without gradients."""
    deit = RunConfig.from_config(base.get_config())
    flop = report.count_training_flop(deit, 1_281_167)
    assert flop == pytest.approx(300 * 1251 * 1024 * 3 * 2 * 4.6e9, rel=1e-3)
    config = small_runs.quickstart_config(epochs=4)
    config.reduction = "evit:blocks=(1,2,3):rate_warmup_start=1:rate_warmup_epochs=2"
    evit = RunConfig.from_config(config)
    macs = [model_macs(evit.create_train_model(epoch)) for epoch in range(4)]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3
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
