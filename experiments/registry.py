"""The experiments by name: what runs each, its settings, and what it needs."""

from typing import NamedTuple

from experiments.scratch.options import Options
from experiments.settings import Common
from imagepiece_jax.errors import InputError, one_of


class Experiment(NamedTuple):
    """One experiment."""

    function: str  # "module:name" below experiments; it takes a Context
    settings: type[Common] = Common
    small: bool = True  # whether it has a form with --small


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
    return small if common.small else [*EXPERIMENTS]
