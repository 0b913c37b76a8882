"""From a path to a model: the public `load`, and what a path holds.

`opened` says what is at a path, `Weights.completed` which model it is: each of its
fields comes from one place, shapes of tensors, the layout of a file, a config.json, a
name, or the caller, who may change some of them, but nothing that the weights decide.
For commands, `read_with_config` merges the weights with a config in the same way.
"""

import copy
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.common.xla_options import fast_dtype
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError, check_names
from imagepiece_jax.models import convert, registry
from imagepiece_jax.models.config import (
    MISS,
    Contradiction,
    ModelConfig,
    in_config,
    named_fields,
    patch_grid,
    resolved,
)
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.models.preprocessing import Preprocessing
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained import hub, hub_configs, layouts, records, runs
from imagepiece_jax.pretrained.infer import infer_weights
from imagepiece_jax.pretrained.layouts import Contents
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import DENSE, completed

# Of `load`, beside the fields of a ModelConfig.
ARGUMENTS = (
    *("reduction", "checkpoint", "averaged", "class_names", "preprocessing", "seed"),
)
HEADS = ("head", "head_dist")  # what a model reads classes with
# Fields of training, of the device or of a method, which an analysis sets itself.
NOT_ANALYZED = ("drop_path_rate", "kernels", "prop_attn")
# Fields of a config's model that weights do not decide; the others are theirs.
FREE = ("dtype", "attention", "kernels", "drop_path_rate", "prop_attn")
NOTHING = ModelConfig()


def load(
    path: str | os.PathLike,
    *,
    reduction: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Pretrained:
    """A trained model, wherever its weights are.

    path: of a weights file (.npz, .safetensors, .pth), whose tensors determine sizes,
        stem and classes; of a folder with config.json and weights, as timm,
        transformers and `save` write it; of the folder of a run; or an id of the
        Hugging Face hub, "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION", whose files
        are fetched once into huggingface_hub's cache
    reduction: such as {"name": "evit", "keep_rate": 0.7}; None keeps that of a run and
        of a folder that `save` wrote, {"name": "none"} is the dense model
    checkpoint: of a run, "best" or "latest"
    averaged: the averages of the weights over the steps of the training, which a run
        has (config.ema_decay), and a .pth file that timm or DeiT's code saved while
        training
    num_classes: another number than the weights' gives a new head, drawn from `seed` as
        one that training starts with; 0 leaves the head out
    class_names: to be shown instead of those of the weights
    preprocessing: instead of that of the weights, such as {"crop": 0.9}
    changes: fields of a ModelConfig that are to differ, such as image_size, to which
        positions are resized, gelu or dtype; and those that no tensor shows, where
        neither a config nor the file's name does: name, or num_heads, gelu, norm_eps,
        resize, mean and std
    Raises InputError for what does not fit, for a field that contradicts the weights,
        and for weights that do not say which model they are.
    """
    check_names(changes, [*ARGUMENTS, *ModelConfig.names()])
    asked, fresh = ModelConfig(**changes), ()
    weights = read(path, asked, checkpoint, averaged)
    if weights.run is None and checkpoint != "best":
        raise InputError(
            f"checkpoint is {checkpoint!r}, but {weights} is no run; allowed: 'best'"
        )
    if num_classes not in (None, weights.config.num_classes):
        config = dataclasses.replace(weights.config, num_classes=num_classes)
        weights = dataclasses.replace(weights, config=config, class_names=None)
        fresh = HEADS
    if class_names is not None:
        weights = dataclasses.replace(weights, class_names=class_names)
    if preprocessing is not None:
        weights = dataclasses.replace(weights, crop=preprocessing)
    return weights.pretrained(reduction, fresh, seed)


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsFiles:
    """Tensors of a path on this machine, read once for all Weights that share them."""

    path: pathlib.Path
    checkpoint: str
    averaged: bool

    @functools.cached_property
    def contents(self) -> Contents:
        path, averaged = self.path, self.averaged
        kind = hub.kind(path)
        if kind == "run":
            state_dict = runs.read_checkpoint(path, self.checkpoint, averaged)
            return Contents(state_dict, NOTHING)
        if kind == "folder":
            return layouts.read_folder(path, averaged)
        return layouts.read_weights(path, averaged)


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """What a path holds: trained weights, and which model they are of.

    path: on this machine
    config: of the model; where the weights have only been `opened`, what a name or a
        config.json says of it
    reduction: of the model
    crop: of its images, fields of a Preprocessing
    class_names: by label, to be shown
    run: the whole config of a run, None for others
    checkpoint: of a run, "best" or "latest"
    averaged: whether the weights are averages over steps
    seed: of the training
    drawn: whether selectors among the tensors were drawn, not learned
    sizes: that a config.json says, and tensors must have
    normalized: whether the weights or the caller say mean and std
    trained: the same as they were trained, before a caller changed them
    files: have the tensors; None: those of the path
    """

    path: pathlib.Path
    config: ModelConfig
    reduction: Mapping[str, Any] = dataclasses.field(default_factory=DENSE.copy)
    crop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str | None] | None = None
    run: Mapping[str, Any] | None = None
    checkpoint: str = "best"
    averaged: bool = False
    seed: int = 0
    drawn: bool = False
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    normalized: bool = True
    trained: "Weights | None" = None
    files: WeightsFiles | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        if self.files is None:
            files = WeightsFiles(self.path, self.checkpoint, self.averaged)
            object.__setattr__(self, "files", files)

    def __str__(self):
        """What to call them in a sentence: "run runs/a"."""
        alone = "folder" if self.path.is_dir() else "weights file"
        kind = alone if self.run is None else "run"
        return f"{kind} {hub.described(self.path)}"

    @property
    def name(self) -> str:
        """What to call the weights where their path is too long."""
        return hub.short_name(self.path)

    @property
    def names_of_data(self) -> Sequence[str | None] | None:
        """The class names that a run, or a saved model, has of the data it learned.

        Those of other published models are words of another kind.
        """
        learned = self.path.is_dir() and (self.run or hub_configs.is_own(self.path))
        return self.class_names if learned else None

    @property
    def resize(self) -> str:
        """As config.data.resize: a run's, DeiT's for others."""
        return ((self.run or {}).get("data") or {}).get("resize", "deit")

    @property
    def tensors(self) -> Mapping[str, np.ndarray]:
        """By timm's names."""
        return self.files.contents.tensors

    @property
    def stated(self) -> ModelConfig:
        """What a name, a layout or a config says of the model, beside the shapes."""
        if self.path.is_dir():
            return self.config
        return self.files.contents.images.over(self.files.contents.config, self.config)

    @property
    def normalization(self) -> dict[str, tuple[float, ...]]:
        """{"mean", "std"} of the images; {} where neither a file nor a name says."""
        values = registry.facts(self.stated.name) | self.stated.stated
        return {
            field: channels(f"{self.path}: {field}", values[field], field == "std")
            for field in runs.IMAGENET
            if field in values
        }

    def completed(self, asked: ModelConfig = NOTHING) -> "Weights":
        """These weights with the whole config of their model.

        asked: what the caller says of the model, or wants changed
        Raises InputError where it is not known which model this is, where a config.json
            contradicts the tensors, and where `asked` contradicts either.
        """
        trained = self if self.run is not None else self._inferred(asked)
        if asked.mean is not None:
            trained = dataclasses.replace(trained, normalized=True)
        whole = self.path.is_dir()  # there a name stands for its sizes, too
        reduction = trained.reduction
        if asked.prop_attn is not None:
            reduction = {**reduction, "prop_attn": asked.prop_attn}
        return dataclasses.replace(
            trained,
            config=trained.config.changed(asked, str(self), whole),
            reduction=reduction,
            trained=trained,
        )

    def _inferred(self, asked):
        """These weights with the config that their tensors and what is said make."""
        stated = self.stated
        config = infer_weights(self.files.contents, stated, asked, self.path, str(self))
        for field, value in self.sizes.items():
            if getattr(config, field) != value:
                raise InputError(
                    f"{self}: {records.CONFIG} says {field} {value!r}, but its "
                    f"tensors have {getattr(config, field)!r}; allowed: files of "
                    "one model"
                )
        if self.path.is_dir():
            config = dataclasses.replace(config, dtype=self.config.dtype)
            crop = self.crop or registry.published_crop(config.name)
            return dataclasses.replace(self, config=config, crop=crop)
        name = asked.name or stated.name
        size_alone = asked.name in registry.MODELS  # which says nothing of the images
        return dataclasses.replace(
            self,
            config=config,
            crop=registry.published_crop(name),
            class_names=registry.published_class_names(
                stated.name if size_alone else name, config.num_classes
            ),
            normalized=not size_alone or stated.mean is not None,
        )

    def model(self, reduction: Mapping[str, Any] | None = None) -> ViT:
        """The model with this reduction; None: with the weights'.

        Raises InputError where it does not fit the model.
        """
        return self.config.create(self.reduction if reduction is None else reduction)

    def gmacs(self, reduction: Mapping[str, Any] | None = None) -> float:
        """GMACs of one image through `model(reduction)`."""
        return model_macs(self.model(reduction), self.config.image_size) / 1e9

    def resolved(
        self, reduction: Mapping[str, Any], allowed: float = MISS
    ) -> Mapping[str, Any]:
        """`reduction` with tokens in place of the cost that it asks for.

        allowed: by how much of the dense model's MACs the cost may be off
        Raises InputError for a cost that it cannot have on this model.
        """
        model, config = self.model(DENSE), self.config
        grid = patch_grid(config.image_size, model.patch_size, cut=True)
        return resolved(reduction, model, grid, config.name, allowed)

    def use(self, reduction: Mapping[str, Any]) -> str:
        """Whether figures with `reduction` are "as trained" or "off-the-shelf"."""
        same = completed(reduction) == completed(self.reduction)
        return "as trained" if same else "off-the-shelf"

    def with_sizes(self, **fields: Any) -> "Weights":
        """These weights for images of another `image_size`, or with a lower `depth`.

        A model of fewer blocks keeps the first, with the norm and head behind the last.
        """
        config = dataclasses.replace(self.config, **fields)
        if "depth" not in fields:
            return dataclasses.replace(self, config=config)
        contents = self.files.contents
        numbers = {name: re.match(r"blocks\.(\d+)\.", name) for name in self.tensors}
        tensors = {
            name: self.tensors[name]
            for name, number in numbers.items()
            if number is None or int(number[1]) < fields["depth"]
        }
        files = types.SimpleNamespace(contents=contents._replace(tensors=tensors))
        return dataclasses.replace(self, config=config, files=files)

    def variables(self, model: ViT) -> dict[str, Any]:
        """Variables for `model` and images of the config's size.

        Raises Misfit where the weights do not fit.
        """
        return self._variables(model)[0]

    def _variables(self, model, **options):
        """As `convert.model_variables`, which has the `options`."""
        trained, size = self.trained or self, self.config.image_size
        return convert.model_variables(
            model,
            size,
            self.tensors,
            str(self),
            positions=Positions.of(model, size, trained.config.image_size),
            **options,
        )

    def untrained(self, reduction: Mapping[str, Any]) -> bool:
        """Whether `reduction` has selectors that the weights have not learned."""
        like = variable_shapes(self.model(reduction), self.config.image_size)
        return bool(convert.lacking_selectors({} if self.drawn else self.tensors, like))

    def pretrained(
        self,
        reduction: Mapping[str, Any] | None = None,
        fresh: Iterable[str] | None = None,
        seed: int | None = None,
    ) -> Pretrained:
        """The model and its variables with this reduction; None: with the weights'.

        fresh: parts that are drawn, whatever the weights have; None: the selectors that
            they lack
        seed: of what is drawn; None: that of the training
        Raises InputError where anything does not fit.
        """
        try:
            model = self.model(reduction)
        except InputError as error:
            raise InputError(f"{self}: {error}") from error
        variables, drawn = self._variables(
            model,
            fresh=fresh,
            seed=self.seed if seed is None else seed,
            exact=fresh is not None and reduction is None,
        )
        used = [part for part in variables["params"] if part.startswith("reducer")]
        learned = {k: v for k, v in self.tensors.items() if k.startswith("reducer.")}
        name = self.config.name
        return Pretrained(
            model,
            variables,
            reduction=self.reduction if reduction is None else reduction,
            preprocessing=Preprocessing.of(self.config.image_size, self.crop),
            class_names=self.class_names,
            name=None if name in registry.MODELS else name,
            origin=self,
            selectors={} if self.drawn else learned,
            projector=self.files.contents.projector,
            untrained=any(self.drawn or part in drawn for part in used),
        )

    @functools.cached_property
    def digest(self) -> str:
        """16 letters that differ between weights."""
        total = hashlib.sha256()
        variables = self.variables(self.model())
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        return total.hexdigest()[:16]

    @property
    def trained_reduction(self) -> Mapping[str, Any] | None:
        """What a run or a saved model was trained with; a weights file says none."""
        return (self.trained or self).reduction if self.path.is_dir() else None

    def unlike_trained(self) -> list[str]:
        """In words, what of reduction and image size was another in training."""
        notes, before = [], self.trained_reduction
        if before is not None:
            pair = [settings.changed(one) for one in (self.reduction, before)]
            if pair[0] != pair[1]:
                shown, trained = map(settings.label, pair)
                notes.append(f"reduction {shown} (trained with {trained})")
        sizes = self.config.image_size, (self.trained or self).config.image_size
        if sides(sizes[0]) != sides(sizes[1]):
            shown, trained = map(described, sizes)
            notes.append(f"size {shown} (trained with {trained})")
        return notes

    def check_config(self, config: Mapping[str, Any]):
        """Contradiction where a config says another model than that of a run."""
        stated = _decided(self.config, runs.reduction_of(config))
        trained = _decided(self.trained.config, self.trained.reduction)
        for field in {**stated, **trained}:
            value, allowed = stated.get(field), trained.get(field)
            if value != allowed:
                facts = {"field": f"config.{field}", "value": value}
                problem = f"is {value!r}, but {self} has {allowed!r}"
                raise Contradiction(problem, **facts, allowed=repr(allowed))

    def analyzed(self, dtype: str | None = "float32") -> "Weights":
        """These for what looks into a model: with plain reductions, in JAX alone.

        All fields of the reduction are named.

        dtype: of the layers; None: the config's
        Raises InputError where the fields make no model.
        """
        changes = dict.fromkeys(NOT_ANALYZED) | ({"dtype": dtype} if dtype else {})
        config = dataclasses.replace(self.config, **changes)
        reduction = completed(self.reduction)
        analyzed = dataclasses.replace(self, config=config, reduction=reduction)
        analyzed.model()
        return analyzed


