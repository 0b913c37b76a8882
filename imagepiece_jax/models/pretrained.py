"""A trained model as one object: the network, its variables, and their metadata."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.warning import warn
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.normalize import native
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import reduction_plan, resize_positions, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.create import execution_of
from imagepiece_jax.models.problem_type import SINGLE_LABEL, probabilities
from imagepiece_jax.models.recovery_record import (
    RecoveredVariant,
    Recovery,
    flat_params,
    with_numbers,
)
from imagepiece_jax.models.variables import digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE, Reduction, ReductionLike


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WeightsSource:
    """Where weights are from; of a model of one's own it is empty."""

    path: pathlib.Path | None = None  # on this machine
    kind: str = "model"  # "weights file", "folder" or "run"
    name: str = ""  # the last part of the path; of the hub's weights OWNER/NAME
    license: str | None = None
    # size of the images that the positions were trained for; None: the model's
    image_size: int | tuple[int, int] | None = None
    # the reduction that the weights were trained with; None: nothing says it
    reduction: Reduction | None = None
    checkpoint: str | None = None  # of a run, "best" or "latest"; of a file, a key
    averaged: bool = False  # whether the weights are averages over steps
    run: Mapping[str, Any] | None = None  # the config of a run
    # digests of the parts that were drawn, not learned, when they were drawn
    untrained: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of a run; 0 of other weights."""
        return self.run["seed"] if self.run else 0

    @property
    def place(self) -> str:
        """The weights, as sentences call them: "run runs/a"."""
        if self.path is None:
            return f"the {self.kind}"
        path = self.path
        if "/" in self.name:
            path = f"hf://{self.name}"
        return f"{self.kind} {path}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """A model, its variables, and their metadata, as `load` returns it.

        vit = imagepiece_jax.load("deit_tiny_patch16_224.pth")
        logits = vit.model.apply(vit.variables, images).logits

    Raises InputError for metadata that do not fit the model.
    """

    model: ViT  # the network
    # its parameters and statistics, {"params": .., ..}, without what `recover` learned.
    # Do not change them in place: they are copied to a device once, and NumPy's arrays
    # are then read-only. `with_variables` takes others
    dense_variables: Mapping[str, Any]
    # a name, or None, for each class; None if the classes have no names
    class_names: tuple[str | None, ...] | None = None
    # what `recover` learned: numbers that reduced forms take in place of the dense
    # model's
    recovery: Recovery | None = None
    source: WeightsSource = dataclasses.field(default_factory=WeightsSource)
    # learned selectors of other reductions than the present one, by timm's names
    selectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        put = functools.partial(object.__setattr__, self)
        if self.class_names is not None:
            names = checked_names(self.class_names, self.config.num_classes)
            put("class_names", names)
        leaves = jax.tree.leaves(self.dense_variables)
        if any(native(leaf) is not leaf for leaf in leaves):
            put("dense_variables", jax.tree.map(native, self.dense_variables))

    def __repr__(self):
        # Short: the model's own goes on for pages.
        return (
            f"<Pretrained {self.config.name or 'ViT'}: {self.label}, images of "
            f"{size_text(self.image_size)}, {self.config.num_classes} classes, "
            f"{self.gmacs:.3g} GMACs>"
        )

    @property
    def config(self) -> ViTConfig:
        """What the model is."""
        return self.model.config

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images are resized and cropped."""
        return self.config.preprocessing

    @property
    def reduction(self) -> Reduction | None:
        """The reduction that made the model's plan; None: someone made it by hand.

        It has prop_attn where it differs from the default of method and model.
        """
        reduction = self.model.reduction or DENSE
        has_steps = any(layer.step for layer in self.model.plan)
        return None if has_steps and reduction == DENSE else reduction

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels a side, or (height, width)."""
        return self.config.image_size

    @functools.cached_property
    def variables(self) -> Mapping[str, Any]:
        """Parameters and statistics of the model, {"params": .., ..}.

        They are `dense_variables`, with the numbers of the `recovered` form.
        """
        return self._variables_of(self.model)

    def _variables_of(self, model):
        """The variables of a ViT, of which no other part differs from the model's."""
        cost = self.recovery and self.recovery.of(model)
        if cost is None:
            return self.dense_variables
        params = with_numbers(self.dense_variables["params"], cost.numbers)
        return {**self.dense_variables, "params": params}

    @functools.cached_property
    def digest(self) -> str:
        """16 letters that depend on the weights and on all recovered numbers."""
        if self.recovery is None:
            return digest(self.variables)[:16]
        leaves = flat_params(self.dense_variables["params"])
        replaced = {}
        parts = [self.variables, replaced]
        for cost in self.recovery.variants:
            replaced |= {path: leaves[path] for path in cost.numbers}
            parts += [cost.numbers, np.frombuffer(cost.form.encode(), np.uint8)]
        return digest(parts)[:16]

    @functools.cached_property
    def device_variables(self) -> Mapping[str, Any]:
        """`variables` on JAX's default device, as they are at the first access.

        A program copies them to the devices of images that are on others.
        """
        for array in jax.tree.leaves(self.variables):
            if isinstance(array, np.ndarray):  # a change would reach no copy
                array.setflags(write=False)
        with jax.ensure_compile_time_eval():  # a tracer must not stay in the cache
            return jax.device_put(self.variables)

    @property
    def gmacs(self) -> float:
        """Multiplications and additions of one image, in 10^9 pairs."""
        return model_macs(self.model) / 1e9

    @property
    def has_projection(self) -> bool:
        """Whether the head makes vectors: no class names, and no bias, as CLIP's.

        A recovery trains a bias of 0, too, so the dense model's counts.
        """
        single = self.config.problem_type == SINGLE_LABEL
        if not self.config.num_classes or self.class_names is not None or not single:
            return False
        head = self.dense_variables["params"].get("head", {})
        return not np.any(head.get("bias", 0))

    @property
    def label(self) -> str:
        """The reduction in a few words."""
        if self.reduction is None:
            return "a reduction without a name"
        label = str(self.reduction)
        if kinds := " and ".join(self.untrained_kinds):
            label += f" (untrained {kinds})"
        return f"{label} (recovered)" if self.recovered else label

    @property
    def recovered(self) -> RecoveredVariant | None:
        """The cost whose numbers the model has; None if it has the dense model's."""
        if self.recovery is None:
            return None
        cost = self.recovery.of(self.model)
        return cost if cost and cost.numbers else None

    def with_variables(self, variables: Mapping[str, Any]) -> "Pretrained":
        """The same model with other variables, such as trained ones.

        What `recover` learned was for the former, and is left out.
        """
        return dataclasses.replace(self, dense_variables=variables, recovery=None)

    def variables_for(
        self, model: ViT, fresh: Iterable[str] = (), seed: int = 0
    ) -> Mapping[str, Any]:
        """Variables of another model with the values of these weights.

        model: a ViT of the same sizes, with any reduction and image size
        fresh: names of parts that are drawn, for example "head" or "reducer"
        Raises StateDictMismatch if the weights do not fit.
        """
        tensors = timm_tensors.to_timm(self._variables_of(model))
        tensors |= self.selectors
        if "pos_embed" not in fresh:  # by the code that the positions were trained for
            config = model.config.with_arch(resize=self.config.arch.resize)
            tensors = resize_positions.fit(tensors, config, self.image_size)
        place = self.source.place
        tensors, fresh = timm_tensors.own_selectors(model, tensors, place, fresh)
        variables, _ = timm_tensors.model_variables(
            model, tensors, place, fresh=fresh, seed=seed
        )
        return variables

    def say_dense_numbers(self):
        """Log that this reduced form was not recovered, if other forms were.

        Numbers belong to the form that learned them.
        """
        is_reduced = any(layer.counts for layer in self.model.plan)
        if self.recovery is None or not is_reduced or not parallel.is_main():
            return
        if self.recovery.of(self.model) is None:
            log.info(
                f"{self.label}: not recovered, so it has the dense model's numbers"
            )

    @functools.cached_property
    def untrained_parts(self) -> tuple[str, ...]:
        """Names of parts, for example "head", that still hold drawn numbers."""
        params = self.variables["params"]
        drawn = self.source.untrained.items()
        return tuple(k for k, v in drawn if k in params and digest(params[k]) == v)

    @property
    def untrained_kinds(self) -> list[str]:
        """Of "head" and "selectors" those that are untrained."""
        kinds = set()
        for part in self.untrained_parts:
            is_selector = part.startswith(timm_tensors.SELECTOR)
            kinds.add("selectors" if is_selector else "head")
        return sorted(kinds)

    @property
    def untrained(self) -> bool:
        """Whether some parts were drawn and not trained since then."""
        return bool(self.untrained_parts)

    def warn_of_untrained(self):
        """Warn of untrained parts."""
        if self.untrained:
            warn(f"{self!r}: what is untrained was drawn from a seed; train it first")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, as the head was trained. [.., C] -> [.., C].

        A softmax, or for several labels an image a sigmoid of each logit.
        Raises InputError for a head of numbers (problem_type "regression").
        """
        return probabilities(logits, self.config.problem_type)

    def with_reduction(
        self, reduction: ReductionLike, seed: int | None = None
    ) -> "Pretrained":
        """The same weights with another reduction, or with none.

        reduction: 0.5, a share of the MACs, for the recommended method; a text, "tome"
            or "tome:r=8"; None or "none" for the dense model
        seed: of selectors that the weights lack; None: they are refused
        Raises InputError for a reduction that does not fit the model.
        """
        reduction = Reduction.read(reduction)
        model = self.model_with(reduction)
        reduction_plan.print_reduction(reduction, model)
        return self.with_model(model, seed)

    def at_size(self, image_size: int | tuple[int, int]) -> "Pretrained":
        """The same weights for images of another size; positions are resized.

        image_size: pixels a side, or (height, width), multiples of the patch size
        Raises InputError for other sizes, for a reduction that does not fit, and if
            positions are resized already.
        """
        trained_size = self.source.image_size or self.image_size
        resized = sides(trained_size) != sides(self.image_size)
        if resized and self.config.arch.positions:
            raise InputError(
                f"positions are resized from {size_text(trained_size)} already; take "
                "another size from the model as it was loaded"
            )
        dense = self.model.clone(config=self.config.at_size(image_size))
        return self.with_model(reduction_plan.with_plan(dense, self.reduction))

    def with_preprocessing(self, **fields: Any) -> "Pretrained":
        """The same model with other fields of its Preprocessing, such as crop=1.0.

        Raises InputError for another image_size, which `at_size` changes.
        """
        config = self.config.with_preprocessing(**fields)
        if sides(config.image_size) != sides(self.image_size):
            raise InputError(
                f"image_size is {config.image_size}, but the model is for "
                f"{size_text(self.image_size)}; at_size changes it"
            )
        return dataclasses.replace(self, model=self.model.clone(config=config))

    def analyzed(self, dtype: str | None = "float32") -> "Pretrained":
        """The same model in `dtype`, without drop path.

        dtype: of the layers; None: the model's
        """
        own = self.model.execution
        execution = execution_of(self.config, dtype or own.dtype.name, own.attention)
        return dataclasses.replace(self, model=self.model.clone(execution=execution))

    def model_with(self, reduction: ReductionLike) -> ViT:
        """The model of `with_reduction`, without its variables."""
        return reduction_plan.with_plan(self.model, Reduction.read(reduction))

    def gmacs_with(self, reduction: ReductionLike) -> float:
        """`gmacs` of `with_reduction`."""
        return model_macs(self.model_with(reduction)) / 1e9

    def use(self, reduction: ReductionLike) -> str:
        """What figures with `reduction` are called: "as trained" or "off-the-shelf"."""
        same = self.model_with(reduction).reduction == self.reduction
        return "as trained" if same else "off-the-shelf"

    def differences_from_training(self) -> list[str]:
        """Reduction and image size, in words, if they differ from training's."""
        source = self.source
        lines = []
        if source.reduction is not None and not self.recovery:
            before = self.model_with(source.reduction).reduction
            if before != self.reduction:
                lines.append(f"reduction {self.reduction} (trained with {before})")
        trained_size = source.image_size or self.image_size
        if sides(self.image_size) != sides(trained_size):
            ours = size_text(self.image_size)
            lines.append(f"size {ours} (trained with {size_text(trained_size)})")
        return lines

    @property
    def _learned(self):
        """Learned selectors of this reduction and others, tensors by timm's names."""
        if "selectors" in self.untrained_kinds:
            return self.selectors
        # Maybe trained since.
        selectors = timm_tensors.selectors_of(self.dense_variables)
        own = timm_tensors.to_timm({"params": selectors})
        return timm_tensors.merged_selectors(self.selectors, own)

    def with_model(self, model: ViT, seed: int | None = None) -> "Pretrained":
        """The same weights in another ViT of these sizes and parts.

        Selectors come from all that were learned so far, for this or another reduction.

        model: of any reduction and image size, to which positions are resized
        seed: of selectors that were never learned; None: they are refused
        """
        source = self.source
        params = {}
        for name, part in self.dense_variables["params"].items():
            if not name.startswith(timm_tensors.SELECTOR):
                params[name] = part
        if sides(model.config.image_size) != sides(self.image_size):
            trained_size = source.image_size or self.image_size
            source = dataclasses.replace(source, image_size=trained_size)
            params = resize_positions.fit(params, model.config, trained_size)
        learned = self._learned
        drawn = () if seed is None else None
        tensors, fresh = timm_tensors.own_selectors(model, learned, source.place, drawn)
        variables, drawn = timm_tensors.model_variables(
            model,
            tensors,
            source.place,
            fresh=fresh,
            seed=seed or 0,
            given={**self.dense_variables, "params": params},
        )
        untrained = {**source.untrained, **digests(variables, drawn)}
        vit = dataclasses.replace(
            self,
            model=model,
            dense_variables=variables,
            selectors=learned,
            source=dataclasses.replace(source, untrained=untrained),
        )
        vit.say_dense_numbers()
        return vit


def digests(variables: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """Digests of parts of the parameters, by name."""
    return {part: digest(variables["params"][part]) for part in parts}
