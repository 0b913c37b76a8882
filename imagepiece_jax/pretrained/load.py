"""From a path to a model: the public `load`.

`read_description` reads names and configs; `load_as` finds out which model it is, and
makes the Pretrained. Each field of the config comes from shapes of tensors, the layout
of a file, a config.json, a name, or the caller, who may change some fields, but none
that the weights decide.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from imagepiece_jax.data.preprocessing import Preprocessing, read_fields
from imagepiece_jax.errors import InputError, check_names, short_traceback, within
from imagepiece_jax.models import convert, positions, registry
from imagepiece_jax.models.config import ModelConfig
from imagepiece_jax.models.pretrained import Pretrained, Source, digests
from imagepiece_jax.models.problem import SINGLE_LABEL
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.pretrained import hub, hub_configs, layouts, runs
from imagepiece_jax.pretrained.description import Description
from imagepiece_jax.pretrained.hub import CONFIG
from imagepiece_jax.pretrained.infer import (
    NOTHING,
    infer_weights,
    partial_config,
    placed,
)
from imagepiece_jax.pretrained.layouts import Contents
from imagepiece_jax.pretrained.timm_config import published_class_names
from imagepiece_jax.reduction.settings import Reduction

HEADS = ("head", "head_dist")  # parts that a new number of classes makes anew


@short_traceback
def load(
    path: str | os.PathLike,
    *,
    reduction: Reduction = None,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    problem_type: str | None = None,
    seed: int | None = None,
    **changes: Any,
) -> Pretrained:
    """A trained model, from the path of its weights.

    path: a weights file (.npz, .safetensors, .pth); a folder with config.json and
        weights, as timm, transformers and `save` write it; the folder of a run; or an
        id of the Hugging Face hub, "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION",
        whose files are fetched once into huggingface_hub's cache
    reduction: a share of the dense model's MACs, such as 0.5, which the recommended
        method gets; a method's name, of which "none" is the dense model; or a dict,
        such as {"name": "evit", "keep_rate": 0.7}; None: the reduction of the run, or
        of the folder that `save` wrote
    checkpoint: of a run, "best" or "latest"
    averaged: take the weights averaged over the training's steps, which a run has
        (config.ema_decay), and a .pth file that timm or DeiT's code saved in training
    num_classes: another number than the weights' gives a new head, which is drawn; 0
        leaves the head out
    class_names: instead of the weights' own
    preprocessing: fields instead of the weights' own, such as {"crop": 0.9}
    problem_type: what the logits mean, by transformers' names, instead of what the
        weights say: "single_label_classification", which is theirs where they say
        nothing, "multi_label_classification" or "regression"
    seed: of parts that are drawn; selectors that the reduction learns and the weights
        lack are drawn where it is given, and refused where it is None
    changes: fields of a ModelConfig, and parts of an Architecture, that differ, such as
        image_size, to which positions are resized, gelu or dtype; and those that
        neither tensors nor a config nor the file's name show: name, or num_heads, mean,
        std, norm_eps, gelu, resize, pool and others, for which the error asks. What a
        dict `arch` does not say is as the name has it, or DeiT
    Raises InputError for a field that contradicts the weights, and for weights that do
        not say which model they are.
    """
    check_names(
        changes, dict.fromkeys([*load.__wrapped__.__kwdefaults__, *ModelConfig.names()])
    )
    requested = ModelConfig.of(changes)
    if changes.get("arch"):
        requested = requested.with_all_parts()
    found = hub.existing(path)
    if checkpoint != "best" and hub.kind(found) != "run":
        raise InputError(
            f"is {checkpoint!r}, but {Description(found)} is no run",
            field="checkpoint",
            value=checkpoint,
            allowed="'best'",
        )
    vit = load_as(
        path,
        requested,
        reduction=reduction,
        checkpoint=checkpoint,
        averaged=averaged,
        num_classes=num_classes,
        class_names=class_names,
        preprocessing=preprocessing,
        problem_type=problem_type,
        seed=seed,
    )
    if num_classes is not None or seed is not None:
        vit.warn_of_untrained(stacklevel=3)  # behind short_traceback
    vit.warn_of_recovery(stacklevel=3)
    return vit


def load_as(
    path: str | os.PathLike,
    requested: ModelConfig = NOTHING,
    *,
    reduction: Reduction = None,
    checkpoint: str = "best",
    averaged: bool = False,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    problem_type: str | None = None,
    seed: int | None = None,
    abstract: bool = False,
    otherwise: ModelConfig = NOTHING,
    contents: Contents | None = None,
) -> Pretrained:
    """As `load`, which has the other arguments; only of a run `checkpoint` counts.

    requested: fields that the caller adds or changes
    otherwise: fields that hold where nothing else says them
    contents: of the path, where they are read already
    abstract: variables are shapes and types; no values of a run are read
    """
    description = read_description(path)
    if contents is None and description.run is None:
        # Tensors show the sizes that a run's config says.
        contents = read_contents(description, checkpoint, averaged)
    trained = trained_config(description, contents, requested, otherwise)
    place = str(description)
    is_folder = description.path.is_dir()
    config = trained.changed(requested, place, is_folder)  # a name stands for its sizes
    names = _class_names(description, contents, requested, trained)
    problem = description.problem_type
    new_head = num_classes not in (None, config.num_classes)
    if new_head:
        config = dataclasses.replace(config, num_classes=num_classes)
        names = None
        problem = SINGLE_LABEL
    used = description.reduction if reduction is None else reduction
    if reduction is None and requested.prop_attn is not None:
        used = {**used, "prop_attn": requested.prop_attn}
    with within(place=place if used == description.reduction else ""):
        used = config.reduction_at_cost(used)
        model = config.create(used)
    if preprocessing is None:
        preprocessing = trained_crop(description, requested)
    source = Source(
        path=description.path,
        place=place,
        name=hub.short_name(description.path),
        config=config,
        image_size=trained.image_size,
        reduction=description.reduction if is_folder else None,
        run=description.run,
        checkpoint=None if description.run is None else checkpoint,
        averaged=averaged,
        seed=description.seed,
        normalized=_is_normalized(description, contents, requested),
        has_names_of_data=description.own or description.run is not None,
    )
    facts = {
        "preprocessing": Preprocessing.from_fields(config.image_size, preprocessing),
        "class_names": names if class_names is None else class_names,
        "problem_type": problem if problem_type is None else problem_type,
        "name": None if config.name in registry.MODELS else config.name,
        "recovery": description.recovery,
        "source": source,
    }
    if abstract:
        variables = variable_shapes(model, config.image_size)
        return Pretrained(model, variables, **facts)
    if contents is None:
        contents = read_contents(description, checkpoint, averaged)
    if description.run is None:
        contents = contents._replace(tensors=placed(contents, trained))
    learned = _learned(contents, description.untrained)
    fresh = HEADS if new_head else ()
    if seed is not None:
        like = variable_shapes(model, config.image_size)
        fresh = (*fresh, *convert.lacking_selectors(learned, like))
    variables, drawn = convert.model_variables(
        model,
        config.image_size,
        positions.fit(contents.tensors, model, config.image_size, trained.image_size),
        place,
        fresh=fresh,
        seed=seed or 0,
        exact=reduction is None and seed is None,
    )
    for part in variables["params"]:
        if part not in drawn and convert.matches(part, description.untrained):
            drawn.append(part)
    return Pretrained(
        model,
        variables,
        selectors=learned,
        projector=contents.projector,
        drawn=digests(variables, drawn),
        **facts,
    )


def read_description(path: str | os.PathLike) -> Description:
    """What names and configs at a path say; no tensor is read.

    A file named after a known model, such as deit_tiny_patch16_224.pth, is one unless
    the caller names another.
    Raises InputError where there are no weights.
    """
    path = hub.existing(path)
    kind = hub.kind(path)
    if kind == "weights file":
        return Description(path, ModelConfig(name=registry.name_of_file(path)))
    if kind == "folder":
        return hub_configs.read(path)
    run = runs.read_config(path)
    return Description(
        path,
        config=runs.full_config(run),
        reduction=runs.reduction_of(run),
        crop=read_fields(run.get("data", {})),
        class_names=runs.read_class_names(path, run["num_classes"]),
        run=run,
        seed=run.get("seed", 0),
    )


def read_contents(
    description: Description, checkpoint: str = "best", averaged: bool = False
) -> Contents:
    """What the files at the path hold; arguments as of `load`."""
    path = description.path
    if description.run is not None:
        return Contents(runs.read_checkpoint(path, checkpoint, averaged), NOTHING)
    if path.is_dir():
        return layouts.read_folder(path, averaged, description.tower)
    return layouts.read_weights(path, averaged)


def trained_config(
    description: Description,
    contents: Contents | None,
    requested: ModelConfig,
    otherwise: ModelConfig = NOTHING,
) -> ModelConfig:
    """All fields of the model that weights were trained as.

    contents: None for a run, whose config has them
    requested: fields that the caller adds or changes
    otherwise: fields that hold where nothing else says them
    Raises InputError where no source says which model this is, where a config.json
        contradicts the tensors, and where `requested` contradicts either.
    """
    if description.run is not None:
        return description.config
    place = str(description)
    with within(place=place):
        config = infer_weights(description, contents, requested, otherwise)
    file = CONFIG
    if description.path.is_dir():
        file = hub.config_file(description.path).name
    for field, value in description.sizes.items():
        theirs = getattr(config, field)
        if value != theirs:
            facts = {"value": value, "allowed": "files of one model"}
            raise InputError(
                f"is {value!r}, but its tensors have {theirs!r}",
                field=field,
                place=f"{place}, {file}",
                **facts,
            )
    return dataclasses.replace(config, dtype=description.config.dtype)


def trained_crop(description: Description, requested: ModelConfig) -> Mapping[str, Any]:
    """Fields of the Preprocessing that weights were trained with.

    Their run or their folder states it, or it is published for their name.
    """
    if description.crop or description.run is not None:
        return description.crop
    named = description.config.name
    if requested.name and not description.path.is_dir():
        named = requested.name
    return registry.published_crop(named or requested.name)


def _only_sizes(description, requested):
    """Whether a name says nothing of the images, as those of registry.MODELS."""
    return requested.name in registry.MODELS and not description.path.is_dir()


def _class_names(description, contents, requested, trained):
    """Names by label: the weights' own, or those of their public name."""
    if description.path.is_dir():
        return description.class_names
    named = trained.name
    if _only_sizes(description, requested):
        named = partial_config(description, contents).name
    return published_class_names(named, trained.num_classes)


def _is_normalized(description, contents, requested):
    """Whether weights or caller say mean and std."""
    if requested.mean is not None or not _only_sizes(description, requested):
        return True
    return partial_config(description, contents).mean is not None


def _learned(contents, untrained):
    """Tensors of selectors, by timm's names, that training has made."""
    if any(part.startswith(convert.SELECTOR) for part in untrained):
        return {}
    start = f"{convert.SELECTOR}."
    return {k: v for k, v in contents.tensors.items() if k.startswith(start)}


def unknown_normalization(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not say how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )
