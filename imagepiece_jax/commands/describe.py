"""Tokens, MACs and parameters of a model, block by block."""

import dataclasses

from imagepiece_jax.commands._arguments import Model


def main(model: Model):
    """Print tokens, MACs and parameters of a model with a reduction, block by block.

    Example: python -m imagepiece_jax describe deit_s --reduction tome:r=8
    """
    from imagepiece_jax.models import cost

    recovery = None
    spec = model.spec()
    if spec is None:
        loaded = model.load(seed=0)  # of selectors, whose values do not matter
        recovery = loaded.recovery
        spec = loaded.spec
        vit = loaded.model
        size = loaded.image_size
    else:
        vit = spec.create_at_cost(model.reduction)
        size = tuple(side * vit.patch_size for side in spec.grid)
    # Compared with the dense model of the same stem, which shows what the reduction
    # saves, and with that of the patch stem, as in papers.
    patch_stem = dataclasses.replace(spec, stem="patch")
    print(cost.describe(vit, [spec.create(), patch_stem.create()], size))
    if recovery:
        print_recovery(recovery, recovery.of(vit, size))


def print_recovery(recovery, own):
    """Print a line for each cost, and one on the numbers that the model has.

    own: the cost that was learned for it; None: it has the dense model's numbers
    """
    for each in recovery.costs:
        what = "recovered for" if each.changed else "no better for"
        print(f"{what} {each}")
    if own is None:
        print("its numbers are the dense model's")
    elif own.changed:
        print(f"its numbers are those of {own.form}")
    else:
        print("its numbers are those from before the recovery")
