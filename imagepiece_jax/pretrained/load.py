"""Trained models: the public `load`, and what weights of any kind hold.

The tensors of a file determine sizes, stem and classes; a published model's config says
the rest, and the config of a run everything. Whatever starts from trained weights
starts from `Weights`.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import public, registry, summary
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.models.preprocessing import Preprocessing, fields_of
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained import (
    class_names,
    convert,
    hub,
    hub_configs,
    imagenet_classes,
    runs,
)
from imagepiece_jax.pretrained.files import read_normalization, read_state_dict
from imagepiece_jax.pretrained.infer import infer_config
from imagepiece_jax.pretrained.layouts import Recognized, read_weights
from imagepiece_jax.pretrained.runs import (
    IMAGENET,
    RUN_CONFIG,
    in_config,
    model_fields,
    preprocessing_of,
    read_config,
    reduction_of,
)
from imagepiece_jax.pretrained.trained_model import Pretrained, selectors
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import DENSE, MODEL_FIELDS, completed, plain


def load(
    path: str | os.PathLike,
    *,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    seed: int = 0,
    class_names: Sequence[str | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Pretrained:
    """A trained model, wherever its weights are.

    path: of a weights file (.npz, .safetensors, .pth), whose tensors determine sizes,
    stem and classes; of a folder with config.json and weights, as timm, transformers
    and `save` write it; of the folder of a run, with its "best" or "latest"
    `checkpoint`; or an id of the Hugging Face hub, "hf://OWNER/NAME" or
    "hf://OWNER/NAME@REVISION", whose files are fetched once into huggingface_hub's
    cache.

    averaged: the averages of the weights over the steps of the training, which a run
    has (config.ema_decay), and a .pth file that timm or DeiT's code saved while
    training; InputError for others.

    fields: those of create_model that are to differ or that the weights leave open,
    such as reduction={"name": "evit", "keep_rate": 0.7}; None keeps that of a run, or
    of a folder that `save` wrote, and {"name": "none"} is the dense model. Another
    image_size resizes the position embeddings. What no tensor tells (heads, the kind of
    GELU, the epsilon of norms, mean and std) comes from the config, or from a name: the
    file's own, or name="vit_small_patch16_224.augreg_in1k".

    num_classes: another number than the weights' own gives a new head, drawn from
    `seed` as one that training starts with; 0 leaves the head out. class_names,
    preprocessing: others than those of the weights, to be shown, and {"crop": 0.9,
    "crop_mode": "center", "interpolation": "bicubic"}. InputError for what does not
    fit, and for a field that contradicts the weights.
    """
    found = read(path, fields, checkpoint, averaged)
    reduction, more = settings.split(found.reduction)
    own = found.fields["num_classes"]
    num_classes = own if num_classes is None else num_classes
    same = num_classes == own
    known = {"reduction": reduction}
    other = fields.get("reduction") is not None
    known |= {} if other else more
    if isinstance(fields.get("reduction"), Mapping):
        _, inside = settings.split(fields["reduction"])
        fields = inside | {k: v for k, v in fields.items() if v is not None}
    # A name is not needed in a folder, and stands for another model than its own.
    renamed = fields.get("name") != found.fields.get("name")
    sized = found.path.is_dir() and renamed
    fields = known | found.changed(fields, sized=sized) | {"num_classes": num_classes}
    crop = fields_of(fields.pop("preprocessing", {}))
    if preprocessing is not None:
        crop = fields_of(preprocessing)
    try:
        model = registry.create_model(**fields)
    except InputError as error:
        if found.config is not None:
            raise
        raise InputError(f"{found.kind} {found.path}: {error}") from error
    image_size = fields["image_size"]
    if other and found.untrained(fields["reduction"]):
        raise InputError(
            f"{found.kind} {found.path} has no selectors of the method "
            f"{fields['reduction']['name']!r}, which learns them; allowed are methods "
            "that do not, or weights trained with it (train.py --config.init.weights)"
        )
    heads = None if same else _new_heads(model, image_size, seed)
    if class_names is None and same:
        class_names = found.class_names
    return Pretrained(
        model,
        found.restore(model, image_size, heads, other),
        reduction=fields["reduction"],
        preprocessing=Preprocessing(image_size, **crop),
        class_names=class_names,
        name=public.named(fields.get("name")),
        origin=found,
    )


def _new_heads(model, image_size, seed):
    """Parameters of the heads of `model`, by name; {} where it has none."""
    known = summary.shapes(model, image_size)["params"]
    parts = [head for head in HEADS if head in known]
    return summary.fresh(model, image_size, seed, parts)["params"] if parts else {}


# Fields that weights determine: with another value they do not fit, or lose meaning.
DETERMINED = (
    *("embed_dim", "depth", "patch_size", "num_heads", "mlp_ratio", "stem"),
    *("num_classes", "mean", "std"),
)
OF_ARCH = ("name", *registry.ONE_BY_ONE)
HEADS = ("head", "head_dist")  # what a model reads classes with
# Fields of training, of the device or of a method, which an analysis sets itself.
NOT_ANALYZED = ("drop_path_rate", "trace_source", "kernels", "prop_attn")


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Trained weights and the fields of the models that they fit; made by `read`.

    fields: of registry.create_model without reduction, as far as they are known;
    reduction: what the weights were trained with, none for a file; config: the whole
    config of a run, None for others; checkpoint: of a run, "best" or "latest";
    averaged: whether the weights are averages over steps; seed: of the training;
    trained: this before `under` and `of_config` changed it; names: of the classes of
    what is no run; says: its metadata; tensors: the state dict where it has been read.
    """

    path: pathlib.Path
    fields: Mapping[str, Any]
    reduction: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    checkpoint: str = "best"
    averaged: bool = False
    seed: int = 0
    trained: "Weights | None" = None
    names: tuple[str | None, ...] | None = None
    says: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] | None = dataclasses.field(
        default=None, repr=False
    )

    @property
    def kind(self) -> str:
        alone = "folder" if self.path.is_dir() else "weights file"
        return alone if self.config is None else "run"

    @property
    def name(self) -> str:
        """What to call the weights where their path is too long."""
        return hub.short_name(self.path)

    @property
    def image_size(self) -> int:
        return self.fields["image_size"]

    @property
    def crop(self) -> Mapping[str, Any]:
        """Fields of data.transforms.resize_crop, where the weights say them."""
        return self.fields.get("preprocessing", {})

    @property
    def resize(self) -> str:
        """As config.data.resize: a run's own, DeiT's for others."""
        return ((self.config or {}).get("data") or {}).get("resize", "deit")

    @property
    def stem(self) -> str:
        return self.fields["stem"]

    @property
    def says_normalization(self) -> bool:
        """Whether the weights say how images are normalized, not a config's name."""
        own = self.fields.get("name") not in registry.MODELS  # which say none
        return own or self.config is not None or "mean" in stated(self.says)

    @functools.cached_property
    def class_names(self) -> tuple[str | None, ...] | None:
        """Names by label, to be shown, where they are known."""
        return self.names if self.config is None else class_names.read(self.path)

    @functools.cached_property
    def state_dict(self) -> Mapping[str, np.ndarray]:
        """Tensors by timm's names, read once."""
        return self.tensors or tensors(self.path, self.checkpoint, self.averaged)

    def model(self, reduction: Mapping[str, Any] | None = None) -> ViT:
        """The model with this reduction; None: with its own."""
        own, more = settings.split(self.reduction if reduction is None else reduction)
        fields = {**self.fields, **more}
        fields.pop("preprocessing", None)
        return registry.create_model(reduction=own, **fields)

    def gmacs(self, reduction: Mapping[str, Any] | None = None) -> float:
        """GMACs of one image through `model(reduction)`."""
        return summary.model_macs(self.model(reduction), self.image_size) / 1e9

    def use(self, reduction: Mapping[str, Any]) -> str:
        """Whether figures with `reduction` are "as trained" or "off-the-shelf"."""
        same = completed(reduction) == completed(self.reduction)
        return "as trained" if same else "off-the-shelf"

    def restore(self, model: ViT, image_size: int, heads=None, other=False):
        """Variables for `model` and images of `image_size`; see `weights.restore`.

        heads: parameters that the head, and that of distillation, get instead of the
        weights' own; other: the reduction is another than the weights', whose selectors
        are left out where the model lacks them.
        """
        like = summary.shapes(model, image_size)
        tensors = self._without(like["params"]) if other else self.state_dict
        if heads is not None:
            like = {**like, "params": {**like["params"], **heads}}
            own = tuple(f"{head}." for head in HEADS)
            tensors = {k: v for k, v in tensors.items() if not k.startswith(own)}
        places = Positions.of(model, image_size, self.image_size)
        return fit(self.path, tensors, like, heads or (), positions=places)

    def variables(self, model: ViT) -> tuple[Mapping[str, Any], bool]:
        """(variables for `model`, whether it has selectors that were never trained).

        Selectors that the weights lack are fresh; those that the model lacks are left
        out.
        """
        like = summary.shapes(model, self.image_size)
        params, (_, lacking) = dict(like["params"]), selectors(self.state_dict, like)
        if lacking:
            drawn = summary.fresh(model, self.image_size, self.seed)["params"]
            params |= {name: drawn[name] for name in lacking}
        tensors = self._without([name for name in params if name not in lacking])
        like = {**like, "params": params}
        places = Positions.of(model, self.image_size, self.image_size)
        found = fit(self.path, tensors, like, lacking, positions=places)
        return found, bool(lacking)

    def untrained(self, reduction: Mapping[str, Any]) -> bool:
        """Whether `reduction` has selectors that the weights lack."""
        like = summary.shapes(self.model(reduction), self.image_size)
        return bool(selectors(self.state_dict, like)[1])

    def pretrained(self, reduction: Mapping[str, Any] | None = None) -> Pretrained:
        """The model and its variables with this reduction; None: with its own.

        Selectors that the weights lack are drawn from their seed.
        """
        model = self.model(reduction)
        variables, untrained = self.variables(model)
        return Pretrained(
            model,
            variables,
            reduction=self.reduction if reduction is None else reduction,
            preprocessing=Preprocessing(self.image_size, **self.crop),
            class_names=self.class_names,
            name=public.named(self.fields.get("name")),
            origin=self,
            untrained=untrained,
        )

    @functools.cached_property
    def digest(self) -> str:
        """16 letters that differ between weights."""
        total = hashlib.sha256()
        found = self.restore(self.model(), self.image_size)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found):
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        return total.hexdigest()[:16]

    def changed(
        self,
        changes: Mapping[str, Any],
        named: Callable[[str], str] = str,
        instead: str = "",
        sized: bool = False,
    ) -> dict[str, Any]:
        """`fields` with `changes`, in which None leaves a field as it is.

        InputError for a change of what the weights determine; `named` is how a field is
        called in its sentence, `instead` what else is allowed; `sized`: a name stands
        for its size too, not only for what tensors do not tell.
        """
        given = {k: v for k, v in changes.items() if v is not None}
        size = given.get("image_size", self.image_size)
        if sides(size) != sides(self.image_size):  # their own need be no multiple
            registry.grid(size, self.fields["patch_size"])
        own = registry.facts(given["name"]) if sized and "name" in given else {}
        compared = registry.SIZES
        if own and given["name"] not in registry.MODELS:  # whose images can be any
            compared += ("mean", "std")
        asked = {k: v for k, v in own.items() if k in compared} | given
        for field in DETERMINED:
            if field in asked and field in self.fields:
                by = "" if field in given else f" of {given['name']!r}"
                self._compare(
                    named(field) + by, asked[field], self.fields[field], instead
                )
        given |= {"image_size": tuple(size)} if isinstance(size, list) else {}
        fields = {**self.fields, **given}
        if "name" in given and "arch" not in given:
            fields.pop("arch", None)  # a name stands for its own
        for field, theirs, ours in _different(fields, self.fields):
            if field != "gelu" or field not in given:
                by = "" if field in given else f"{named('name')}: "
                self._compare(by + named(field), theirs, ours, instead)
        return fields

    def under(self, config: Mapping[str, Any]) -> "Weights":
        """This with the fields, reduction and seed of `config`, a nested dict.

        InputError where it contradicts the weights; of a run in its reduction, image
        size or GELU, too: fields that only training reads may differ.
        """
        instead = "" if self.config is None else " or no --config"
        fields = self.changed(model_fields(config), in_config, instead, sized=True)
        if self.config is not None:
            size = in_config("image_size")
            self._compare(size, fields["image_size"], self.image_size, instead)
            for field, theirs, ours in _different(fields, self.fields):
                self._compare(in_config(field), theirs, ours, instead)
            ours, theirs = completed(self.reduction), completed(reduction_of(config))
            for field in dict.fromkeys((*theirs, *ours)):
                group = "model" if field in MODEL_FIELDS else "reduction"
                name = f"config.{group}.{field}"
                self._compare(name, theirs.get(field), ours.get(field), instead)
        return dataclasses.replace(self.of_config(config), fields=fields)

    def of_config(self, config: Mapping[str, Any]) -> "Weights":
        """As `under`, unchecked, with the fields of `config` alone."""
        fields, reduction = model_fields(config), reduction_of(config)
        if prepared := preprocessing_of(config):
            fields["preprocessing"] = prepared
        return dataclasses.replace(
            self,
            fields=fields,
            reduction=reduction,
            seed=config["seed"],
            trained=self.trained or self,
        )

    def analyzed(self, dtype: str | None = None) -> "Weights":
        """This with plain reductions, all fields of its own named, layers of `dtype`.

        InputError where the fields make no model.
        """
        fields = {k: v for k, v in self.fields.items() if k not in NOT_ANALYZED}
        fields |= {"dtype": dtype} if dtype else {}
        reduction = completed(self.reduction)
        found = dataclasses.replace(self, fields=fields, reduction=reduction)
        found.model()
        return found

    @property
    def known_reduction(self) -> Mapping[str, Any] | None:
        """The reduction of a run or a published model; a weights file says none."""
        return dict(self.reduction) if self.path.is_dir() else None

    def unlike_trained(self) -> list[str]:
        """In words, what of reduction and image size was another in training."""
        before, found = self.trained or self, []
        pair = [settings.changed(one.reduction) for one in (self, before)]
        if before.known_reduction is not None and pair[0] != pair[1]:
            ours, theirs = map(settings.label, pair)
            found.append(f"reduction {ours} (trained with {theirs})")
        if sides(self.image_size) != sides(before.image_size):
            ours, theirs = described(self.image_size), described(before.image_size)
            found.append(f"size {ours} (trained with {theirs})")
        return found

    def _compare(self, name, asked, ours, instead):
        if plain(asked) != plain(ours):
            raise InputError(
                f"{name} is {plain(asked)!r}, but {self.kind} {self.path} has "
                f"{plain(ours)!r}: allowed is {plain(ours)!r}{instead}"
            )

    def _without(self, parts):
        """Tensors without the selectors that are not among these parts of a model."""
        used = tuple(f"{part.replace('_', '.')}." for part in parts)
        return {
            name: tensor
            for name, tensor in self.state_dict.items()
            if not name.startswith("reducer.") or name.startswith(used)
        }


