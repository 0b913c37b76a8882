"""Origin: where weights come from, how they were trained, and what was not trained."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from imagepiece_jax.common.image_size import ImageSize, image_sides, size_text
from imagepiece_jax.models.variables import variables_digest
from imagepiece_jax.reduction.reduction import Reduction

if TYPE_CHECKING:
    from imagepiece_jax.models.pretrained import Pretrained


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Origin:
    """Where weights come from; empty for a model made in memory."""

    path: pathlib.Path | None = None  # on this machine
    kind: str = "model"  # "weights file", "folder" or "run"
    name: str = ""  # last part of the path; for hub weights OWNER/NAME
    license: str | None = None
    # image size the position embeddings were trained at; None: the model's
    image_size: ImageSize | None = None
    # the position embeddings of that size, if the model's are resized from them
    positions: np.ndarray | None = None
    # reduction used in training; None: unknown
    reduction: Reduction | None = None
    checkpoint: str | None = None  # a run's "best" or "latest"; a key in a file
    averaged: bool = False  # weights averaged over training steps
    run: Mapping[str, Any] | None = None  # the run's config
    # {part: digest of its random values}. A part with another digest was trained since.
    untrained_digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed; 0 without a run."""
        return self.run["seed"] if self.run else 0

    @property
    def title(self) -> str:
        """The weights' name in messages, such as "run runs/a"."""
        if self.path is None:
            return f"the {self.kind}"
        location = f"hf://{self.name}" if "/" in self.name else self.path
        return f"{self.kind} {location}"

    def with_untrained(self, params: Mapping[str, Any], parts: Iterable[str]) -> Self:
        """The same origin with more untrained parts, which have random values."""
        digests = {part: variables_digest(params[part]) for part in parts}
        untrained_digests = {**self.untrained_digests, **digests}
        return dataclasses.replace(self, untrained_digests=untrained_digests)

    def untrained_parts(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the parts that still have random values, such as "head"."""
        return tuple(
            part
            for part, digest in self.untrained_digests.items()
            if part in params and variables_digest(params[part]) == digest
        )

    def describe_differences(self, vit: "Pretrained") -> list[str]:
        """Describe a model's reduction and image size if they differ from training's.

        vit: a model of these weights, recovered or not
        """
        lines = []
        if self.reduction is not None and not vit.recovery:
            trained_reduction = vit.reduced_model(self.reduction).reduction
            if trained_reduction != vit.reduction:
                lines.append(
                    f"reduction {vit.reduction} (trained with {trained_reduction})"
                )
        trained_size = self.image_size or vit.image_size
        if image_sides(vit.image_size) != image_sides(trained_size):
            own_size_text = size_text(vit.image_size)
            trained_text = size_text(trained_size)
            lines.append(f"size {own_size_text} (trained with {trained_text})")
        return lines
