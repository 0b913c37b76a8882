"""No reduction: the dense model."""

from imagepiece_jax.reduction.methods.method import Method


def recipe(depth):
    """No steps."""
    return ()


METHOD = Method(recipe=recipe)
