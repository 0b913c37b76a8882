"""Recovery, the result of `recover`: learned values of reduced models, and measures.

The dense parameters stay. A recovered variant replaces some parameters, mostly norms
and biases, by learned values.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import parallel
from imagepiece_jax.common.checks import replace_lists
from imagepiece_jax.common.image_size import ImageSize, image_sides, size_text
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.variables import is_in_parts
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction

NOTHING_LOWER = "nothing was better: try a smaller reduction, or more images or steps"
ValueByPath = Mapping[str, np.ndarray]  # {path: value}, such as blocks_0/norm1/scale


@dataclasses.dataclass(frozen=True)
class RecoveredVariant:
    """Learned values of one reduced model, and measures on held-out images."""

    reduction: Reduction  # with token counts in place of `macs`
    parameters: str  # the trained part, as `recover` takes it
    images: int  # training images
    held_out: int  # held-out images, for the measures
    steps: int
    batch_size: int
    seed: int
    seconds: float  # duration
    # "KL": class probabilities against the dense model's. "squared error": regression.
    # "change": features, squared distance divided by the dense features' square.
    measure: str
    before: float
    after: float
    interval: tuple[float, float]  # 95 %, for after - before
    # % of images with the dense model's first class, before and after
    agreement: tuple[float, float]
    curve: tuple[tuple[int, float], ...]  # (steps, measure) on held-out images
    stopped: bool  # by a signal, before the last step
    changed: bool  # False: the last weights were no better than the start
    image_size: ImageSize
    depth: int  # block count
    lr: float  # peak learning rate, as a share of a parameter's size
    weights: str | None  # `Origin.name` of the dense model
    share: float  # MACs / dense MACs
    # the measure with dense parameters; differs from `before` if this recovery
    # started from an earlier recovery
    off_the_shelf: float
    # digests of all images that trained the values, one after another, from
    # `recovery_images.read_digests`
    learned: str = dataclasses.field(repr=False)
    # learned values, in place of dense parameters; {}: nothing was better
    values: ValueByPath = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "reduction", Reduction.read(self.reduction))
        # JSON turns tuples into lists.
        for field in ("interval", "agreement", "curve", "image_size"):
            object.__setattr__(self, field, replace_lists(getattr(self, field)))

    @property
    def record(self) -> dict[str, Any]:
        """The fields as JSON values, without `values`."""
        json_fields = {**vars(self), "reduction": str(self.reduction)}
        del json_fields["values"]
        return json_fields

    @property
    def name(self) -> str:
        """The variant's key and name: "tome:r=8, 12 blocks, .. pixels"."""
        size = size_text(self.image_size)
        return f"{self.reduction}, {self.depth} blocks, {size} pixels"

    def fits_model(self, model: ViT) -> bool:
        """Whether a model has this variant's reduction, image size and depth."""
        sides = image_sides(model.config.image_size)
        fits_images = sides == image_sides(self.image_size)
        reduction = model.reduction or DENSE_REDUCTION
        return fits_images and model.depth == self.depth and reduction == self.reduction

    def __str__(self) -> str:
        from imagepiece_jax.common import statistics  # and SciPy, which `load` spares

        outcome = f"stays; {NOTHING_LOWER}"
        if self.changed:
            change = statistics.Estimate(self.after - self.before, *self.interval)
            change_text = statistics.format_difference(change, 4)
            outcome = f"-> {self.after:.4f} ({change_text})"
            if self.measure == "KL":
                percentages = "{:.1f} -> {:.1f} %".format(*self.agreement)
                outcome += f", first class as the dense model's {percentages}"
        return (
            f"{self.name}: {self.measure} {self.before:.4f} {outcome}; on "
            f"{self.held_out} images held out (near copies are not looked for), "
            f"learned from {self.images} others, {counted_noun(self.steps, 'step')} of "
            f"{self.batch_size} images"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Recovery:
    """All recovered variants of a dense model."""

    variants: tuple[RecoveredVariant, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.variants))

    def variant_for(self, model: ViT) -> RecoveredVariant | None:
        """The variant with a model's reduction, image size and depth, or None."""
        variants = (variant for variant in self.variants if variant.fits_model(model))
        return next(variants, None)

    def variables_for(self, model: ViT, variables: Mapping) -> Mapping:
        """Replace dense variables by the recovered values of a model's variant."""
        variant = self.variant_for(model)
        if variant is None or not variant.values:
            return variables
        dense_params = traverse_util.flatten_dict(variables["params"], sep="/")
        # Values of a part that the model lacks, such as a head, are ignored.
        values = variant.values.items()
        model_values = {path: value for path, value in values if path in dense_params}
        params = traverse_util.unflatten_dict(dense_params | model_values, sep="/")
        return {**variables, "params": params}

    def collect_digested_values(self, dense_params: Mapping[str, Any]) -> list[Any]:
        """Everything in a digest of weights that tells this recovery."""
        # The replaced dense values are among it, because `variables` lack them.
        dense_values = flatten_params(dense_params)
        replaced_values = {}  # filled below, and the first in the list
        digested_values = [replaced_values]
        for variant in self.variants:
            replaced_values |= {path: dense_values[path] for path in variant.values}
            name_bytes = np.frombuffer(variant.name.encode(), np.uint8)
            digested_values += [variant.values, name_bytes]
        return digested_values

    def log_unrecovered(self, model: ViT, label: str) -> None:
        """Log that a reduced model, called `label`, was not recovered."""
        # Recovered values fit only their own variant.
        is_reduced = any(block_plan.counts for block_plan in model.plan)
        if not is_reduced or self.variant_for(model) or not parallel.is_main():
            return
        log.info(f"{label}: not recovered, so it has the dense model's values")

    def without_parts(self, parts: Collection[str]) -> "Recovery":
        """The same recovery without values for some parts, such as "head"."""
        variants = []
        for variant in self.variants:
            paths = [path for path in variant.values if not is_in_parts(path, parts)]
            values = {path: variant.values[path] for path in paths}
            variants.append(dataclasses.replace(variant, values=values))
        return Recovery(tuple(variants))

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The values as {"INDEX.NAME": tensor}: a variant's index, and timm's name."""
        tensors = {}
        for index, variant in enumerate(self.variants):
            params = traverse_util.unflatten_dict(variant.values, sep="/")
            for name, tensor in timm_tensors.to_timm({"params": params}).items():
                tensors[f"{index}.{name}"] = tensor
        return tensors

    def with_tensors(
        self, tensors: Mapping[str, np.ndarray], like: Mapping
    ) -> "Recovery":
        """The same recovery with the values of `to_tensors`.

        like: the dense model's variables or their shapes
        Raises InputError if a changed variant has no tensors.
        """
        variants = []
        for index, variant in enumerate(self.variants):
            prefix = f"{index}."
            names = [name for name in tensors if name.startswith(prefix)]
            if not names and variant.changed:
                raise InputError(f"it has no values for {variant.name}")
            variant_tensors = {
                name.removeprefix(prefix): tensors[name] for name in names
            }
            values = timm_tensors.values_from_timm(variant_tensors, like)
            variants.append(dataclasses.replace(variant, values=values))
        return Recovery(tuple(variants))

    def merge_earlier(self, earlier_recovery: "Recovery | None") -> "Recovery":
        """Add the variants of an earlier Recovery; newer variants win."""
        # An earlier variant with values beats a newer variant without values, whose
        # training found nothing better.
        if earlier_recovery is None:
            return self
        earlier_variants = {old.name: old for old in earlier_recovery.variants}
        variants = []
        for variant in self.variants:
            earlier_variant = earlier_variants.pop(variant.name, None)
            if earlier_variant and earlier_variant.values and not variant.values:
                variant = earlier_variant
            variants.append(variant)
        variants += earlier_variants.values()
        return Recovery(tuple(variants))


def flatten_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Flatten parameters to {path: value}, without the None of untrained parameters."""
    value_by_path: dict[str, Any] = {**traverse_util.flatten_dict(params, sep="/")}
    return {path: value for path, value in value_by_path.items() if value is not None}
