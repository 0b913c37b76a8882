"""The public `load`: from a path to a model.

Location: what the path holds. Description: which model it is. Tensors: the stored
arrays, which correct the description. Pretrained: a model with its variables.
"""

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common.image_size import ImageSize, image_sides, patch_grid
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, timm_tensors
from imagepiece_jax.models.config import PROJECTION, SINGLE_LABEL, ViTConfig
from imagepiece_jax.models.create import build_model, log_reduction, make_execution
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.resize_positions import fit_positions
from imagepiece_jax.models.variables import (
    is_in_parts,
    variable_shapes,
    variables_digest,
)
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike
from imagepiece_jax.weights import folder_files, naming
from imagepiece_jax.weights.description import Description, describe_weights
from imagepiece_jax.weights.location import Location, locate_weights
from imagepiece_jax.weights.tensor_files import NamedArrays, read_state_dict

TRAINED_REDUCTION = "trained"  # the reduction of the training or of the saved model
HEAD_PARTS = ("head", "head_dist")  # parts to draw for a new number of classes
VARIABLE_COLLECTIONS = ("params", "batch_stats")
AVERAGES_KEY = "ema"  # of VARIABLE_COLLECTIONS averaged over steps, in a run's state


def load(
    weights: str | os.PathLike | Mapping[str, Any],
    reduction: ReductionLike = TRAINED_REDUCTION,
    *,
    config: ViTConfig | str | os.PathLike | None = None,
    image_size: ImageSize | None = None,
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
    location = locate_weights(weights, checkpoint, averaged)
    description = describe_weights(location, config)
    tensors, description = read_tensors(location, description)
    vit_config = _change_config(description, image_size, crop, num_classes)
    parts_to_draw: tuple[str, ...] = ()
    if vit_config.num_classes != description.config.num_classes:
        parts_to_draw = HEAD_PARTS
    elif class_names is None:
        class_names = description.class_names
    is_trained_reduction = reduction == TRAINED_REDUCTION
    if is_trained_reduction:
        reduction = description.reduction
    reduction = Reduction.read(reduction)
    execution = make_execution(vit_config, dtype or description.dtype, attention)
    try:
        model = build_model(vit_config, reduction, execution)
    except InputError as error:
        if not is_trained_reduction:  # the caller's mistake, not the file's
            raise
        raise InputError(f"{location.origin.title}: {error}") from error
    log_reduction(reduction, model)
    dense_tensors, selectors = timm_tensors.split_selectors(tensors)
    learned_selectors = dict(selectors)
    for part in description.untrained_parts:
        for name in timm_tensors.tensors_of_selector(part, selectors):
            learned_selectors.pop(name, None)
    model_tensors = dense_tensors | selectors
    make_variables = timm_tensors.make_own_variables
    if seed is not None:
        model_tensors = dense_tensors | learned_selectors
        parts_to_draw += timm_tensors.list_missing_selectors(model, model_tensors)
    elif is_trained_reduction and description.digest is None:
        # Only a saved folder holds selectors for several reductions: in other files
        # a foreign one is an error.
        make_variables = timm_tensors.make_variables
    trained_size = description.trained_size or vit_config.image_size
    trained_positions = None  # None: they are the model's
    if image_sides(vit_config.image_size) != image_sides(trained_size):
        trained_positions = tensors.get("pos_embed")
        model_tensors = fit_positions(model_tensors, vit_config, trained_size)
    # 0: a new head is drawn without a seed, too.
    variables, drawn_parts = make_variables(
        model, model_tensors, location.origin.title, parts_to_draw, seed or 0
    )
    params = variables["params"]
    untrained_parts = {*drawn_parts}
    for part in params:
        if is_in_parts(part, description.untrained_parts):
            untrained_parts.add(part)
    origin = dataclasses.replace(
        location.origin,
        name=location.origin.name or vit_config.name or "",
        license=description.license,
        image_size=trained_size,
        positions=trained_positions,
        # A file alone does not tell its training's reduction.
        reduction=description.reduction if location.file_names else None,
    )
    recovery = description.recovery
    # A drawn part has no learned values either: they belong to the part it replaces.
    pretrained = Pretrained(
        model,
        variables,
        class_names=class_names,
        recovery=recovery
        and recovery.without_parts({*parts_to_draw, *untrained_parts}),
        origin=origin.with_untrained(params, sorted(untrained_parts)),
        selectors=learned_selectors,
    )
    if num_classes is not None or seed is not None:
        pretrained.warn_of_untrained()
    # CLIP's towers have pre_norm, and a projection's tensors are like a classifier's.
    is_like_clip = vit_config.arch.pre_norm and vit_config.head.is_single_label
    if is_like_clip and not (pretrained.class_names or pretrained.untrained_kinds):
        warnings.warn(
            f"{pretrained!r}: the head is taken for a classifier; config.problem_type "
            "'projection' says that it is CLIP's projection",
            stacklevel=2,
        )
    if recovery is not None:
        recovery.log_unrecovered(model, pretrained.label)
    return pretrained


def _change_config(description, image_size, crop, num_classes):
    """Apply the caller's image size, crop and number of classes; None: no change."""
    config = description.config
    if image_size is None:
        image_size = config.image_size
    # From the trained size, because `at_size` checks a new size alone.
    trained_size = description.trained_size or config.image_size
    config = config.with_preprocessing(image_size=trained_size).at_size(image_size)
    if crop is not None:
        config = config.with_preprocessing(crop=crop)
    if num_classes is None or num_classes == config.num_classes:
        return config
    new_head = {"num_classes": num_classes, "problem_type": SINGLE_LABEL}
    return dataclasses.replace(config, **new_head)


def read_tensors(
    location: Location, description: Description
) -> tuple[NamedArrays, Description]:
    """Read all tensors that the model may need, and correct the description by them.

    Returns (tensors by timm's names, the description with a complete `recovery` and the
    `trained_size`).
    Raises InputError for tensors that contradict the files' config.
    """
    variant_tensors = {}
    if location.origin.run is not None:
        tensors = _read_run_tensors(location)
    else:
        weights = location.find_weights()
        model_key = location.origin.checkpoint
        tensors = naming.read_timm_tensors(weights, model_key, description.config)
        learned_tensors = {
            name: read_state_dict(location.path / name)
            for name in folder_files.LEARNED_FILES
            if name in location.file_names
        }
        tensors |= learned_tensors.get(folder_files.SELECTORS_FILE, {})
        variant_tensors = learned_tensors.get(folder_files.RECOVERED_FILE, {})
        if learned_tensors and description.digest is not None:
            if description.digest != variables_digest([tensors, variant_tensors]):
                subject = f"{location.origin.title}: {' or '.join(learned_tensors)}"
                raise InputError(f"{subject} belongs to other weights")
    description = _correct_description(description, tensors, location.origin.title)
    config = description.config
    recovery = description.recovery
    if recovery is not None:
        dense_shapes = variable_shapes(build_model(config))
        with folder_files.content_errors(location.path / folder_files.RECOVERED_FILE):
            recovery = recovery.with_tensors(variant_tensors, dense_shapes)
    class_names = description.class_names if config.num_classes else None
    if config.num_classes and class_names is None and not description.has_file_config:
        # Without a file that states classes, only a public name tells their names.
        class_names = registry.published_class_names(config.name, config.num_classes)
    return tensors, description._replace(class_names=class_names, recovery=recovery)


def _read_run_tensors(location):
    """Read a run's newest "best" or "latest" checkpoint, or its averages."""
    from imagepiece_jax.common import checkpoints  # an optional package

    origin = location.origin
    run_folder = location.path.resolve()
    # Only chosen keys are read, so the optimizer's state stays on disk.
    keys = (AVERAGES_KEY,) if origin.averaged else VARIABLE_COLLECTIONS

    def choose_variables(stored_state):
        if origin.averaged and not stored_state[AVERAGES_KEY]:
            raise InputError(f"run {run_folder} has no averages: its ema_decay is 0")
        return {key: stored_state[key] for key in keys}

    folder = run_folder / folder_files.CHECKPOINTS_FOLDER / str(origin.checkpoint)
    state, _, _ = checkpoints.read_newest_step(folder, choose_variables)
    # Averages have a key of their own; other variables are the state itself.
    return timm_tensors.to_timm(state.get(AVERAGES_KEY, state))


def _correct_description(description, tensors, title):
    """Correct the config by the tensors.

    Tensors decide the number of classes and whether DeiT's distillation token is a
    register. Unless the files state them, tensors also decide the positions' image size
    and a gated MLP's width.
    """
    config = description.config
    # np.zeros(()), without axes, stands for a tensor that the weights lack.
    head_weight = tensors.get("head.weight", np.zeros(()))  # [classes, D]
    num_classes = len(head_weight) if head_weight.ndim else 0
    if num_classes and description.has_file_config:
        config = dataclasses.replace(config, **description.head_fields)
    # A number of classes in the files must agree with the head.
    has_other_classes = config.num_classes not in (0, num_classes)
    if has_other_classes and description.has_file_config:
        subject = f"{title}: num_classes is {config.num_classes}"
        raise InputError(f"{subject}, but its tensors have {num_classes}")
    changes: dict[str, Any] = {"num_classes": num_classes}
    if config.name and has_other_classes and config.problem_type == PROJECTION:
        changes["problem_type"] = SINGLE_LABEL
    # Without a head of its own, DeiT's distillation token is a register.
    has_only_register = "reg_token" in tensors and "dist_token" not in tensors
    if config.arch.dist_token and has_only_register:
        register_fields = {"dist_token": False, "registers": 1}
        changes["arch"] = dataclasses.replace(config.arch, **register_fields)
    # timm's mlp_ratio counts both halves of a gated MLP; the tensors tell the width.
    fc2_weight = tensors.get("blocks.0.mlp.fc2.weight", np.zeros(()))  # [D, width]
    has_gated_mlp = config.arch.mlp == "swiglu" and fc2_weight.ndim == 2
    if has_gated_mlp and not description.has_file_config:
        changes["mlp_ratio"] = fc2_weight.shape[1] / config.embed_dim
    config = dataclasses.replace(config, **changes)
    trained_size = description.trained_size or config.image_size
    positions = tensors.get("pos_embed")  # [1, positions, D]
    has_fixed_size = description.has_file_config and description.trained_size is None
    if not has_fixed_size and positions is not None and positions.ndim == 3:
        num_positions = positions.shape[1]
        if config.arch.prefix_positions:
            num_positions -= config.arch.prefix
        # Positions of another grid than the config's are taken for a square's.
        grid = patch_grid(trained_size, config.patch_size, cut=True)
        side = math.isqrt(max(0, num_positions))
        if num_positions != math.prod(grid) and side * side == num_positions:
            trained_size = side * config.patch_size
    if description.trained_size is None:
        config = config.with_preprocessing(image_size=trained_size)
    return description._replace(config=config, trained_size=trained_size)
