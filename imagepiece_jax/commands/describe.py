"""Tokens, MACs and parameters of a model, block by block."""

import dataclasses

from imagepiece_jax.commands._arguments import Model


def main(model: Model) -> None:
    """Print tokens, MACs and parameters of a model with a reduction, block by block.

    Example: imagepiece describe deit_s --reduction tome:r=8
    """
    from imagepiece_jax.models import cost
    from imagepiece_jax.models.create import build_model

    recovery = None
    vit = model.create_named()
    if vit is None:
        # The seed is for selectors, whose values do not matter.
        pretrained = model.load_model(seed=0)
        recovery = pretrained.recovery
        vit = pretrained.model
    # Two dense models to compare with: the same stem shows the reduction's savings, and
    # papers use the patch stem.
    patch_stem_config = dataclasses.replace(vit.config, stem="patch")
    dense_models = []
    for config in (vit.config, patch_stem_config):
        dense_models.append(build_model(config, execution=vit.execution))
    print(cost.cost_summary(vit, dense_models))
    for variant in recovery.variants if recovery else ():
        outcome_text = "recovered for" if variant.changed else "no better for"
        print(f"{outcome_text} {variant}")
