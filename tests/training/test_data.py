"""Images of a run and their batches: what cannot be trained is refused."""

import pytest

from configs import base
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.training import data, report
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import check_training
from tests.refused import refused
from tests.runs import configured


@pytest.mark.parametrize("on", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_needs_pairs(on):
    placement = Placement(accumulation=2)
    fields = {"batch_size": 6, "grad_accum_steps": 2}
    with refused("config.batch_size is 6, which makes micro-batches of 3"):
        check_training(RunConfig.from_config(configured(fields, on)), placement)
    for off in ({}, on | {"mixup_prob": 0.0}):
        check_training(RunConfig.from_config(configured(fields, off)), placement)


def test_a_dry_run_counts_imagenet_without_its_files(tmp_path):
    """Its published numbers: 1,281,167 images of training, 50,000 of validation."""

    def plan(dry_run=True, **fields):
        config = base.get_config()
        config.update_from_flattened_dict({"data.dir": f"{tmp_path}/nowhere"} | fields)
        run = RunConfig.from_config(config)
        return run, data.RunData(run, Placement(), dry_run)

    run, found = plan()
    assert found.image_counts == [1_281_167, 50_000]
    assert found.length.steps_per_epoch == 1_281_167 // run.optim.batch_size
    assert "not read: train and test" in report.data_text(run, found)
    for fields in (
        {"dry_run": False},
        {"num_classes": 10},
        {"data.name": "folder:nowhere"},
    ):
        with pytest.raises((InputError, FileNotFoundError)):
            plan(**fields)
