"""What names and config files at a path say of weights; no tensor is read for it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.problem import SINGLE_LABEL
from imagepiece_jax.models.recovery import Recovery
from imagepiece_jax.pretrained import hub
from imagepiece_jax.pretrained.towers import Tower
from imagepiece_jax.reduction.settings import DENSE


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """Weights at a path, by its names and its config files."""

    path: pathlib.Path = pathlib.Path()  # on this machine
    config: ModelConfig = ModelConfig()  # of a run all fields, else some
    reduction: Mapping[str, Any] = dataclasses.field(default_factory=DENSE.copy)
    # fields of a Preprocessing but the size
    crop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str | None] | None = None  # by label
    problem_type: str = SINGLE_LABEL  # what the logits mean
    own: bool = False  # whether this package saved the folder
    untrained: tuple[str, ...] = ()  # parts that were drawn, not learned
    # sizes in a config.json, which tensors must have too
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recovery: Recovery | None = None  # of weights that `recover` has changed
    tower: Tower | None = None  # how a language model reads its vision tower
    run: Mapping[str, Any] | None = None  # a run's config
    seed: int = 0  # of the training

    def __str__(self):
        """As sentences call it: "run runs/a"."""
        return f"{hub.kind(self.path)} {hub.described(self.path)}"

    @property
    def names_of_data(self) -> Sequence[str | None] | None:
        """Class names of the data that a run, or a saved model, learned.

        Names of other published models are words of another kind.
        """
        return self.class_names if self.run or self.own else None
