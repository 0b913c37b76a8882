"""The experiments by name: what runs each, its settings, and what it needs."""

from typing import NamedTuple

from experiments import settings
from experiments.scratch.options import Options
from experiments.settings import Common
from imagepiece_jax.errors import InputError, one_of


class Experiment(NamedTuple):
    """One experiment."""

    function: str  # "module:name" below experiments; it takes a Context
    settings: type[Common] = Common
    paper: bool = True  # whether it is among `all`
    small: bool = True  # whether it has a form with --small
    classes: bool | None = True  # of the images; None: only if the model has some


def _further(function, settings, classes=False):
    """An experiment that is not of the paper."""
    return Experiment(function, settings, paper=False, small=False, classes=classes)


EXPERIMENTS = {
    "table1": Experiment("tables:table1"),
    "table2": Experiment("tables:table2"),
    "hyperspeed": Experiment("hyperspeed:hyperspeed"),
    "table3": Experiment("tables:table3", small=False),
    "masking": Experiment("masking:masking"),
    "reassess": Experiment("analysis:reassess"),
    "similarity": Experiment("analysis:similarity"),
    "overlap": Experiment("analysis:overlap"),
    "lcb-similarity": Experiment("analysis:lcb_similarity"),
    "combos": Experiment("tables:combinations"),
    "ablation": Experiment("tables:ablation"),
    "saliency": _further("dense_maps.saliency:saliency", settings.Saliency),
    "saliency-picture": _further("dense_maps.saliency:picture", settings.Maps),
    "patch_features": _further(
        "dense_maps.patch_features:patch_features", settings.Sweep
    ),
    "fixed_tokens": _further(
        "dense_maps.fixed_tokens:fixed_tokens", settings.FixedTokens, None
    ),
    "int8": _further("dense_maps.int8:int8", settings.Int8, None),
}
SCRATCH, ALL = "scratch", "all"
SETTINGS = {name: each.settings for name, each in EXPERIMENTS.items()}
SETTINGS |= {SCRATCH: Options}


def select(words: list[str], common: Common) -> list[str]:
    """Names of the experiments to run.

    InputError for anything but one name that there is, and for settings that it cannot
    have.
    """
    name = one_of("NAME", " ".join(words), (*EXPERIMENTS, SCRATCH, ALL))
    small = [other for other, each in EXPERIMENTS.items() if each.small]
    if common.small and name in EXPERIMENTS and name not in small:
        problem, allowed = f"has no form of {name}", ", ".join(small)
        raise InputError(problem, field="--small", allowed=allowed)
    if name != ALL:
        return words
    paper = [other for other, each in EXPERIMENTS.items() if each.paper]
    return [other for other in paper if other in small or not common.small]
