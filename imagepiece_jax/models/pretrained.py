"""Pretrained: a model, its variables and their metadata as one object."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import image_sides, size_text
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.warning import warn_caller
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.normalize import to_native_order
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import reduction_plan, resize_positions, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import make_execution
from imagepiece_jax.models.problem_type import (
    PROJECTION,
    REGRESSION,
    SINGLE_LABEL,
    probabilities,
)
from imagepiece_jax.models.recovery_record import (
    RecoveredVariant,
    Recovery,
    flat_params,
    with_values,
)
from imagepiece_jax.models.variables import variables_digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction, ReductionLike


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WeightsSource:
    """Origin of the weights; empty for a model made in memory."""

    path: pathlib.Path | None = None  # on this machine
    kind: str = "model"  # "weights file", "folder" or "run"
    name: str = ""  # last part of the path; for hub weights OWNER/NAME
    license: str | None = None
    # image size the position embeddings were trained at; None: the model's
    image_size: int | tuple[int, int] | None = None
    # reduction used in training; None: unknown
    reduction: Reduction | None = None
    checkpoint: str | None = None  # a run's "best" or "latest"; a key in a file
    averaged: bool = False  # weights averaged over training steps
    run: Mapping[str, Any] | None = None  # the run's config
    # {part: digest of its random values}. A part with another digest was trained since.
    untrained: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed; 0 without a run."""
        return self.run["seed"] if self.run else 0

    @property
    def title(self) -> str:
        """The weights' name in messages, such as "run runs/a"."""
        if self.path is None:
            return f"the {self.kind}"
        path = self.path
        if "/" in self.name:
            path = f"hf://{self.name}"
        return f"{self.kind} {path}"


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
    class_names: tuple[str | None, ...] | None = None
    # values learned by `recover`, which replace dense parameters in reduced models
    recovery: Recovery | None = None
    source: WeightsSource = dataclasses.field(default_factory=WeightsSource)
    # tensors of learned selectors by timm's names, kept for other reductions
    selectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        put = functools.partial(object.__setattr__, self)
        if self.class_names is not None:
            names = checked_names(self.class_names, self.config.num_classes)
            put("class_names", names)
        leaves = jax.tree.leaves(self.dense_variables)
        if any(to_native_order(leaf) is not leaf for leaf in leaves):
            put("dense_variables", jax.tree.map(to_native_order, self.dense_variables))

    def __repr__(self):
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
        has_steps = any(layer.step for layer in self.model.plan)
        return None if has_steps and reduction == DENSE_REDUCTION else reduction

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels a side, or (height, width)."""
        return self.config.image_size

    @functools.cached_property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and statistics, {"params": .., ..}, with recovered values."""
        return self._variables_of(self.model)

    def _variables_of(self, model):
        """`dense_variables` with the values recovered for a ViT's reduction, if any."""
        variant = self.recovery and self.recovery.of(model)
        if variant is None:
            return self.dense_variables
        params = with_values(self.dense_variables["params"], variant.values)
        return {**self.dense_variables, "params": params}

    @functools.cached_property
    def digest(self) -> str:
        """16 hex digits that change with the weights and with any recovered value."""
        if self.recovery is None:
            return variables_digest(self.variables)[:16]
        leaves = flat_params(self.dense_variables["params"])
        replaced = {}
        parts = [self.variables, replaced]
        for variant in self.recovery.variants:
            replaced |= {path: leaves[path] for path in variant.values}
            parts += [variant.values, np.frombuffer(variant.name.encode(), np.uint8)]
        return variables_digest(parts)[:16]

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
    def has_projection(self) -> bool:
        """Whether the head is a projection, as in CLIP."""
        is_projection = self.config.problem_type == PROJECTION
        return is_projection and self.config.num_classes > 0

    @property
    def is_classifier(self) -> bool:
        """Whether the head has classes: neither missing nor a projection."""
        return self.config.num_classes > 0 and not self.has_projection

    @property
    def is_single_label(self) -> bool:
        """Whether the head gives one class per image, so that images have labels."""
        return self.is_classifier and self.config.problem_type == SINGLE_LABEL

    @property
    def has_classes(self) -> bool | None:
        """Whether the outputs are logits of classes; None: a regression's numbers."""
        if self.config.problem_type == REGRESSION and self.config.num_classes:
            return None
        return self.is_classifier

    @property
    def label(self) -> str:
        """The reduction in a few words, for messages."""
        if self.reduction is None:
            return "a reduction without a name"
        label = str(self.reduction)
        if kinds := " and ".join(self.untrained_kinds):
            label += f" (untrained {kinds})"
        return f"{label} (recovered)" if self.recovered else label

    @property
    def recovered(self) -> RecoveredVariant | None:
        """The recovered variant in use; None: the model has its dense parameters."""
        if self.recovery is None:
            return None
        variant = self.recovery.of(self.model)
        return variant if variant and variant.values else None

    def with_variables(self, variables: Mapping[str, Any]) -> "Pretrained":
        """The same model with new variables, for example trained further."""
        # Recovered values were learned for the old variables, so they are dropped.
        return dataclasses.replace(self, dense_variables=variables, recovery=None)

    def variables_for(
        self, model: ViT, fresh: Iterable[str] = (), seed: int = 0
    ) -> Mapping[str, Any]:
        """Convert these weights to another model's variables.

        model: a ViT of equal sizes, with any reduction and image size
        fresh: names of parts to draw from the seed, such as "head" or "reducer"
        Raises StateDictMismatch if the weights do not fit.
        """
        tensors = timm_tensors.to_timm(self._variables_of(model))
        tensors |= self.selectors
        # These weights' own resizing code is used: the model may name another.
        if "pos_embed" not in fresh:
            config = model.config.with_arch(resize=self.config.arch.resize)
            tensors = resize_positions.fit_positions(tensors, config, self.image_size)
        origin = self.source.title
        tensors, fresh = timm_tensors.own_selectors(model, tensors, origin, fresh)
        variables, _ = timm_tensors.model_variables(
            model, tensors, origin, fresh=fresh, seed=seed
        )
        return variables

    def say_dense_values(self):
        """Log that this reduced model was not recovered, if another variant was."""
        # Recovered values fit only their own variant.
        is_reduced = any(layer.counts for layer in self.model.plan)
        if self.recovery is None or not is_reduced or not parallel.is_main():
            return
        if self.recovery.of(self.model) is None:
            log.info(f"{self.label}: not recovered, so it has the dense model's values")

    @functools.cached_property
    def untrained_parts(self) -> tuple[str, ...]:
        """Names of untrained parts, such as "head"."""
        drawn = self.source.untrained.items()
        params = self.variables["params"] if drawn else {}
        return tuple(
            k for k, v in drawn if k in params and variables_digest(params[k]) == v
        )

    @property
    def untrained_kinds(self) -> list[str]:
        """The untrained kinds among "head" and "selectors", sorted."""
        kinds = set()
        for part in self.untrained_parts:
            is_selector = part.startswith(timm_tensors.SELECTOR)
            kinds.add("selectors" if is_selector else "head")
        return sorted(kinds)

    @property
    def untrained(self) -> bool:
        """Whether any part still has random values."""
        return bool(self.untrained_parts)

    def warn_of_untrained(self):
        """Warn if any part is untrained."""
        if self.untrained:
            warn_caller(
                f"{self!r}: untrained parts were drawn from a seed; train them first"
            )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Class probabilities for the head's problem type. [.., C] -> [.., C].

        A softmax, or sigmoids for multi-label heads and for a single class.
        Raises InputError for problem_type "regression".
        """
        return probabilities(logits, self.config.problem_type)

    def with_reduction(
        self, reduction: ReductionLike, seed: int | None = None
    ) -> "Pretrained":
        """The same weights with another reduction, or with none.

        reduction: 0.5, a share of the MACs, for the recommended method; a text, "tome"
            or "tome:r=8"; None or "none" for the dense model
        seed: draws missing selectors; None: a missing selector raises InputError
        Raises InputError for a reduction that does not fit the model.
        """
        reduction = Reduction.read(reduction)
        model = self.model_with(reduction)
        reduction_plan.print_reduction(reduction, model)
        return self.with_model(model, seed)

    def at_size(self, image_size: int | tuple[int, int]) -> "Pretrained":
        """The same weights at another image size, with resized position embeddings.

        image_size: pixels a side, or (height, width), multiples of the patch size
        Raises InputError for a size that does not fit patches or reduction, and for
            position embeddings that are already resized.
        """
        trained_size = self.source.image_size or self.image_size
        resized = image_sides(trained_size) != image_sides(self.image_size)
        if resized and self.config.arch.positions:
            raise InputError(
                f"positions are resized from {size_text(trained_size)} already; resize "
                "the model as it was loaded"
            )
        dense = self.model.clone(config=self.config.at_size(image_size))
        return self.with_model(reduction_plan.with_plan(dense, self.reduction))

    def with_preprocessing(self, **fields: Any) -> "Pretrained":
        """The same model with changed Preprocessing fields, such as crop=1.0.

        Raises InputError for a new image_size; use `at_size`.
        """
        config = self.config.with_preprocessing(**fields)
        if image_sides(config.image_size) != image_sides(self.image_size):
            raise InputError(
                f"image_size is {config.image_size}, but the model is for "
                f"{size_text(self.image_size)}; at_size changes it"
            )
        return dataclasses.replace(self, model=self.model.clone(config=config))

    def analyzed(self, dtype: str | None = "float32") -> "Pretrained":
        """The same model with default execution, except dtype and attention kernel."""
        model_execution = self.model.execution
        execution = make_execution(
            self.config, dtype or model_execution.dtype.name, model_execution.attention
        )
        return dataclasses.replace(self, model=self.model.clone(execution=execution))

    def model_with(self, reduction: ReductionLike) -> ViT:
        """The ViT of `with_reduction`, without variables."""
        return reduction_plan.with_plan(self.model, Reduction.read(reduction))

    def gmacs_with(self, reduction: ReductionLike) -> float:
        """`gmacs` with another reduction."""
        return model_macs(self.model_with(reduction)) / 1e9

    def use(self, reduction: ReductionLike) -> str:
        """Name results with `reduction`: "as trained" or "off-the-shelf"."""
        same = self.model_with(reduction).reduction == self.reduction
        return "as trained" if same else "off-the-shelf"

    def differences_from_training(self) -> list[str]:
        """Describe the reduction and image size if they differ from training's."""
        source = self.source
        lines = []
        if source.reduction is not None and not self.recovery:
            before = self.model_with(source.reduction).reduction
            if before != self.reduction:
                lines.append(f"reduction {self.reduction} (trained with {before})")
        trained_size = source.image_size or self.image_size
        if image_sides(self.image_size) != image_sides(trained_size):
            size = size_text(self.image_size)
            lines.append(f"size {size} (trained with {size_text(trained_size)})")
        return lines

    @property
    def _learned(self):
        """Tensors of all learned selectors, for any reduction, by timm's names."""
        if "selectors" in self.untrained_kinds:
            return self.selectors
        # The model's selectors may have been trained after `self.selectors` was set.
        selectors = timm_tensors.selector_params(self.dense_variables)
        tensors = timm_tensors.to_timm({"params": selectors})
        return timm_tensors.replace_selectors(self.selectors, tensors)

    def with_model(self, model: ViT, seed: int | None = None) -> "Pretrained":
        """The same weights in another ViT, with resized position embeddings.

        Selectors learned for any reduction so far are used again.

        model: a ViT of equal sizes and parts, with any reduction and image size
        seed: draws missing selectors; None: a missing selector raises InputError
        """
        source = self.source
        params = {}
        for name, part in self.dense_variables["params"].items():
            if not name.startswith(timm_tensors.SELECTOR):
                params[name] = part
        if image_sides(model.config.image_size) != image_sides(self.image_size):
            trained_size = source.image_size or self.image_size
            source = dataclasses.replace(source, image_size=trained_size)
            params = resize_positions.fit_positions(params, model.config, trained_size)
        learned = self._learned
        drawn = () if seed is None else None
        tensors, fresh = timm_tensors.own_selectors(model, learned, source.title, drawn)
        variables, drawn = timm_tensors.model_variables(
            model,
            tensors,
            source.title,
            fresh=fresh,
            seed=seed or 0,
            known={**self.dense_variables, "params": params},
        )
        untrained = {**source.untrained, **digests(variables, drawn)}
        vit = dataclasses.replace(
            self,
            model=model,
            dense_variables=variables,
            selectors=learned,
            source=dataclasses.replace(source, untrained=untrained),
        )
        vit.say_dense_values()
        return vit


def digests(variables: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """{part: digest of its parameters}."""
    return {part: variables_digest(variables["params"][part]) for part in parts}
