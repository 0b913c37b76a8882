"""From a path to a model: the public `load`, and what a path holds.

`read` finds out what the model is that weights are of. Each of its fields comes from
one place: shapes of tensors, the layout of a file, a config.json, a name, or the
caller, who may change some of them, but nothing that the weights decide.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common.image_size import described, sides
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import public, registry, summary
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.models.preprocessing import Preprocessing
from imagepiece_jax.models.registry import ModelConfig
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.pretrained import class_names as classes
from imagepiece_jax.pretrained import convert, hub, hub_configs, imagenet_classes, runs
from imagepiece_jax.pretrained.infer import infer
from imagepiece_jax.pretrained.layouts import read_folder, read_weights
from imagepiece_jax.pretrained.trained_model import (
    Pretrained,
    no_selectors,
    selectors,
)
from imagepiece_jax.reduction import settings
from imagepiece_jax.reduction.settings import DENSE, completed

HEADS = ("head", "head_dist")  # what a model reads classes with
# Fields of training, of the device or of a method, which an analysis sets itself.
NOT_ANALYZED = ("drop_path_rate", "trace_source", "kernels", "prop_attn")
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

    Args:
        path: of a weights file (.npz, .safetensors, .pth), whose tensors determine
            sizes, stem and classes; of a folder with config.json and weights, as timm,
            transformers and `save` write it; of the folder of a run; or an id of the
            Hugging Face hub, "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION", whose
            files are fetched once into huggingface_hub's cache.
        reduction: such as {"name": "evit", "keep_rate": 0.7}; None keeps that of a run
            and of a folder that `save` wrote, {"name": "none"} is the dense model.
        checkpoint: of a run, "best" or "latest".
        averaged: the averages of the weights over the steps of the training, which a
            run has (config.ema_decay), and a .pth file that timm or DeiT's code saved
            while training.
        num_classes: another number than the weights' own gives a new head, drawn from
            `seed` as one that training starts with; 0 leaves the head out.
        class_names: to be shown instead of those of the weights.
        preprocessing: instead of that of the weights, such as {"crop": 0.9}.
        changes: fields of a ModelConfig that are to differ, such as image_size, to
            which positions are resized, gelu or dtype; and those that no tensor tells,
            where neither a config nor the file's name does: name, or num_heads, gelu,
            norm_eps, resize, mean and std.

    Raises:
        InputError: for what does not fit, for a field that contradicts the weights, and
            for weights that do not say which model they are.
    """
    asked = ModelConfig.of(changes)
    weights = read(path, asked, checkpoint, averaged)
    config, same = weights.config, num_classes in (None, weights.config.num_classes)
    if not same:
        config = dataclasses.replace(config, num_classes=num_classes)
    other, prop_attn = reduction is not None, asked.prop_attn
    if not other:
        reduction, inside = settings.split(weights.reduction)
        prop_attn = inside.get("prop_attn") if prop_attn is None else prop_attn
    try:
        if other:
            reduction, prop_attn = registry.split_reduction(reduction, prop_attn)
            prop_attn = config.prop_attn if prop_attn is None else prop_attn
        model = dataclasses.replace(config, prop_attn=prop_attn).create(reduction)
    except InputError as error:
        raise InputError(f"{weights.kind} {weights.path}: {error}") from error
    size = config.image_size
    like = summary.shapes(model, size)
    if other and selectors(weights.state_dict, like)[1]:
        raise no_selectors(f"{weights.kind} {weights.path} has", reduction)
    heads = None if same else _new_heads(model, size, seed)
    if class_names is None and same:
        class_names = weights.class_names
    crop = weights.crop if preprocessing is None else preprocessing
    return Pretrained(
        model,
        weights.restore(model, size, heads, other),
        reduction=reduction,
        preprocessing=Preprocessing.of(size, crop),
        class_names=class_names,
        name=weights.public_name,
        origin=weights,
    )


def _new_heads(model, image_size, seed):
    """Parameters of the heads of `model`, by name; {} where it has none."""
    like = summary.shapes(model, image_size)["params"]
    parts = [head for head in HEADS if head in like]
    return summary.fresh(model, image_size, seed, parts)["params"] if parts else {}


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """What a path holds: trained weights, and which model they are of.

    config, reduction: of the model as it is asked for; trained, trained_reduction: as
    it was trained, where that may be another; crop: how its images were cropped,
    fields of a Preprocessing; run: the whole config of a run, None for others;
    checkpoint: of a run, "best" or "latest"; averaged: whether the weights are averages
    over steps; seed: of the training; names: of the classes of what is no run;
    normalized: whether the weights or the caller say mean and std; tensors: by timm's
    names, where they have been read.
    """

    path: pathlib.Path
    config: ModelConfig
    reduction: Mapping[str, Any]
    trained: ModelConfig | None = None
    trained_reduction: Mapping[str, Any] | None = None
    crop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    run: Mapping[str, Any] | None = None
    checkpoint: str = "best"
    averaged: bool = False
    seed: int = 0
    names: tuple[str | None, ...] | None = None
    normalized: bool = True
    tensors: Mapping[str, np.ndarray] | None = dataclasses.field(
        default=None, repr=False
    )

    @property
    def kind(self) -> str:
        alone = "folder" if self.path.is_dir() else "weights file"
        return alone if self.run is None else "run"

    @property
    def name(self) -> str:
        """What to call the weights where their path is too long."""
        return hub.short_name(self.path)

    @property
    def public_name(self) -> str | None:
        """timm's name of the model."""
        return None if self.config.name in registry.MODELS else self.config.name

    @property
    def fields(self) -> dict[str, Any]:
        """The config as a file has it."""
        return self.config.plain

    @property
    def image_size(self) -> int | tuple[int, int]:
        return self.config.image_size

    @property
    def trained_size(self) -> int | tuple[int, int]:
        """The size of images that the weights were trained for."""
        return (self.trained or self.config).image_size

    @property
    def stem(self) -> str:
        return self.config.stem

    @property
    def resize(self) -> str:
        """As config.data.resize: a run's own, DeiT's for others."""
        return ((self.run or {}).get("data") or {}).get("resize", "deit")

    @functools.cached_property
    def class_names(self) -> tuple[str | None, ...] | None:
        """Names by label, to be shown, where they are known."""
        return self.names if self.run is None else classes.read(self.path)

    @functools.cached_property
    def state_dict(self) -> Mapping[str, np.ndarray]:
        """Tensors by timm's names, read once."""
        return self.tensors or tensors(self.path, self.checkpoint, self.averaged)

    def model(self, reduction: Mapping[str, Any] | None = None) -> ViT:
        """The model with this reduction; None: with its own."""
        own, inside = settings.split(self.reduction if reduction is None else reduction)
        return dataclasses.replace(self.config, **inside).create(own)

    def gmacs(self, reduction: Mapping[str, Any] | None = None) -> float:
        """GMACs of one image through `model(reduction)`."""
        return summary.model_macs(self.model(reduction), self.image_size) / 1e9

    def use(self, reduction: Mapping[str, Any]) -> str:
        """Whether figures with `reduction` are "as trained" or "off-the-shelf"."""
        same = completed(reduction) == completed(self.reduction)
        return "as trained" if same else "off-the-shelf"

    def restore(self, model: ViT, image_size, heads=None, other=False):
        """Variables for `model` and images of `image_size`.

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
        places = Positions.of(model, image_size, self.trained_size)
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
        places = Positions.of(model, self.image_size, self.trained_size)
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
            preprocessing=Preprocessing.of(self.image_size, self.crop),
            class_names=self.class_names,
            name=self.public_name,
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

    @property
    def known_reduction(self) -> Mapping[str, Any] | None:
        """What a run or a saved model was trained with; a weights file says none."""
        if not self.path.is_dir():
            return None
        return dict(self.trained_reduction or self.reduction)

    def unlike_trained(self) -> list[str]:
        """In words, what of reduction and image size was another in training."""
        notes, before = [], self.known_reduction
        if before is not None:
            ours, theirs = map(settings.changed, (self.reduction, before))
            if ours != theirs:
                ours, theirs = map(settings.label, (ours, theirs))
                notes.append(f"reduction {ours} (trained with {theirs})")
        if sides(self.image_size) != sides(self.trained_size):
            ours, theirs = described(self.image_size), described(self.trained_size)
            notes.append(f"size {ours} (trained with {theirs})")
        return notes

    def analyzed(self, dtype: str | None = None) -> "Weights":
        """This with plain reductions, all fields of its own named, layers of `dtype`.

        InputError where the fields make no model.
        """
        changes = dict.fromkeys(NOT_ANALYZED) | ({"dtype": dtype} if dtype else {})
        config = dataclasses.replace(self.config, **changes)
        reduction = completed(self.reduction)
        analyzed = dataclasses.replace(self, config=config, reduction=reduction)
        analyzed.model()
        return analyzed

    def _without(self, parts):
        """Tensors without the selectors that are not among these parts of a model."""
        used = tuple(f"{part.replace('_', '.')}." for part in parts)
        return {
            name: tensor
            for name, tensor in self.state_dict.items()
            if not name.startswith("reducer.") or name.startswith(used)
        }


def read(
    path: str | os.PathLike,
    asked: ModelConfig = NOTHING,
    checkpoint: str = "best",
    averaged: bool = False,
) -> Weights:
    """The Weights of a weights file, a published model or a run's folder.

    Args:
        path: of a file, of a folder with config.json and weights or of a run, or a hub
            id. A file that is called as a known model, such as
            deit_tiny_patch16_224.pth, is one unless another name is asked for.
        asked: what the caller says of the model, or wants changed.
        checkpoint, averaged: as `load` takes them.

    Raises:
        InputError: where there is no model, or none that can be known, where a
            config.json contradicts the tensors, and where `asked` contradicts both.
    """
    path = hub.existing(path)
    kind = hub.kind(path)
    if kind == "weights file":
        weights = _of_file(path, asked, averaged)
    elif kind == "folder":
        weights = _of_folder(path, asked, averaged)
    else:
        weights = _of_run(path, checkpoint, averaged)
    if asked.mean is not None:
        weights = dataclasses.replace(weights, normalized=True)
    whole = kind != "weights file"  # there a name stands for its sizes, too
    config = weights.config.changed(asked, f"{kind} {path}", whole)
    return dataclasses.replace(weights, config=config, trained=weights.config)


def _of_run(path, checkpoint, averaged):
    run = runs.read_config(path)
    said, reduction = runs.model_config(run), runs.reduction_of(run)
    crop = runs.preprocessing_of(run)
    whole = {"arch": said.architecture, "stem": said.stem or "patch"}
    whole |= dict.fromkeys(registry.ONE_BY_ONE)
    return Weights(
        path,
        dataclasses.replace(said.over(registry.size_of(said.name)), **whole),
        reduction=reduction,
        crop=crop,
        run=run,
        checkpoint=checkpoint,
        averaged=averaged,
        seed=run.get("seed", 0),
    )


def _of_folder(path, asked, averaged):
    published, checkpoint = hub_configs.read(path), read_folder(path, averaged)
    said, settled = published.config, ("image_size",)
    if said.name or said.arch:
        settled += ("name", "arch", "num_heads", *registry.ONE_BY_ONE)
    # What is asked for completes what the config leaves open; `changed` compares it.
    known = said.over(_without(asked, settled), checkpoint.config)
    try:
        config = infer(checkpoint.tensors, known)
        published.check(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Weights(
        path,
        dataclasses.replace(config, dtype=said.dtype),
        reduction=published.reduction or DENSE,
        crop=published.preprocessing or public.preprocessing(config.name),
        averaged=averaged,
        names=published.class_names,
        tensors=checkpoint.tensors,
    )


def _of_file(path, asked, averaged):
    checkpoint = read_weights(path, averaged)
    images, layout = checkpoint.images, checkpoint.config
    name = asked.name or registry.named(path)
    said, meant = asked, {} if name in registry.MODELS else registry.facts(name)
    if meant and asked.name:  # the function of that model, whatever the layout
        layout = ModelConfig(num_heads=layout.num_heads)
    if meant and not asked.arch:
        said = _without(asked, ("norm_eps", "resize"))
        norm = checkpoint.tensors.get("blocks.0.norm1.weight")
        if np.shape(norm) == (meant["embed_dim"],):
            said = dataclasses.replace(said, num_heads=meant["num_heads"])
    size, own = asked.image_size, meant.get("image_size")
    if size and own:
        grids = (registry.grid(s, meant["patch_size"], cut=True) for s in (size, own))
        if len({*map(math.prod, grids)}) == 1:  # positions are resized from its own
            said = dataclasses.replace(said, image_size=own)
    known = said.over(images, layout, ModelConfig(name=name))
    try:
        if layout.num_heads not in (None, known.num_heads):
            raise InputError(
                f"num_heads is {known.num_heads!r}, but its tensors are those of "
                f"{layout.num_heads} heads; allowed is {layout.num_heads}"
            )
        config = infer(checkpoint.tensors, known)
    except InputError as error:
        raise InputError(f"weights file {path}: {error}") from error
    size_alone = asked.name in registry.MODELS  # which says nothing of the images
    return Weights(
        path,
        config,
        reduction=DENSE,
        crop=public.preprocessing(name),
        averaged=averaged,
        names=imagenet_classes.names_of(name, config.num_classes),
        normalized=not size_alone or images.over(layout).mean is not None,
        tensors=checkpoint.tensors,
    )


def _without(config, fields):
    return dataclasses.replace(config, **dict.fromkeys(fields))


def stated(path: str | os.PathLike) -> ModelConfig:
    """What weights say of their model besides the shapes of their tensors.

    A weights file says it by its layout, by what it holds on its images, and by its
    name; NOTHING of a folder without a config.
    """
    path = hub.local(path)
    kind = hub.kind(path)
    if kind == "folder":
        return hub_configs.read(path).config
    if kind == "run":
        return runs.model_config(runs.read_config(path))
    checkpoint = read_weights(path)
    named = ModelConfig(name=registry.named(path))
    return checkpoint.images.over(checkpoint.config, named)


def normalization(path: str | os.PathLike) -> dict[str, tuple[float, ...]]:
    """{"mean", "std"} of the images of weights; {} where neither file nor name say.

    {} also of a folder that holds neither weights nor a run yet.
    """
    path = hub.local(path)
    empty = hub.kind(path) == "run" and not (path / runs.RUN_CONFIG).is_file()
    if not path.exists() or empty:
        return {}
    said = stated(path)
    values = registry.facts(said.name) | said.stated
    return {k: _channels(path, k, values[k]) for k in runs.IMAGENET if k in values}


def _channels(path, name, values):
    return channels(f"{path}: {name}", values, positive=name == "std")


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
    kind = hub.kind(path)
    if kind == "run":
        return runs.read_checkpoint(path, checkpoint, averaged)
    read_tensors = read_folder if kind == "folder" else read_weights
    return read_tensors(path, averaged).tensors


def fit(path, tensors, like, fresh=(), positions=None):
    """As `restore`, of tensors that have been read from `path`."""
    try:
        return convert.from_timm(tensors, like, fresh, positions)
    except InputError as error:
        path, remedy = hub.local(path), getattr(error, "fresh", ())
        raise convert.Misfit(f"{hub.kind(path)} {path}: {error}", remedy) from error


def restore(
    path: str | os.PathLike,
    like: Mapping[str, Any],
    fresh: Iterable[str] = (),
    checkpoint: str = "best",
    positions: Positions | None = None,
):
    """Variables of the shapes of `like` from whatever has weights.

    `fresh` names the parts that keep what `like` has for them; position embeddings are
    resized to `positions`. Misfit for anything else that is missing, left over or of
    another shape.
    """
    found = tensors(path, checkpoint)
    return fit(path, found, like, fresh, positions)