def _different(fields, others):
    """(field, value, other value) of what two models' architectures differ in."""
    one, other = registry.architecture(fields), registry.architecture(others)
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if ours != theirs:
            yield field.name, ours, theirs


def read(
    path: str | os.PathLike,
    given: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    averaged: bool = False,
) -> Weights:
    """The Weights of a weights file, a published model or a run's folder.

    path: of a file, of a folder with config.json and weights or of a run, or a hub id.
    given: fields of the model that neither tensors nor a config beside them tell, such
    as name and num_heads. A file that is called as a known model, such as
    deit_tiny_patch16_224.pth, is one unless another name is given. averaged: as `load`
    takes it. InputError where there is no model, or none that can be known, or a config
    contradicts the tensors.
    """
    path = hub.existing(path)
    if path.is_dir() and not hub.is_published(path):
        return _of_run(path, checkpoint, averaged)
    known = {k: v for k, v in (given or {}).items() if v is not None}
    if not path.is_dir():
        return _of_file(path, known, averaged)
    found = hub_configs.read(path)
    read = published(path, averaged)
    # `changed` compares what is given with what the config says, also by its name.
    said = {*stated(found.given), "image_size"}
    said |= {*OF_ARCH} if "arch" in said else set()
    known = {k: v for k, v in known.items() if k not in said}
    result = _of_tensors(path, read, read.says | known | found.given)
    try:
        found.check(result.fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    fields, own = {**result.fields, **found.fields}, found.reduction or DENSE
    says, names = found.given, found.class_names
    return dataclasses.replace(
        result,
        fields=fields,
        reduction=own,
        says=says,
        names=names,
        averaged=averaged,
    )


def _of_file(path, given, averaged):
    """The Weights of a weights file; given: what the caller says of it."""
    read, known = read_weights(path, averaged), dict(given)
    says = metadata(path, read, given.get("name"))
    name = given.get("name", says.get("name"))
    facts = {} if name in registry.MODELS else registry.facts(name)
    if facts and "arch" not in given:
        # What contradicts the name is left out here, for `changed` to report.
        known.pop("norm_eps", None), known.pop("resize", None)
        norm = read.tensors.get("blocks.0.norm1.weight")
        if norm is not None and norm.shape == (facts["embed_dim"],):
            known["num_heads"] = facts["num_heads"]
    size, own = given.get("image_size"), facts.get("image_size")
    if isinstance(size, list):
        known["image_size"] = size = tuple(size)
    if size and own:
        grids = (registry.grid(s, facts["patch_size"], cut=True) for s in (size, own))
        if len({*map(math.prod, grids)}) == 1:
            known["image_size"] = (
                own  # from which positions are resized to what is given
            )
    found = _of_tensors(path, read, says | known)
    return dataclasses.replace(found, says=says, averaged=averaged)


def _of_run(path, checkpoint, averaged):
    config = read_config(path)
    own = {k: v for k, v in model_fields(config).items() if v is not None}
    size = registry.size_of(registry.facts(own.get("name")))
    if prepared := preprocessing_of(config):
        own["preprocessing"] = prepared
    return Weights(
        path,
        fields=size | own,
        reduction=reduction_of(config),
        config=config,
        checkpoint=checkpoint,
        averaged=averaged,
        seed=config.get("seed", 0),
    )


def _of_tensors(path, read, given):
    try:
        read.check(given)
        mean, std = given.get("mean"), given.get("std")
        if mean is not None or std is not None:
            mean, std = registry.normalization(mean, std)
        fields = infer_config(read.tensors, {**given, "mean": mean, "std": std})
    except InputError as error:
        kind = "" if path.is_dir() else "weights file "
        raise InputError(f"{kind}{path}: {error}") from error
    names = imagenet_classes.names_of(given.get("name"), fields["num_classes"])
    if prepared := public.preprocessing(fields["name"]):
        fields["preprocessing"] = prepared
    return Weights(path, fields, DENSE, tensors=read.tensors, names=names)


def for_analysis(
    path: str | os.PathLike,
    config=None,
    dtype: str | None = None,
    normalization: Mapping[str, Any] | None = None,
    averaged: bool = False,
) -> Weights:
    """The Weights at `path` for commands that analyze what a model does.

    Reductions are plain JAX, so that every decision can be seen, and of a run the last
    checkpoint is taken: the best one was chosen on the images that the figures are of.
    config: a ConfigDict with what a file leaves open; dtype: of the layers;
    normalization: mean and std of the images; averaged: as `load` takes it. InputError
    where the model is unknown, or one of these contradicts the weights.
    """
    config = None if config is None else config.to_dict()
    given = {} if config is None else model_fields(config)
    try:
        found = read(path, given | typed(normalization), "latest", averaged)
    except InputError as error:
        if config is None and "--config" in str(error):
            raise InputError(f"{error}; or name the model by --config") from error
        raise
    if not (normalization or given.get("mean") or found.says_normalization):
        print(f"note: {unknown_normalization(path)}", flush=True)
    found = found if config is None else found.under(config)
    fields = found.changed(typed(normalization))
    return dataclasses.replace(found, fields=fields).analyzed(dtype)


def metadata(
    path: str | os.PathLike, read: Recognized | None = None, name: str | None = None
) -> dict[str, Any]:
    """Fields of create_model that weights state, such as name, gelu and num_heads.

    path: of a weights file, a published model or a run; read: the tensors of a file,
    where they have been read. What its layout says is more special than its name, and
    what the file itself says of its images most. name: what the caller calls a file;
    timm's name of a public model means that model's function, whatever the layout.
    """
    path = hub.local(path)
    if path.is_dir() and hub.is_published(path):
        return dict(hub_configs.read(path).given)
    if path.is_dir():
        return model_fields(read_config(path))
    read = read or read_weights(path)
    images = read_normalization(path).items()
    meant = {} if name in registry.MODELS else stated({"name": name})
    says = {k: v for k, v in read.says.items() if k == "num_heads" or k not in meant}
    return named(path) | says | {k: _channels(path, k, v) for k, v in images}


def normalization(path: str | os.PathLike) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of the images of weights; {} where neither file nor name say.

    {} also of a folder that holds neither weights nor a run yet.
    """
    path = hub.local(path)
    empty = path.is_dir() and not hub.is_published(path)
    if not path.exists() or (empty and not (path / RUN_CONFIG).is_file()):
        return {}
    found = stated(metadata(path))
    return {k: _channels(path, k, found[k]) for k in IMAGENET if k in found}


def _channels(path, name, values):
    return channels(f"{path}: {name}", values, positive=name == "std")


def stated(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with all that its name and architecture stand for, field by field."""
    given = {k: v for k, v in metadata.items() if v is not None}
    found = dict(registry.facts(given.get("name")))
    if found or "arch" in given:
        found |= vars(registry.architecture(given))
    return found | given


def named(path: str | os.PathLike) -> dict[str, str]:
    """{"name": the known model that a weights file is called by}; {} for another."""
    name = public.original(pathlib.Path(path).stem)
    known = name in registry.MODELS or public.model(name) is not None
    return {"name": name} if known else {}


def typed(normalization):
    """The values of --mean and --std by name, checked; {} for None."""
    return {
        name: channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )


def tensors(
    path: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> Mapping[str, np.ndarray]:
    """Those of a weights file, of a published model, or of a run's checkpoint.

    averaged: over the steps of the training, instead of those after its last.
    """
    path = hub.existing(path)
    if path.is_dir() and hub.is_published(path):
        return published(path, averaged).tensors
    if path.is_dir():
        return runs.read_checkpoint(path, checkpoint, averaged)
    return read_weights(path, averaged).tensors


def published(folder: pathlib.Path, averaged: bool = False) -> Recognized:
    """As `layouts.read_weights`, of a folder, with what a saved reduction learned."""
    found = read_weights(hub.weights_file(folder), averaged)
    learned = folder / hub.SELECTORS
    if learned.exists():
        found = found._replace(tensors=found.tensors | read_state_dict(learned))
    return found


def fit(path, tensors, like, fresh=(), hint=False, positions=None):
    """As `restore`, of tensors that have been read from `path`."""
    try:
        return convert.from_timm(tensors, like, fresh, hint, positions)
    except InputError as error:
        path = hub.local(path)
        run = path.is_dir() and not hub.is_published(path)
        kind = "run " if run else "" if path.is_dir() else "weights file "
        raise InputError(f"{kind}{path}: {error}") from error


def restore(
    path: str | os.PathLike,
    like: Mapping[str, Any],
    fresh: Iterable[str] | None = None,
    checkpoint: str = "best",
    positions: Positions | None = None,
):
    """Variables of the shapes of `like` from whatever has weights.

    `fresh` names the parts that keep what `like` has for them; None: there are none,
    and errors suggest none; position embeddings are resized to `positions`. InputError
    for anything else that is missing, left over or of another shape.
    """
    hint = fresh is not None
    found = tensors(path, checkpoint)
    return fit(path, found, like, fresh or (), hint, positions)
