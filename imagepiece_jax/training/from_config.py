"""From a config to its models."""

from imagepiece_jax.training.config import RunConfig


def check(config):
    """InputError for the first field of `config` that is missing or out of range."""
    return RunConfig.read(config).create_method()


def model(config):
    """The ViT that `config` describes."""
    return RunConfig.read(config).create_model()


def method(config):
    """The Method that `config.reduction` names."""
    return RunConfig.read(config).create_method()
