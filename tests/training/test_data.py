"""Images of a run and their batches: what cannot be trained is refused."""

import dataclasses

import pytest

from configs import base
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.errors import InputError
from imagepiece_jax.training import data, report
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import check_training
from tests.runs import configured


def test_mixing_needs_pairs():
    message = "config.batch_size is 6, which makes micro-batches of 3; they must be "
    placement = Placement(accumulation=2)
    for on in ({"mixup": 0.8}, {"cutmix": 1.0}):
        config = configured(batch_size=6, grad_accum_steps=2, **on)
        with pytest.raises(InputError, match=message):
            check_training(RunConfig.from_config(config), placement)
        config.mixup_prob = 0.0
        check_training(RunConfig.from_config(config), placement)
    config = configured(batch_size=6, grad_accum_steps=2)
    check_training(RunConfig.from_config(config), placement)


def test_a_dry_run_counts_imagenet_without_its_files(tmp_path):
    """Its published numbers: 1,281,167 images of training, 50,000 of validation."""
    run = RunConfig.from_config(base.get_config())
    run = dataclasses.replace(
        run, data=dataclasses.replace(run.data, dir=str(tmp_path / "nowhere"))
    )
    plan = data.RunData(run, Placement(), dry_run=True)
    assert plan.image_counts == [1_281_167, 50_000]
    assert plan.length.steps_per_epoch == 1_281_167 // run.optim.batch_size
    assert "not read: train and val" in report.data_text(run, plan)
    for name, fields, dry_run in (
        ("imagenet2012", {}, False),
        ("imagenet2012", {"num_classes": 10}, True),
        ("folder:nowhere", {}, True),
    ):
        other = dataclasses.replace(run.data, name=name)
        with pytest.raises((InputError, FileNotFoundError)):
            data.RunData(
                dataclasses.replace(run, data=other, **fields), Placement(), dry_run
            )
