"""What names and config files at a path say of weights; no tensor is read for it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from imagepiece_jax.models import registry
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.pretrained import Source
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
    normalized: bool = True  # whether weights or caller say mean and std
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
        return f"{hub.kind(self.path)} {hub.path_text(self.path)}"

    def without_classes(self) -> "Description":
        """The same for a model with a new head, of which it says nothing."""
        return dataclasses.replace(self, class_names=None, problem_type=SINGLE_LABEL)

    def source(self, config: ModelConfig, checkpoint: str, averaged: bool) -> Source:
        """The Source of the model of these weights that `config` makes."""
        reduction = None
        if self.path.is_dir():
            reduction = self.reduction
        is_run = self.run is not None
        return Source(
            path=self.path,
            place=str(self),
            name=hub.short_name(self.path),
            config=config,
            image_size=self.config.image_size,
            reduction=reduction,
            run=self.run,
            checkpoint=checkpoint if is_run else None,
            averaged=averaged,
            seed=self.seed,
            normalized=self.normalized,
            has_names_of_data=self.own or is_run,
        )

    def crop_for(self, requested: ModelConfig) -> Mapping[str, Any]:
        """Fields of the Preprocessing that the weights were trained with.

        Their run or their folder states it, or it is published for their name.

        requested: fields that the caller adds or changes; names a file as it likes
        """
        if self.crop or self.run is not None:
            return self.crop
        name = self.config.name or requested.name
        if requested.name and not self.path.is_dir():
            name = requested.name
        return registry.published_crop(name)

    @property
    def names_of_data(self) -> Sequence[str | None] | None:
        """Class names of the data that a run, or a saved model, learned.

        Names of other published models are words of another kind.
        """
        if self.run or self.own:
            return self.class_names
        return None
