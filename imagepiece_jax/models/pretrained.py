"""A trained model as one object: the network, its variables, and their metadata."""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import device_copies, parallel
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import patch_grid, sides, size_text
from imagepiece_jax.common.warning import warn
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import (
    reduction_plan,
    registry,
    resize_positions,
    timm_tensors,
)
from imagepiece_jax.models.attention import resolve_backend
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.problem_type import PROBLEMS, SINGLE_LABEL, probabilities
from imagepiece_jax.models.recovery_record import (
    RecoveredCost,
    Recovery,
    with_numbers,
)
from imagepiece_jax.models.spec import ModelSpec
from imagepiece_jax.models.variables import (
    digest,
    variable_shapes,
)
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE, Reduction, ReductionLike


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WeightsSource:
    """Weights at a path: where they are, and how they were trained.

    Names and config files say it before a tensor is read. Tensors complete `spec`, of
    which a Pretrained has all fields.
    """

    path: pathlib.Path  # on this machine
    place: str  # the path in sentences: "run runs/a"
    name: str  # the path in short; of a hub's weights OWNER/NAME
    # in a folder, what says which model its weights are; None: they are one file
    config_file: pathlib.Path | None = None
    # of a run, "best" or "latest"; else which of several models in a file
    checkpoint: str | None = None
    averaged: bool = False  # whether the weights are averages over steps
    # of the model that was trained; positions are resized from its image_size
    spec: ModelSpec
    # sizes in a config.json, which tensors must have too
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # that they were trained with; None: a file does not say
    reduction: Reduction | None = None
    # fields of a Preprocessing but the size
    crop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # timm's tag that has this crop, where the name stands for weights of several crops
    chosen_tag: str | None = None
    normalized: bool = True  # whether weights or caller say mean and std
    class_names: Sequence[str | None] | None = None  # by label
    license: str | None = None  # by timm's config.json, as others are not read
    problem_type: str = SINGLE_LABEL  # what the logits mean
    untrained: tuple[str, ...] = ()  # parts that were drawn, not learned
    # what `recover` learned for reduced forms, without numbers, which files have
    recovery: Recovery | None = None
    saved: bool = False  # whether `save` of this package wrote the folder
    run: Mapping[str, Any] | None = None  # a run's config
    seed: int = 0  # of the training

    def __str__(self):
        return self.place

    @property
    def is_folder(self) -> bool:
        """Whether the weights are in a published folder, or that of a run."""
        return self.config_file is not None

    @property
    def says_crop(self) -> bool:
        """Whether files, or the name by `infer.with_crop`, say how to crop images."""
        return bool(self.crop) or self.saved or self.run is not None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pretrained:
    """A model, its variables, and their metadata, as `load` returns it.

        vit = imagepiece_jax.load("deit_tiny_patch16_224.pth")
        logits = vit.model.apply(vit.variables, images).logits

    Raises InputError for wrong types, and for metadata that do not fit the model.
    """

    model: ViT  # the network
    # parameters and statistics, {"params": .., ..}. They are not to be changed: what
    # computes with them copies them to its device once, and makes NumPy's read-only
    variables: Mapping[str, Any]
    # of its images; None: the square that has as many patches as the model, cropped as
    # for weights of its name
    preprocessing: Preprocessing | None = None
    # a name, or None, for each class; None: there are no names
    class_names: tuple[str | None, ...] | None = None
    # what its logits mean, by transformers' names; runs train for a single label
    problem_type: str = SINGLE_LABEL
    name: str | None = None  # timm's, of a public model
    spec: ModelSpec | None = None  # that made it; None: a model of one's own
    source: WeightsSource | None = None  # of its weights; None: likewise
    # digests of the parts that were drawn, not learned, when they were drawn
    drawn: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # learned selectors of other reductions than the present one, by timm's names
    selectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # position embeddings and their size before they were resized; None: they were not
    trained_positions: resize_positions.Trained | None = None
    # what `recover` learned for reduced forms, which take its numbers in place of the
    # dense model's; None where nothing was, and where the variables have been replaced
    recovery: Recovery | None = None

    def __post_init__(self):
        model = self.model
        variables = self.variables
        params = isinstance(variables, Mapping) and "params" in variables
        if not isinstance(model, ViT) or not params:
            raise InputError(
                f"model is a {type(model).__name__} and variables a "
                f"{type(variables).__name__}; they must be a ViT, as create_model "
                'makes it, and a dict with "params"'
            )
        put = functools.partial(object.__setattr__, self)
        if self.class_names is not None:
            put("class_names", checked_names(self.class_names, model.num_classes))
        check_choice("problem_type", self.problem_type, PROBLEMS)
        images = self.preprocessing
        if images is None:
            crop = registry.published_crop(self.name)
            put("preprocessing", Preprocessing(_square(model), **crop))
            if tag := registry.chosen_tag(self.name):
                warn(
                    f"{self.name!r} stands for weights of several crops: that of {tag} "
                    "is taken, as in timm; a name with a tag, or preprocessing=.., "
                    "says which"
                )
        # Here, since whatever changes the model or its images makes a Pretrained.
        params = variables["params"]
        if self.recovery and not self.recovery.describes(params):
            put("recovery", None)
        fitted = self.fitted(params, model, self.image_size)
        if fitted is not params:
            put("variables", {**variables, "params": fitted})

    def __repr__(self):
        # Short: the model's own goes on for pages.
        return (
            f"<Pretrained {self.name or 'ViT'}: {self.label}, images of "
            f"{size_text(self.image_size)}, {self.model.num_classes} classes, "
            f"{self.gmacs:.3g} GMACs>"
        )

    @property
    def attention(self) -> str:
        """What is to compute attention, as `load` takes it; else "auto"."""
        requested = self.spec.attention if self.spec else None
        return requested or "auto"

    @property
    def reduction(self) -> Reduction | None:
        """The reduction that made the model's plan; None: someone made it by hand.

        It has prop_attn where it differs from the default of method and model.
        """
        reduction = self.model.reduction or DENSE
        has_steps = any(layer.step for layer in self.model.plan)
        return None if has_steps and reduction == DENSE else reduction

    @property
    def _grid(self):
        return patch_grid(self.image_size, self.model.patch_size, cut=True)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels a side, or (height, width)."""
        return self.preprocessing.image_size

    @property
    def place(self) -> str:
        """The weights, as sentences call them."""
        return "the model" if self.source is None else self.source.place

    @functools.cached_property
    def digest(self) -> str:
        """16 letters that differ between weights, and between what they recover."""
        if self.recovery is None:
            return digest(self.variables)[:16]
        parts = [self.variables, self.recovery.dense]
        for cost in self.recovery.costs:
            parts += [cost.numbers, np.frombuffer(cost.form.encode(), np.uint8)]
        return digest(parts)[:16]

    def on_device(self, beside: Any = None) -> Mapping[str, Any]:
        """`variables` on the device, where they are copied once.

        beside: an array that a program gets together with them, on whose devices they
            are; None, and an array of NumPy: JAX's default device
        """
        return self._copies.of(self.variables, device_copies.sharding_beside(beside))

    @functools.cached_property
    def _copies(self):
        return device_copies.DeviceCopies()

    @property
    def gmacs(self) -> float:
        """Multiplications and additions of one image, in 10^9 pairs."""
        return model_macs(self.model, self.image_size) / 1e9

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
    def recovered(self) -> RecoveredCost | None:
        """The cost whose numbers it has; None: those of the dense model.

        None, too, where nothing was better than these.
        """
        return self._recovered(self.model)

    def recovered_with(self, reduction: ReductionLike) -> RecoveredCost | None:
        """`recovered` of `with_reduction`."""
        return self._recovered(self.model_with(reduction))

    def _recovered(self, model):
        if self.recovery is None:
            return None
        cost = self.recovery.of(model, self.image_size)
        return cost if cost and cost.numbers else None

    @property
    def dense_variables(self) -> Mapping[str, Any]:
        """`variables`, with the dense model's numbers in place of recovered ones."""
        if self.recovery is None:
            return self.variables
        params = with_numbers(self.variables["params"], self.recovery.dense)
        return {**self.variables, "params": params}

    def fitted(
        self, params: Mapping[str, Any], model: ViT, image_size: int | tuple[int, int]
    ) -> Mapping[str, Any]:
        """Parameters with the numbers of `recovery` that a model takes.

        params: those of this Pretrained, for images of `image_size`
        model: a ViT that they fit, with any plan
        """
        recovery = self.recovery
        if recovery is None:
            return params
        cost = recovery.of(model, image_size)
        numbers = dict(recovery.dense)
        if cost is not None:
            numbers |= cost.numbers
        params = with_numbers(params, numbers)
        if "pos_embed" in numbers:
            learned_size = recovery.costs[0].image_size
            params = resize_positions.fit(params, model, image_size, learned_size)
        return params

    def with_recovery(self, recovery: Recovery) -> "Pretrained":
        """The same model with another record of recoveries, and its numbers."""
        dense = self.dense_variables
        return dataclasses.replace(self, variables=dense, recovery=recovery)

    def say_dense_numbers(self):
        """Print that nothing was recovered for a reduced form, where it was for others.

        Numbers belong to the form that learned them.
        """
        is_reduced = any(layer.counts for layer in self.model.plan)
        if self.recovery is None or not is_reduced or not parallel.is_main():
            return
        if self.recovery.of(self.model, self.image_size) is None:
            text = f"{self.label}: not recovered, so it has the dense model's numbers"
            print(text, file=sys.stderr, flush=True)

    @functools.cached_property
    def untrained_parts(self) -> tuple[str, ...]:
        """Names of parts, such as "head", that hold the numbers that were drawn.

        Parts whose variables were replaced since then are trained.
        """
        params = self.variables["params"]
        drawn = self.drawn.items()
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
        """Whether it has parts that were drawn, and that nothing has trained since."""
        return bool(self.untrained_parts)

    def warn_of_untrained(self):
        """Warn of parts whose numbers were drawn."""
        if self.untrained:
            warn(f"{self!r}: what is untrained was drawn from a seed; train it first")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities of the classes, as the head was trained. [.., C] -> [.., C].

        A softmax, or for several labels an image a sigmoid of each logit.
        Raises InputError for a head of numbers (problem_type "regression"), and for
            logits of other classes.
        """
        if logits.shape[-1:] != (self.model.num_classes,):
            raise InputError(
                f"logits has shape {logits.shape}; it must be [.., "
                f"{self.model.num_classes}], a number per class"
            )
        return probabilities(logits, self.problem_type)

    def with_reduction(
        self, reduction: ReductionLike, seed: int | None = None
    ) -> "Pretrained":
        """The same weights with another reduction, or with none.

        reduction: a share of the MACs such as 0.5, which the recommended method gets,
            or a text, "tome" or "tome:r=8"; None, as "none": the dense model, though
            `load` takes None for "as trained"
        seed: of selectors that the method learns and the weights lack
        Raises InputError for a reduction that does not fit the model, and without a
            seed for one whose selectors the weights lack.
        """
        reduction = Reduction.read(reduction)
        model = self.model_with(reduction)
        reduction_plan.print_reduction(reduction, model, self._grid)
        return self._with_model(model, self.variables["params"], seed)

    def at_size(self, image_size: int | tuple[int, int]) -> "Pretrained":
        """The same weights for images of another size, to which positions are resized.

        image_size: pixels a side, or (height, width), multiples of the patch size
        Raises InputError for other sizes, and where the reduction does not fit them.
        """
        if self.reduction is None:
            raise InputError(
                "the model has no record of its reduction, which the size may change; "
                "create_model(name, reduction) makes one that has"
            )
        images = dataclasses.replace(self.preprocessing, image_size=image_size)
        # The present size may end in a part of a patch, others not.
        same_size = images.shape == sides(self.image_size)
        grid = patch_grid(images.image_size, self.model.patch_size, cut=same_size)
        remedy = "take the size first: with_reduction(None).at_size(..)"
        model = self._planned_again(self.model, grid, remedy)
        params, trained_size = self._with_trained_positions()
        resized = resize_positions.fit(params, model, images.image_size, trained_size)
        changes = {"preprocessing": images}
        if resized is not params:
            trained = resize_positions.Trained(params["pos_embed"], trained_size)
            changes["trained_positions"] = trained
        return self._with_model(model, resized, **changes)

    def _with_trained_positions(self):
        """(parameters with positions as they were trained, the size of their images).

        Positions that something has changed since they were resized stay.
        """
        params = self.variables["params"]
        if self.trained_positions is None:
            return params, self.image_size
        values, size = self.trained_positions
        trained = {**params, "pos_embed": values}
        resized = resize_positions.fit(trained, self.model, self.image_size, size)
        if np.array_equal(resized["pos_embed"], params["pos_embed"]):
            return trained, size
        return params, self.image_size

    def analyzed(self, dtype: str | None = "float32") -> "Pretrained":
        """The same model in `dtype`, without drop path.

        dtype: of the layers; None: the model's
        """
        dtype = dtype or self.model.dtype.name
        spec = self.spec
        width = self.model.embed_dim // self.model.num_heads
        model = self.model.clone(
            dtype=jnp.dtype(dtype),
            backend=resolve_backend(self.attention, dtype, width),
            drop_path_rate=0.0,
        )
        if spec is not None:
            fields = dict.fromkeys(("drop_path_rate", "prop_attn"))
            spec = dataclasses.replace(spec, dtype=dtype, **fields)
        return dataclasses.replace(self, model=model, spec=spec)

    def model_with(self, reduction: ReductionLike) -> ViT:
        """The model of `with_reduction`, without its variables."""
        reduction = Reduction.read(reduction)
        return reduction_plan.with_plan(self.model, reduction, self._grid, self.name)

    def gmacs_with(self, reduction: ReductionLike) -> float:
        """`gmacs` of `with_reduction`."""
        return model_macs(self.model_with(reduction), self.image_size) / 1e9

    def reduction_at_cost(self, reduction: ReductionLike) -> Reduction:
        """A reduction with counts of tokens in place of its cost, `macs`."""
        reduction = Reduction.read(reduction)
        return reduction_plan.at_cost(reduction, self.model, self._grid, self.name)

    def use(self, reduction: ReductionLike) -> str:
        """What figures with `reduction` are called: "as trained" or "off-the-shelf"."""
        same = self.model_with(reduction).reduction == self.reduction
        return "as trained" if same else "off-the-shelf"

    def lacks_selectors(self, reduction: ReductionLike) -> bool:
        """Whether `reduction` has selectors that the weights have not learned."""
        like = variable_shapes(self.model_with(reduction), self.image_size)
        return bool(timm_tensors.lacking_selectors(self._learned, like))

    def differences_from_training(self) -> list[str]:
        """Reduction and image size, in words, where training had others."""
        source = self.source
        if source is None:
            return []
        lines = []
        if source.reduction is not None and not self.recovery:
            before = self.model_with(source.reduction).reduction
            if before != self.reduction:
                lines.append(f"reduction {self.reduction} (trained with {before})")
        trained_size = source.spec.image_size
        if sides(self.image_size) != sides(trained_size):
            ours = size_text(self.image_size)
            lines.append(f"size {ours} (trained with {size_text(trained_size)})")
        return lines

    def _planned_again(self, model, grid, remedy):
        """`model` with the plan of our reduction; a `remedy` where it has none."""
        try:
            return reduction_plan.with_plan(model, self.reduction, grid, self.name)
        except InputError as error:
            raise InputError(f"{error}; {remedy}") from error

    @property
    def _learned(self):
        """Learned selectors of this reduction and others, tensors by timm's names."""
        learned = dict(self.selectors)
        if "selectors" not in self.untrained_kinds:  # maybe trained since then
            selectors = timm_tensors.selectors_of(self.variables)
            learned |= timm_tensors.to_timm({"params": selectors})
        return learned

    def _with_model(self, model, params, seed=None, **changes):
        """This Pretrained with another model, and variables that fit it.

        The dense part of the variables comes from `params`. Selectors of the model come
        from all that were learned so far, for this or another reduction.

        model: a ViT with as many positions and blocks as `params`
        params: parameters, of which selectors are ignored
        seed: of selectors that were never learned; None: they are refused
        changes: further fields of the Pretrained
        """
        images = changes.get("preprocessing", self.preprocessing)
        dense = {
            k: v for k, v in params.items() if not k.startswith(timm_tensors.SELECTOR)
        }
        learned = self._learned
        fresh = ()  # no selector is drawn
        if seed is not None:
            fresh = None  # those that `learned` lacks are
        variables, drawn = timm_tensors.model_variables(
            model,
            images.image_size,
            learned,
            self.place,
            fresh=fresh,
            seed=seed or 0,
            given={**self.variables, "params": dense},
        )
        spec = self.spec
        if spec is not None:
            spec = dataclasses.replace(spec, image_size=images.image_size)
        vit = dataclasses.replace(
            self,
            model=model,
            variables=variables,
            spec=spec,
            drawn={**self.drawn, **digests(variables, drawn)},
            selectors=learned,
            **changes,
        )
        vit.say_dense_numbers()
        return vit


def digests(variables: Mapping[str, Any], parts: Iterable[str]) -> dict[str, str]:
    """Digests of parts of the parameters, as `Pretrained.drawn` has them."""
    return {part: digest(variables["params"][part]) for part in parts}


def check_pretrained(vit: Any):
    """Check that it is a Pretrained."""
    if not isinstance(vit, Pretrained):
        kind = type(vit).__name__
        raise InputError(f"vit is of type {kind}; it must be what load() returns")


def _square(model):
    """Pixels a side of a model's square images; others are refused."""
    counts = (layer.counts.n_in for layer in model.plan if layer.counts)
    patches = next(counts, model.image_tokens)
    side = math.isqrt(patches)
    if side * side != patches:
        raise InputError(
            f"preprocessing is missing, and the model's {patches} patches are no "
            "square; Preprocessing((height, width)) says the size"
        )
    return side * model.patch_size
