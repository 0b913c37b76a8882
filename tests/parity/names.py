"""Names of public weights."""

from imagepiece_jax.models.registry import public_models


def public_weights():
    names = []
    for model, row in public_models().items():
        names += [f"{model}.{tag}" for tag in row["weights"]]
    return names