def opened(
    path: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> Weights:
    """What is at a path, as far as names and configs say; tensors are not read.

    path, checkpoint, averaged: as `load` takes them. A file that is called as a known
        model, such as deit_tiny_patch16_224.pth, is one unless another name is asked
        for
    Raises InputError where there are no weights.
    """
    path = hub.existing(path)
    kind = hub.kind(path)
    if kind == "weights file":
        return Weights(
            path, ModelConfig(name=registry.name_of_file(path)), averaged=averaged
        )
    if kind == "folder":
        published = hub_configs.read(path)
        return Weights(
            path,
            published.config,
            published.reduction or DENSE,
            published.preprocessing,
            published.class_names,
            averaged=averaged,
            drawn=published.untrained,
            sizes=published.sizes,
        )
    run = runs.read_config(path)
    return Weights(
        path,
        runs.whole_config(run),
        runs.reduction_of(run),
        runs.preprocessing_of(run),
        runs.read_class_names(path, run["num_classes"]),
        run=run,
        checkpoint=checkpoint,
        averaged=averaged,
        seed=run.get("seed", 0),
    )


def read(
    path: str | os.PathLike,
    asked: ModelConfig = NOTHING,
    checkpoint: str = "best",
    averaged: bool = False,
) -> Weights:
    """The weights at a path, with the whole config of their model.

    path, checkpoint, averaged: as `load` takes them
    asked: what the caller says of the model, or wants changed
    Raises InputError as `opened` and `Weights.completed`.
    """
    return opened(path, checkpoint, averaged).completed(asked)


def read_with_config(
    path: str | os.PathLike,
    config: Any = None,
    overrides: Any = None,
    normalization: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    averaged: bool = False,
) -> tuple[Any, Weights]:
    """A config merged with the weights at a path, and these weights by that config.

    What is typed goes over what the weights say, and that over configs/base.py, but
    nothing that is typed may contradict what the weights decide; a whole config counts
    as typed.

    path, checkpoint, averaged: as `load` takes them
    config: a ConfigDict, which is changed; where there are `overrides`, even none, that
        of configs/base.py; None: the weights say it all
    overrides: what is typed alone
    normalization: of --mean and --std, {} where they are not typed, None of a command
        that has no such flags
    Raises InputError for the first contradiction.
    """
    whole, asked = overrides is None and config is not None, NOTHING
    with in_config():
        if whole:
            asked = runs.model_config(config.to_dict())
            asked.create(config.reduction.to_dict())  # its own mistakes first
            asked = asked.over(named_fields(asked.name))
        elif config is not None:
            asked = _typed(config, overrides)
    flags = {
        name: channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }
    try:
        with in_config():
            asked = ModelConfig(**flags).over(asked)
            weights = read(path, asked, checkpoint, averaged)
            if whole and weights.run is not None:
                weights.check_config(config.to_dict())
    except Contradiction as error:
        name = error.field.removeprefix("config.model.")
        error.field = f"--{name}" if name in flags else error.field
        if whole and runs.is_run(path):
            error.allowed += " or no --config"
        raise
    if normalization is not None and not weights.normalized:
        print(f"note: {unknown_normalization(path)}", flush=True)
    if config is None:
        return None, weights
    with config.unlocked():
        if whole and config.data.eval_crop is None:
            crop = {f"eval_{field}": value for field, value in weights.crop.items()}
            usual, data = runs.LATER["data"], config.data
            data.update({k: v for k, v in crop.items() if data[k] == usual[k]})
        elif not whole:
            _complete(config, weights)
            overrides(config)
        decided = {k: v for k, v in weights.config.plain.items() if k in config.model}
        config.model.update({k: v for k, v in decided.items() if k not in FREE})
    plain = config.to_dict()
    free = {name: plain["model"][name] for name in FREE if name != "prop_attn"}
    return config, dataclasses.replace(
        weights,
        config=dataclasses.replace(weights.config, **free),
        reduction=runs.reduction_of(plain),
        crop=runs.preprocessing_of(plain),
        seed=config.seed,
    )


def _typed(config, overrides):
    """The fields of the model that `overrides` of `config` name, with their types."""
    top = ("image_size", "num_classes")
    typed = [(k, v) for k, v in overrides if k.startswith("model.") or k in top]
    changed = copy.deepcopy(config)
    type(overrides)(typed)(changed)
    names = {field.removeprefix("model.") for field, _ in typed}
    fields = runs.model_fields(changed.to_dict())
    return ModelConfig.of({k: v for k, v in fields.items() if k in names})


def _complete(config, weights):
    """Replace fields of `config`, that of configs/base.py, by those of weights."""
    fields = weights.run
    if fields is None:
        model, crop = weights.trained.config.plain, weights.crop.items()
        size, classes = model.pop("image_size"), model.pop("num_classes")
        if not isinstance(size, int):
            raise InputError(
                f"{weights} is for images of {described(size)}; allowed here are "
                "squares, others in Python: load(), optimize() and Predictor"
            )
        dense = weights.reduction["name"] == DENSE["name"]
        reduction = DENSE if dense else completed(weights.reduction)
        fields = {
            "image_size": size,
            "num_classes": classes,
            "model": {"name": None, **model, "dtype": fast_dtype()},
            "reduction": {k: v for k, v in reduction.items() if v is not None},
            "data": {f"eval_{field}": value for field, value in crop},
        }
    try:
        config.update(_with_tuples(fields))
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{weights} does not fit configs/base.py: {reason}") from error


def _decided(model, reduction):
    """{field of a config: value} of a ModelConfig and a reduction, to be compared."""
    fields = {"image_size": model.image_size}
    fields |= {f"model.{field}": value for field, value in vars(model.arch).items()}
    for field, value in completed(reduction).items():
        group = "model" if field in settings.MODEL_FIELDS else "reduction"
        fields[f"{group}.{field}"] = value
    return {field: settings.plain(value) for field, value in fields.items()}


def _with_tuples(tree):
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def tensors(
    path: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> Mapping[str, np.ndarray]:
    """By timm's names, the tensors of whatever `load` takes.

    path, checkpoint, averaged: as `load` takes them
    """
    return WeightsFiles(hub.existing(path), checkpoint, averaged).contents.tensors


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )
