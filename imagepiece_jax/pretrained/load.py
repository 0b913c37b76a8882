"""From a path to a model: the public `load`.

`read_metadata` reads names and configs, `complete` finds out which model it is, and
`build` makes the Pretrained. Each field of the config comes from shapes of tensors, the
layout of a file, a config.json, a name, or the caller, who may change some fields, but
none that the weights decide.
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagepiece_jax.data.preprocessing import Preprocessing, read_fields
from imagepiece_jax.errors import InputError, check_names, short_traceback, within
from imagepiece_jax.models import convert, registry
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.pretrained import Pretrained, digests
from imagepiece_jax.models.problem import SINGLE_LABEL
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.pretrained import hub, hub_configs, runs
from imagepiece_jax.pretrained.hub import CONFIG
from imagepiece_jax.pretrained.infer import infer_weights, placed
from imagepiece_jax.pretrained.timm_config import published_class_names
from imagepiece_jax.pretrained.weights import NOTHING, Metadata, Weights

HEADS = ("head", "head_dist")  # parts that a new number of classes makes anew


@short_traceback
def load(
    path: str | os.PathLike,
    *,
    reduction: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    problem_type: str | None = None,
    seed: int = 0,
    **changes: Any,
) -> Pretrained:
    """A trained model, from the path of its weights.

    path: a weights file (.npz, .safetensors, .pth); a folder with config.json and
        weights, as timm, transformers and `save` write it; the folder of a run; or an
        id of the Hugging Face hub, "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION",
        whose files are fetched once into huggingface_hub's cache
    reduction: such as {"name": "evit", "keep_rate": 0.7}; {"name": "none"} is the dense
        model; None: the reduction of the run, or of the folder that `save` wrote
    checkpoint: of a run, "best" or "latest"
    averaged: take the weights averaged over the training's steps, which a run has
        (config.ema_decay), and a .pth file that timm or DeiT's code saved in training
    num_classes: another number than the weights' gives a new head, drawn from `seed`;
        0 leaves the head out
    class_names: instead of the weights' own
    preprocessing: fields instead of the weights' own, such as {"crop": 0.9}
    problem_type: what the logits mean, by transformers' names, instead of what the
        weights say: "single_label_classification", which is theirs where they say
        nothing, "multi_label_classification" or "regression"
    changes: fields of a ModelConfig that differ, such as image_size, to which positions
        are resized, gelu or dtype; and those that neither tensors nor a config nor the
        file's name show: name, or num_heads, mean, std, norm_eps, gelu, resize, pool
        and others, for which the error asks
    Raises InputError for a field that contradicts the weights, and for weights that do
        not say which model they are.
    """
    check_names(
        changes, dict.fromkeys([*load.__wrapped__.__kwdefaults__, *ModelConfig.names()])
    )
    requested, fresh = ModelConfig(**changes), ()
    weights = read(path, requested, checkpoint, averaged)
    if weights.run is None and checkpoint != "best":
        field, problem = "checkpoint", f"is {checkpoint!r}, but {weights} is no run"
        raise InputError(problem, field=field, value=checkpoint, allowed="'best'")
    if num_classes not in (None, weights.config.num_classes):
        config = dataclasses.replace(weights.config, num_classes=num_classes)
        head = {"class_names": None, "problem_type": SINGLE_LABEL}
        weights = dataclasses.replace(weights, config=config, **head)
        fresh = HEADS
    given = {"class_names": class_names, "crop": preprocessing}
    given["problem_type"] = problem_type
    given = {name: value for name, value in given.items() if value is not None}
    vit = build(dataclasses.replace(weights, **given), reduction, fresh, seed)
    if fresh:
        vit.warn_of_untrained(stacklevel=3)
    return vit


def read(
    path: str | os.PathLike,
    requested: ModelConfig = NOTHING,
    checkpoint: str = "best",
    averaged: bool = False,
) -> Weights:
    """`complete` weights at a path, with arguments of `load`."""
    return complete(read_metadata(path, checkpoint, averaged), requested)


def read_metadata(
    path: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> Metadata:
    """Metadata by names and configs at a path, with arguments of `load`.

    No tensor is read. A file named after a known model, such as
    deit_tiny_patch16_224.pth, is one unless the caller names another.
    Raises InputError where there are no weights.
    """
    path = hub.existing(path)
    kind = hub.kind(path)
    if kind == "weights file":
        name = registry.name_of_file(path)
        return Metadata(path, ModelConfig(name=name), averaged=averaged)
    if kind == "folder":
        return Metadata(averaged=averaged, **vars(hub_configs.read(path)))
    run = runs.read_config(path)
    return Metadata(
        path,
        config=runs.full_config(run),
        reduction=runs.reduction_of(run),
        crop=read_fields(run.get("data", {})),
        class_names=runs.read_class_names(path, run["num_classes"]),
        run=run,
        checkpoint=checkpoint,
        averaged=averaged,
        seed=run.get("seed", 0),
    )


def complete(metadata: Metadata, requested: ModelConfig = NOTHING) -> Weights:
    """Weights with the full config of their model.

    requested: fields that the caller adds or changes
    Raises InputError where no source says which model this is, where a config.json
        contradicts the tensors, and where `requested` contradicts either.
    """
    found = {} if metadata.run is not None else _inferred(metadata, requested)
    trained = Weights(**vars(metadata) | found)
    if requested.mean is not None:
        trained = dataclasses.replace(trained, normalized=True)
    reduction = trained.reduction
    if requested.prop_attn is not None:
        reduction = {**reduction, "prop_attn": requested.prop_attn}
    folder = metadata.path.is_dir()  # there a name stands for its sizes, too
    config = trained.config.changed(requested, str(metadata), folder)
    return dataclasses.replace(
        trained, config=config, reduction=reduction, trained=trained
    )


def _inferred(metadata, requested):
    """Fields of Weights that tensors, names and the caller say together."""
    partial, place = metadata.partial_config, str(metadata)
    with within(place=place):
        config = infer_weights(metadata, requested)
    with within(place=f"{place}, {_config_name(metadata)}"):
        for field, value in metadata.sizes.items():
            if value != (theirs := getattr(config, field)):
                problem = f"is {value!r}, but its tensors have {theirs!r}"
                allowed = "files of one model"
                raise InputError(problem, field=field, value=value, allowed=allowed)
    contents = metadata.contents
    contents = contents._replace(tensors=placed(contents, config))
    found = {
        "config": dataclasses.replace(config, dtype=metadata.config.dtype),
        "crop": metadata.crop or registry.published_crop(config.name),
        "cache": {"contents": contents},
    }
    if metadata.path.is_dir():
        return found
    only_size = requested.name in registry.MODELS  # which says nothing of the images
    named = partial.name if only_size else config.name
    return found | {
        "class_names": published_class_names(named, config.num_classes),
        "normalized": not only_size or partial.mean is not None,
    }


def _config_name(metadata):
    path = metadata.path
    return hub.config_file(path).name if path.is_dir() else CONFIG


def build(
    weights: Weights,
    reduction: Mapping[str, Any] | None = None,
    fresh: Iterable[str] | None = None,
    seed: int | None = None,
) -> Pretrained:
    """The model and its variables with a reduction; None: with the weights' own.

    fresh: parts to draw, even if weights have them; None: selectors that they lack
    seed: of parts that are drawn; None: the training's
    """
    config, used = weights.config, weights.reduction if reduction is None else reduction
    own = used == weights.as_trained.reduction
    with within(place=weights if own else ""):
        model = config.create(used)
    variables, drawn = weights.variables_and_drawn(
        model,
        fresh=fresh,
        seed=weights.seed if seed is None else seed,
        exact=fresh is not None and reduction is None,
    )
    parts = variables["params"]
    before = weights.untrained
    drawn = [part for part in parts if part in drawn or convert.matches(part, before)]
    return Pretrained(
        model,
        variables,
        reduction=used,
        preprocessing=Preprocessing.of(config.image_size, weights.crop),
        class_names=weights.class_names,
        problem_type=weights.problem_type,
        name=None if config.name in registry.MODELS else config.name,
        origin=weights,
        selectors=_learned(weights),
        projector=weights.contents.projector,
        drawn=digests(variables, drawn),
        recovery=weights.recovery,
    )


def _learned(weights):
    """Tensors of selectors, by timm's names, that training has made."""
    if any(part.startswith(convert.SELECTOR) for part in weights.untrained):
        return {}
    start = f"{convert.SELECTOR}."
    return {k: v for k, v in weights.tensors.items() if k.startswith(start)}


def lacks_selectors(weights: Weights, reduction: Mapping[str, Any]) -> bool:
    """Whether `reduction` has selectors that the weights have not learned."""
    like = variable_shapes(weights.config.create(reduction), weights.config.image_size)
    return bool(convert.lacking_selectors(_learned(weights), like))


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )
