"""One checkpoint under several reductions: which models are these?

Commands that look inside take them from here: arithmetic is float32 and reductions are
plain JAX, so that every decision can be seen, and is that of the definitions.
"""

import dataclasses
from typing import Any

from imagepiece_jax.evaluate import sweep
from imagepiece_jax.experiments import subjects
from imagepiece_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A model with one reduction and its weights.

    label: the reduction in a few words; setting: its name and fields; gmacs: of one
    image; untrained: the checkpoint lacks what the reduction learns, so its selectors
    are drawn at random and say nothing about the method.
    """

    label: str
    setting: dict
    model: ViT
    variables: Any
    image_size: int
    gmacs: float
    untrained: bool


def variants(path, settings=(), config=None, normalization=None):
    """A Variant for each of `settings`, of the weights file or run at `path`.

    settings: dicts as from `sweep.parse`; none: the reduction of `config`, or of the
    run, or none at all. Sizes and stem are told by the run, or by the shapes in the
    file; normalization: see `subjects.of`. InputError for what does not fit.
    """
    subject = subjects.of(path, config, "float32", normalization)
    if not settings:
        own = subject.reduction
        return [_variant(subject, own, sweep.label(subjects.changed(own)))]
    return [_variant(subject, setting, sweep.label(setting)) for setting in settings]


def _variant(subject, setting, label):
    model = subject.model(setting)
    variables, untrained = subject.variables(model)
    return Variant(
        label=label + " (untrained selectors)" * untrained,
        setting=setting,
        model=model,
        variables=variables,
        image_size=subject.image_size,
        gmacs=subject.gmacs(setting),
        untrained=untrained,
    )
