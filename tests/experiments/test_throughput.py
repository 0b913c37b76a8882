"""Speed of all methods: which batch sizes and modes are measured."""

import pytest

from experiments import throughput
from experiments.settings import Throughput
from imagepiece_jax.errors import InputError
from imagepiece_jax.training import config_files
from tests.experiments import tiny_context


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Makes a context of settings, whose configs are a small recipe with mixup."""
    monkeypatch.setattr(throughput, "METHODS", ("none", "tome"))
    opened = []

    def load_config(name):
        config = config_files.load_config(f"{config_files.CONFIGS}/quickstart.py")
        config.mixup = 0.8
        return config

    monkeypatch.setattr(throughput, "package_config", load_config)

    def make(**settings):
        opened.append(
            tiny_context.context(tmp_path, kind=Throughput, images=None, **settings)
        )
        return opened[-1]

    yield make
    for made in opened:
        made.cache.close()


def test_the_default_batch_sizes_can_be_measured(context):
    """Training of a single image is left out: mixup has nothing to mix it with."""
    sizes = (2, 1)
    found = throughput.groups(context(batch_sizes=sizes))
    assert [(group.batch_size, group.mode) for group in found] == [
        *((2, mode) for mode in Throughput().modes),
        *((1, mode) for mode in Throughput().modes if mode != "train"),
    ]
    assert list(found[0].configs) == ["deit_s", "deit_s_tome"]
    assert 1 in Throughput().batch_sizes and "train" in Throughput().modes


def test_training_of_odd_batches_alone_is_refused(context):
    with pytest.raises(InputError) as error:
        throughput.groups(context(batch_sizes=(3,), modes=("train",)))
    assert (error.value.field, error.value.value) == ("config.batch_size", 3)
