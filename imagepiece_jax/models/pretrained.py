"""Pretrained: a model, its variables, their origin and what was recovered."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from imagepiece_jax.common.image_size import ImageSize, image_sides, size_text
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import log_reduction, make_execution, with_plan
from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from imagepiece_jax.models.variables import variables_digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction, ReductionLike


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
        # A hub name is OWNER/NAME; any other is the last part of a path.
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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """A model, its variables and their metadata, as returned by `load`.

        vit = imagepiece_jax.load("deit_tiny_patch16_224.pth")
        logits = vit.model.apply(vit.variables, images).logits

    Raises InputError for metadata that do not fit the model.
    """

    model: ViT
    # Parameters and statistics, {"params": .., ..}, without recovered values.
    # Do not change arrays in place: they are copied to a device once, and NumPy arrays
    # are read-only from then on. `with_variables` replaces them.
    dense_variables: Mapping[str, Any]
    # one entry per class, None for an unnamed class; None: no class has a name
    class_names: Sequence[str | None] | None = None
    # values learned by `recover`, which replace dense parameters in reduced models
    recovery: Recovery | None = None
    origin: Origin = dataclasses.field(default_factory=Origin)
    # tensors of learned selectors by timm's names, kept for other reductions
    selectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names is not None:
            class_names = checked_names(self.class_names, self.config.num_classes)
            object.__setattr__(self, "class_names", class_names)

    def __repr__(self) -> str:
        # The model's own repr is pages long.
        return (
            f"<Pretrained {self.config.name or 'ViT'}: {self.label}, images of "
            f"{size_text(self.image_size)}, {self.config.num_classes} classes, "
            f"{self.gmacs:.3g} GMACs>"
        )

    @property
    def config(self) -> ViTConfig:
        return self.model.config

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized and cropped."""
        return self.config.preprocessing

    @property
    def reduction(self) -> Reduction | None:
        """The reduction behind the model's plan; None for a plan made by hand.

        Its prop_attn is set only if it differs from the method's and model's default.
        """
        reduction = self.model.reduction or DENSE_REDUCTION
        has_steps = any(block_plan.step for block_plan in self.model.plan)
        return None if has_steps and reduction == DENSE_REDUCTION else reduction

    def known_reduction(self) -> Reduction:
        """`reduction`; raises InputError for a plan made by hand."""
        if self.reduction is None:
            raise InputError("reduction is unknown: the model's plan was made by hand")
        return self.reduction

    @property
    def image_size(self) -> ImageSize:
        """Pixels a side, or (height, width)."""
        return self.config.image_size

    @functools.cached_property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and statistics, {"params": .., ..}, with recovered values."""
        return self._variables_with_recovery(self.model)

    def _variables_with_recovery(self, model):
        if self.recovery is None:
            return self.dense_variables
        return self.recovery.variables_for(model, self.dense_variables)

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change with the weights and with any recovered value."""
        if self.recovery is None:
            return variables_digest(self.variables)[:16]
        dense_params = self.dense_variables["params"]
        learned_values = self.recovery.collect_digested_values(dense_params)
        return variables_digest([self.variables, *learned_values])[:16]

    @functools.cached_property
    def device_variables(self) -> Mapping[str, Any]:
        """`variables` on JAX's default device, copied once at the first access."""
        # Programs for images on another device copy them there.
        for array in jax.tree.leaves(self.variables):
            if isinstance(array, np.ndarray):  # a later change would not reach the copy
                array.setflags(write=False)
        with jax.ensure_compile_time_eval():  # a tracer must not stay in the cache
            return jax.device_put(self.variables)

    @property
    def gmacs(self) -> float:
        """Multiply-adds per image, in 10^9."""
        return model_macs(self.model) / 1e9

    @property
    def label(self) -> str:
        """The reduction in a few words, for messages."""
        if self.reduction is None:
            return "a reduction without a name"
        label = str(self.reduction)
        if self.untrained_kinds:
            label += f" (untrained {' and '.join(self.untrained_kinds)})"
        return f"{label} (recovered)" if self.recovered_variant else label

    @property
    def typed_reduction(self) -> str:
        """`label`, or the cost that was typed and replaced by counts."""
        return (self.reduction and self.reduction.typed) or self.label

    @property
    def recovered_variant(self) -> RecoveredVariant | None:
        """The recovered variant in use; None: the model has its dense parameters."""
        if self.recovery is None:
            return None
        variant = self.recovery.variant_for(self.model)
        return variant if variant and variant.values else None

    @functools.cached_property
    def untrained_kinds(self) -> tuple[str, ...]:
        """The kinds of parts with random values: "head", "selectors", both or ()."""
        if not self.origin.untrained_digests:
            return ()
        part_kinds = set()
        for part in self.origin.untrained_parts(self.variables["params"]):
            is_selector = part.startswith(timm_tensors.SELECTOR)
            part_kinds.add("selectors" if is_selector else "head")
        return tuple(sorted(part_kinds))

    def warn_of_untrained(self) -> None:
        """Warn if any part is untrained."""
        if self.untrained_kinds:
            advice = "untrained parts were drawn from a seed; train them first"
            warnings.warn(f"{self!r}: {advice}", stacklevel=3)  # names `load`'s caller

    def with_variables(self, variables: Mapping[str, Any]) -> Self:
        """The same model with new variables, for example trained further."""
        origin = self.origin
        if origin.positions is not None:  # the new variables' have the model's size
            origin = dataclasses.replace(origin, image_size=None, positions=None)
        # Recovered values were learned for the old variables.
        changes = {"dense_variables": variables, "recovery": None, "origin": origin}
        return dataclasses.replace(self, **changes)

    def variables_for(
        self, model: ViT, fresh_parts: Iterable[str] = (), seed: int = 0
    ) -> Mapping[str, Any]:
        """Convert these weights to another model's variables.

        model: a ViT of equal sizes, with any reduction and image size
        fresh_parts: names of parts to draw from the seed, such as "head" or "reducer"
        Raises StateDictMismatch if the weights do not fit.
        """
        tensors = timm_tensors.to_timm(self._variables_with_recovery(model))
        tensors |= self.selectors
        # These weights' own resizing code is used: the model may name another.
        if "pos_embed" not in fresh_parts:
            config = model.config.with_arch(resize=self.config.arch.resize)
            tensors = resize_positions.fit_positions(tensors, config, self.image_size)
        variables, _ = timm_tensors.make_own_variables(
            model, tensors, self.origin.title, fresh_parts, seed
        )
        return variables

    def with_reduction(self, reduction: ReductionLike, seed: int | None = None) -> Self:
        """The same weights with another reduction, or with none.

        reduction: 0.5, a share of the MACs, for the recommended method; a text, "tome"
            or "tome:r=8"; None or "none" for the dense model
        seed: draws missing selectors; None: a missing selector raises InputError
        Raises InputError for a reduction that does not fit the model.
        """
        requested_reduction = Reduction.read(reduction)
        model = self.reduced_model(requested_reduction)
        log_reduction(requested_reduction, model)
        return self.with_model(model, seed)

    def at_size(self, image_size: ImageSize) -> Self:
        """The same weights at another image size, with resized position embeddings.

        image_size: pixels a side, or (height, width), multiples of the patch size
        Raises InputError for a size that does not fit patches or reduction.
        """
        dense_model = self.model.clone(config=self.config.at_size(image_size))
        return self.with_model(with_plan(dense_model, self.known_reduction()))

    def with_preprocessing(self, **fields: Any) -> Self:
        """The same model with changed Preprocessing fields, such as crop=1.0.

        Raises InputError for a new image_size; use `at_size`.
        """
        config = self.config.with_preprocessing(**fields)
        if image_sides(config.image_size) != image_sides(self.image_size):
            raise InputError(f"image_size is {config.image_size}; at_size changes it")
        return dataclasses.replace(self, model=self.model.clone(config=config))

    def with_default_execution(self, dtype: str | None = "float32") -> Self:
        """The same model with default execution, except dtype and attention kernel."""
        dtype = dtype or self.model.execution.dtype.name  # None: unchanged
        execution = make_execution(self.config, dtype, self.model.execution.attention)
        return dataclasses.replace(self, model=self.model.clone(execution=execution))

    def reduced_model(self, reduction: ReductionLike) -> ViT:
        """The ViT of `with_reduction`, without variables."""
        return with_plan(self.model, Reduction.read(reduction))

    def collect_selectors(self) -> dict[str, np.ndarray]:
        """Tensors of `selectors` and of the model's own, which are newer."""
        # The model's selectors may have been trained after `self.selectors` was set.
        params = timm_tensors.selector_params(self.dense_variables)
        newer_tensors = timm_tensors.to_timm({"params": params})
        # A block's older tensors all go: another selector may have other names. The
        # block's number follows "reducer.".
        newer_blocks = {name.split(".")[1] for name in newer_tensors}
        tensors = {}
        for name, tensor in self.selectors.items():
            if name.split(".")[1] not in newer_blocks:
                tensors[name] = tensor
        return tensors | newer_tensors

    def with_model(self, model: ViT, seed: int | None = None) -> Self:
        """The same weights in another ViT, with resized position embeddings.

        Selectors learned for any reduction so far are used again.

        model: a ViT of equal sizes and parts, with any reduction and image size
        seed: draws missing selectors; None: a missing selector raises InputError
        """
        params, origin = self._resize_positions(model.config)
        # Selectors drawn from a seed are not worth keeping.
        selectors = self.selectors
        if "selectors" not in self.untrained_kinds:
            selectors = self.collect_selectors()
        # The new model's may be in other blocks, so `selectors` replace this model's.
        former_selectors = timm_tensors.selector_params(self.dense_variables)
        dense_params = {**params}
        for part in former_selectors:
            del dense_params[part]
        parts_to_draw = ()
        if seed is not None:
            parts_to_draw = timm_tensors.list_missing_selectors(model, selectors)
        variables, drawn_parts = timm_tensors.make_own_variables(
            model,
            selectors,
            origin.title,
            parts_to_draw,
            seed or 0,  # unused for None, when no part is drawn
            known_variables={**self.dense_variables, "params": dense_params},
        )
        pretrained = dataclasses.replace(
            self,
            model=model,
            dense_variables=variables,
            selectors=selectors,
            origin=origin.with_untrained(variables["params"], drawn_parts),
        )
        if self.recovery is not None:
            self.recovery.log_unrecovered(model, pretrained.label)
        return pretrained

    def _resize_positions(self, config):
        """Fit position embeddings to a config's image size: (parameters, Origin)."""
        params = self.dense_variables["params"]
        origin = self.origin
        if image_sides(config.image_size) == image_sides(self.image_size):
            return params, origin
        trained_size = origin.image_size or self.image_size
        if origin.positions is not None:  # never resized twice
            params = {**params, "pos_embed": origin.positions}
        origin = dataclasses.replace(
            origin, image_size=trained_size, positions=params.get("pos_embed")
        )
        return resize_positions.fit_positions(params, config, trained_size), origin


def check_loaded(vit: object) -> None:
    """Raise InputError unless an argument `vit` is a Pretrained (not a path)."""
    if not isinstance(vit, Pretrained):
        raise InputError(
            f"vit is {vit!r}; imagepiece_jax.load makes a model of weights"
        )
