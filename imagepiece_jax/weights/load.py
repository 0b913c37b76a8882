"""The public `load`: from a path to a model.

The config comes from the caller, a public name or the files beside the weights. Tensors
get timm's names, correct the config (`of_tensors`) and fill the model.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.warning import warn_caller
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import (
    reduction_plan,
    registry,
    resize_positions,
    timm_tensors,
)
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model, make_execution
from imagepiece_jax.models.pretrained import Pretrained, WeightsSource, digests
from imagepiece_jax.models.problem_type import PROJECTION, SINGLE_LABEL
from imagepiece_jax.models.recovery_record import Recovery
from imagepiece_jax.models.variables import is_in_parts, variables_digest
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike
from imagepiece_jax.weights import config_json, hub, layouts, location, runs
from imagepiece_jax.weights.config_json import WeightsInfo
from imagepiece_jax.weights.file_names import (
    BESIDE,
    CONFIG,
    OPEN_CLIP,
    OURS,
    RECOVERED,
    SELECTORS,
)
from imagepiece_jax.weights.location import Location
from imagepiece_jax.weights.run_files import KINDS, check_normalization
from imagepiece_jax.weights.tensor_files import read_state_dict

TRAINED = "trained"  # the reduction of the training or of the saved model
HEADS = ("head", "head_dist")  # parts to draw for a new number of classes


def load(
    weights: str | os.PathLike | Mapping[str, Any],
    reduction: ReductionLike = TRAINED,
    *,
    config: ViTConfig | str | os.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: str | None = None,
    attention: str = "auto",
    checkpoint: str | None = None,
    averaged: bool = False,
    crop: float | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    seed: int | None = None,
) -> Pretrained:
    """Load a trained model from the path of its weights, or from a state dict.

    weights: a file (.npz, .safetensors, .pth); a folder with config.json and weights
        from timm, transformers or `save`; a run's folder; a Hugging Face hub id,
        "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION", fetched once into
        huggingface_hub's cache; or a state dict {name: array or torch tensor}, which
        needs `config`
    reduction: a share of the dense model's MACs for the recommended method, such as
        0.5; a method with its fields, such as "evit:keep_rate=0.7"; None or "none": the
        dense model; "trained": the reduction of the training or the saved model
    config: a ViTConfig, or an argument of `read_config`; None: from the files, or from
        the file's own name if it is a public name
    image_size: pixels a side, or (height, width); positions are resized
    dtype: of layers; None: the run's or the saved model's, else "float32"
    attention: "xla", "cudnn" or "auto"
    checkpoint: "best" (default) or "latest" of a run; the key of a model in a file with
        several models, such as "teacher"
    averaged: take a run's weights averaged over its steps (config.ema_decay)
    crop: share of an image's sides kept in evaluation; None: the config's
    num_classes: a number other than the weights' draws a new head; 0 removes the head
    class_names: replace the weights' own
    seed: for drawn parts. With a seed, learned selectors that the weights lack are
        drawn; without a seed they are refused
    Raises InputError for weights without a known config, and for tensors that do not
        match the config.
    """
    source = _location(weights, config)
    if source.kind == location.RUN:
        checkpoint = checkpoint or "best"
        check_choice("checkpoint", checkpoint, KINDS)
    elif checkpoint in KINDS:
        raise InputError(f"checkpoint is {checkpoint!r}, but {source.title} is no run")
    described = weights_info(source, config)
    tensors, recovered = _read(source, described, checkpoint, averaged)
    trained = of_tensors(source, described, tensors)
    vit_config = _changed(trained, described, image_size, crop, num_classes)
    new_head = vit_config.num_classes != trained.num_classes
    if class_names is None and not new_head:
        class_names = _class_names(trained, described)
    execution = make_execution(vit_config, dtype or described.dtype, attention)
    as_trained = reduction == TRAINED
    chosen_reduction = Reduction.read(described.reduction if as_trained else reduction)
    try:
        model = build_model(vit_config, chosen_reduction, execution)
    except InputError as error:
        if not as_trained:  # the caller's mistake, not the file's
            raise
        raise InputError(f"{source.title}: {error}") from error
    reduction_plan.print_reduction(chosen_reduction, model)
    dense, learned = _dense_and_learned(tensors, described)
    trained_tensors = dense | learned
    model_tensors, fresh_selectors = _with_selectors(
        model, tensors, trained_tensors, source, described, as_trained, seed
    )
    if image_sides(vit_config.image_size) != image_sides(trained.image_size):
        model_tensors = resize_positions.fit_positions(
            model_tensors, vit_config, trained.image_size
        )
    fresh_head = HEADS if new_head else ()
    fresh = (*fresh_head, *fresh_selectors)
    variables, drawn = timm_tensors.model_variables(
        model, model_tensors, source.title, fresh=fresh, seed=seed or 0
    )
    untrained = _untrained(variables, drawn, described)
    skipped = (*fresh, *untrained)
    vit = Pretrained(
        model,
        variables,
        class_names=class_names,
        recovery=_recovery(source, described, recovered, variables, skipped),
        source=WeightsSource(
            path=source.path,
            kind=source.kind,
            name=source.name or vit_config.name or "",
            license=described.license,
            image_size=trained.image_size,
            reduction=_trained_reduction(source, described),
            checkpoint=checkpoint,
            averaged=averaged,
            run=source.config if source.kind == location.RUN else None,
            untrained=digests(variables, untrained),
        ),
        selectors=learned,
    )
    is_clip = vit.config.arch.pre_norm and vit.is_single_label
    if is_clip and not vit.class_names and not vit.untrained:
        warn_caller(
            f"{vit!r}: the head is taken for a classifier; config.problem_type "
            "'projection' says that it is CLIP's projection"
        )
    if num_classes is not None or seed is not None:
        vit.warn_of_untrained()
    vit.say_dense_values()
    return vit


def _location(weights, config):
    """Find the weights: on this machine, or a state dict in memory."""
    if not isinstance(weights, Mapping):
        return location.find(weights, may_be_broken=config is not None)
    if config is None:
        raise InputError("config is missing: a state dict does not say its model")
    return Location(None, location.STATE_DICT, tensors=weights)


def _changed(trained, described, image_size, crop, num_classes):
    """Apply the caller's image size, crop and number of classes to a config."""
    config = trained
    if image_size is None and described.trained_size is not None:
        image_size = described.config.image_size
    if image_size is not None:
        config = config.at_size(image_size)
    if crop is not None:
        config = config.with_preprocessing(crop=crop)
    if num_classes in (None, trained.num_classes):
        return config
    return dataclasses.replace(
        config, num_classes=num_classes, problem_type=SINGLE_LABEL
    )


def _class_names(trained, described):
    """Return the class names of the weights' own head; None if unknown."""
    if not trained.num_classes:
        return None
    # Without a file that states classes, only a public name tells their names.
    if described.class_names is None and not described.stated:
        return registry.published_class_names(trained.name, trained.num_classes)
    return described.class_names


def _with_selectors(
    model, tensors, trained_tensors, source, described, as_trained, seed
):
    """Choose the model's selectors: (tensors, selectors to draw).

    trained_tensors: without untrained selectors, which a seed draws again
    """
    # A saved folder may hold selectors for several reductions.
    if seed is not None:
        return timm_tensors.own_selectors(model, trained_tensors, source.title, None)
    if not as_trained or described.digest is not None:
        return timm_tensors.own_selectors(model, tensors, source.title)
    return tensors, ()


def _dense_and_learned(tensors, described):
    """Split tensors into (dense model, selectors without untrained ones)."""
    dense, selectors = timm_tensors.split_selectors(tensors)
    untrained = tuple([f"{part.replace('_', '.')}." for part in described.untrained])
    learned = {k: v for k, v in selectors.items() if not k.startswith(untrained)}
    return dense, learned


def _untrained(variables, drawn, described):
    """List the drawn parts, then the other parts that the files call untrained."""
    untrained = [*drawn]
    for part in variables["params"]:
        if part not in drawn and is_in_parts(part, described.untrained):
            untrained.append(part)
    return untrained


def _trained_reduction(source, described):
    """Return the training's reduction; a file alone does not tell it."""
    if source.kind in (location.FILE, location.STATE_DICT):
        return None
    return described.reduction


def read_config(config: str | os.PathLike) -> ViTConfig:
    """Read a public model's config, or the config files beside weights.

    config: a public name, such as "deit_tiny_patch16_224.fb_in1k"; a config.json of
        timm, transformers, `save` or a run; an open_clip_config.json; or a folder with
        such a file
    """
    name = os.fspath(config)
    if registry.is_known(name):
        return registry.model_config(name)
    if not location.exists(os.path.expanduser(name)):
        names = registry.suggest_names(name)
        raise InputError(
            f"config is {name!r}, which is neither a model name nor a file; {names}"
        )
    folder, file = os.path.split(name)
    if file not in (CONFIG, OPEN_CLIP):
        source = location.find(name)
    elif hub.is_id(name):
        source = location.find(folder)
    else:
        source = location.of_config(name)
    return weights_info(source).config


def weights_info(source: Location, config=None) -> WeightsInfo:
    """Collect the facts about weights from their files and the caller's `config`.

    Raises InputError if nothing tells which model the weights are.
    """
    if config is not None and not isinstance(config, ViTConfig):
        config = read_config(config)
    if source.kind == location.RUN:
        described = runs.read(source)
    elif source.config_file is not None:
        described = _of_files(source, config)
    else:
        return WeightsInfo(config or _config_of_file(source), stated=False)
    if config is not None:
        described = described._replace(config=config, stated=False, trained_size=None)
    return described


def _of_files(source, config):
    """Read the files beside a folder's weights."""
    # The caller's config replaces a config.json of `save` that is broken or from
    # another version, with a warning.
    try:
        return config_json.read(source, config is not None)
    except InputError as error:
        if config is None or OURS not in (source.config or {OURS}):
            raise
        warn_caller(f"{error}; the file is ignored, because config describes the model")
        return WeightsInfo(config, stated=False)


def _config_of_file(source):
    """Find the config by a file's own name, if it is the name of a public model."""
    if source.kind == location.FILE:
        name = registry.model_in_file_name(source.path)
        if name is not None:
            return registry.model_config(name)
    remedy = (
        "load(.., config=NAME) or --config NAME, such as deit_ti, says which model it "
        "is, and save keeps that beside the weights"
    )
    if (source.path.parent / CONFIG).is_file():
        remedy = f"its folder, {source.path.parent}, has a {CONFIG}, so load that"
    raise InputError(
        f"{source.title} has no {CONFIG} and no public model's name; {remedy}"
    )


def _read(source, described, checkpoint, averaged):
    """Read (tensors by timm's names, tensors of recovered variants) at a Location."""
    config = described.config
    if source.kind == location.RUN:
        tensors, facts = runs.read_checkpoint(source.path, checkpoint, averaged)
        check_normalization(source.path, vars(config), facts)
        return tensors, {}
    if averaged:
        raise InputError(
            f"averaged is for a run, but this is {source.title}; in a file, checkpoint "
            "is the key of the averages"
        )
    file = source.path or source.tensors
    if source.kind == location.FOLDER:
        file = source.weights_file()
    tensors = layouts.read_weights(file, checkpoint, config)
    beside = [name for name in BESIDE if name in source.names]
    read = {name: read_state_dict(source.path / name) for name in beside}
    tensors |= read.get(SELECTORS, {})
    recovered = read.get(RECOVERED, {})
    if beside and described.digest not in (
        None,
        variables_digest([tensors, recovered]),
    ):
        raise InputError(
            f"{source.title}: {' or '.join(beside)} belongs to another model than the "
            "weights"
        )
    return tensors, recovered


def of_tensors(
    source: Location, described: WeightsInfo, tensors: Mapping[str, np.ndarray]
) -> ViTConfig:
    """Correct a config by its tensors.

    Tensors decide the number of classes and whether DeiT's distillation token is a
    register. Unless the files state them, tensors also decide the positions' image size
    and a gated MLP's width.
    """
    config = described.config
    arch = config.arch
    head = tensors.get("head.weight")
    classes = len(head) if np.ndim(head) else 0
    if classes and described.stated:
        config = dataclasses.replace(config, **described.of_head)
    # A number of classes in the files must agree with the head.
    stated = config.num_classes
    if stated and stated != classes and described.stated:
        raise InputError(
            f"{source.title}: num_classes is {stated}, but its tensors have {classes}"
        )
    changes = {"num_classes": classes}
    is_other_head = config.name and config.num_classes not in (0, classes)
    if is_other_head and config.problem_type == PROJECTION:
        changes["problem_type"] = SINGLE_LABEL
    # Without a head of its own, DeiT's distillation token is a register.
    if arch.dist_token and "reg_token" in tensors and "dist_token" not in tensors:
        changes["arch"] = dataclasses.replace(arch, dist_token=False, registers=1)
    # timm's mlp_ratio counts both halves of a gated MLP; the tensors tell the width.
    last_layer = tensors.get("blocks.0.mlp.fc2.weight")
    if not described.stated and arch.mlp == "swiglu" and np.ndim(last_layer) == 2:
        changes["mlp_ratio"] = last_layer.shape[1] / config.embed_dim
    size = described.trained_size or config.image_size
    config = dataclasses.replace(config, **changes).with_preprocessing(image_size=size)
    positions = tensors.get("pos_embed")
    fixed = described.stated and described.trained_size is None
    if fixed or positions is None or positions.ndim != 3:
        return config
    rows = positions.shape[1]
    if config.arch.prefix_positions:
        rows -= config.arch.prefix
    # Positions of another grid than the config's are taken for a square's.
    side = math.isqrt(max(0, rows))
    if rows != math.prod(config.grid) and side * side == rows:
        size = side * config.patch_size
    return config.with_preprocessing(image_size=size)


def _recovery(source, described, recovered, variables, drawn):
    """Fill the files' Recovery with its parameters; None without a recovery.

    recovered: {"INDEX.NAME": tensor}, where INDEX counts the variants
    variables: of the dense model
    drawn: parts to skip, because they were drawn or left out
    """
    if described.recovery is None:
        return None
    file = f"weights file {source.path / RECOVERED}"
    variants = []
    for index, variant in enumerate(described.recovery.variants):
        start = f"{index}."
        tensors = {}
        for name, tensor in recovered.items():
            if name.startswith(start):
                tensors[name.removeprefix(start)] = tensor
        if not tensors and variant.changed:
            raise InputError(f"{file} has no values for {variant.name}")
        try:
            params = timm_tensors.values_from_timm(tensors, variables, drawn)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        variants.append(dataclasses.replace(variant, values=params))
    return Recovery(tuple(variants))
