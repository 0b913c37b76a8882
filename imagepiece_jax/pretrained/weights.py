"""Records of trained weights: Metadata of a path, and Weights with a full config.

`load.read_metadata` makes the first, `load.complete` the second, and `load.build` a
Pretrained, which has the model.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.models import convert, positions, registry
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.variables import digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained import hub, layouts, runs
from imagepiece_jax.pretrained.layouts import Contents
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import with_defaults

# Fields of training, device or method, which an analysis sets itself.
NOT_ANALYZED = ("drop_path_rate", "kernels", "prop_attn")
NOTHING = ModelConfig()


@dataclasses.dataclass(frozen=True, eq=False)
class Metadata(hub.HubConfig):
    """Trained weights by their path's names and configs, maybe without their model."""

    run: Mapping[str, Any] | None = None  # a run's config
    checkpoint: str = "best"  # of a run, or "latest"
    averaged: bool = False  # whether the weights are averages over steps
    seed: int = 0  # of the training
    # {"contents": those of the path} once they are read; records share it
    cache: dict[str, Contents] = dataclasses.field(default_factory=dict, repr=False)

    def __str__(self):
        """As sentences call it: "run runs/a"."""
        return f"{hub.kind(self.path)} {hub.described(self.path)}"

    @property
    def name(self) -> str:
        """A short form of the path."""
        return hub.short_name(self.path)

    @property
    def names_of_data(self) -> Sequence[str | None] | None:
        """Class names of the data that a run, or a saved model, learned.

        Names of other published models are words of another kind.
        """
        return self.class_names if self.run or self.own else None

    @property
    def contents(self) -> Contents:
        """What the files at the path hold, read at first use."""
        if "contents" not in self.cache:
            self.cache["contents"] = self._read()
        return self.cache["contents"]

    def _read(self):
        kind = hub.kind(self.path)
        if kind == "run":
            state_dict = runs.read_checkpoint(self.path, self.checkpoint, self.averaged)
            return Contents(state_dict, NOTHING)
        if kind == "folder":
            return layouts.read_folder(self.path, self.averaged, self.tower)
        return layouts.read_weights(self.path, self.averaged)

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """By timm's names."""
        return self.contents.tensors

    @property
    def partial_config(self) -> ModelConfig:
        """The config by name, layout and config.json, without the sizes of tensors."""
        if self.path.is_dir():
            return self.config
        images, said = self.contents.images, self.contents.config
        return images.over(said, self.config)

    @property
    def normalization(self) -> dict[str, tuple[float, ...]]:
        """{"mean", "std"} of the images; {} where neither a file nor a name says."""
        config = self.partial_config
        values = registry.facts(config.name) | config.fields
        return {field: values[field] for field in runs.IMAGENET if field in values}


@dataclasses.dataclass(frozen=True, eq=False)
class Weights(Metadata):
    """Trained weights with the full `config` of their model."""

    normalized: bool = True  # whether weights or caller say mean and std
    trained: "Weights | None" = None  # before a caller changed fields; None: the same

    @property
    def as_trained(self) -> "Weights":
        """`trained`, or these weights where nothing was changed."""
        return self.trained or self

    def use(self, reduction: Mapping[str, Any]) -> str:
        """Whether figures with `reduction` are "as trained" or "off-the-shelf"."""
        same = with_defaults(reduction) == with_defaults(self.reduction)
        return "as trained" if same else "off-the-shelf"

    def with_sizes(self, **fields: Any) -> "Weights":
        """Weights for images of another `image_size`, or with a lower `depth`.

        A model of fewer blocks keeps the first, with the norm and head behind the last.
        """
        config = dataclasses.replace(self.config, **fields)
        if "depth" not in fields:
            return dataclasses.replace(self, config=config)
        numbers = {name: re.match(r"blocks\.(\d+)\.", name) for name in self.tensors}
        tensors = {
            name: self.tensors[name]
            for name, number in numbers.items()
            if number is None or int(number[1]) < fields["depth"]
        }
        cache = {"contents": self.contents._replace(tensors=tensors)}
        return dataclasses.replace(self, config=config, cache=cache)

    def variables(self, model: ViT) -> dict[str, Any]:
        """Variables for `model` and images of the config's size.

        Raises Misfit where the weights do not fit.
        """
        return self.variables_and_drawn(model)[0]

    def variables_and_drawn(self, model: ViT, **options: Any):
        """As `convert.model_variables`, which has the `options`."""
        size = self.config.image_size
        old = self.as_trained.config.image_size
        tensors = positions.fit(self.tensors, model, size, old)
        return convert.model_variables(model, size, tensors, str(self), **options)

    @functools.cached_property
    def digest(self) -> str:
        """16 letters that differ between weights."""
        variables = self.variables(self.config.create(self.reduction))
        return digest(variables)[:16]

    @property
    def trained_reduction(self) -> Mapping[str, Any] | None:
        """The reduction a run or a saved model was trained with; None: unknown."""
        return self.as_trained.reduction if self.path.is_dir() else None

    def differences_from_training(self) -> list[str]:
        """Reduction and image size, in words, where training had others."""
        lines, before = [], self.trained_reduction
        if before is not None:
            if with_defaults(before) != with_defaults(self.reduction):
                ours, trained = map(settings.described, (self.reduction, before))
                lines.append(f"reduction {ours} (trained with {trained})")
        sizes = self.config.image_size, self.as_trained.config.image_size
        if sides(sizes[0]) != sides(sizes[1]):
            ours, trained = map(described, sizes)
            lines.append(f"size {ours} (trained with {trained})")
        return lines

    def analyzed(self, dtype: str | None = "float32") -> "Weights":
        """Weights whose model is analyzed, with reductions in plain JAX.

        dtype: of the layers; None: the config's
        Raises InputError where the fields make no model.
        """
        changes = dict.fromkeys(NOT_ANALYZED) | ({"dtype": dtype} if dtype else {})
        config = dataclasses.replace(self.config, **changes)
        reduction = settings.completed(self.reduction)
        config.create(reduction)
        return dataclasses.replace(self, config=config, reduction=reduction)
