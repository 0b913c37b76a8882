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
from imagepiece_jax.models import registry, resize_positions, timm_tensors
from imagepiece_jax.models.config import PROJECTION, SINGLE_LABEL, ViTConfig
from imagepiece_jax.models.create import build_model, log_reduction, make_execution
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import (
    is_in_parts,
    variable_shapes,
    variables_digest,
)
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike
from imagepiece_jax.weights import description, folder_files, naming
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
    facts = description.describe_weights(location, config)
    tensors, facts = read_tensors(location, facts)
    vit_config = _change_config(facts, image_size, crop, num_classes)
    fresh_parts: tuple[str, ...] = ()
    if vit_config.num_classes != facts.config.num_classes:
        fresh_parts = HEAD_PARTS
    elif class_names is None:
        class_names = facts.class_names
    keeps_reduction = reduction == TRAINED_REDUCTION
    reduction = Reduction.read(facts.reduction if keeps_reduction else reduction)
    execution = make_execution(vit_config, dtype or facts.dtype, attention)
    try:
        model = build_model(vit_config, reduction, execution)
    except InputError as error:
        if not keeps_reduction:  # the caller's mistake, not the file's
            raise
        raise InputError(f"{location.origin.title}: {error}") from error
    log_reduction(reduction, model)
    dense_tensors, selectors = timm_tensors.split_selectors(tensors)
    untrained = tuple(f"{part.replace('_', '.')}." for part in facts.untrained_parts)
    learned_selectors = {
        k: v for k, v in selectors.items() if not k.startswith(untrained)
    }
    model_tensors = dense_tensors | selectors
    make_variables = timm_tensors.make_own_variables
    if seed is not None:
        model_tensors = dense_tensors | learned_selectors
        fresh_parts += timm_tensors.list_missing_selectors(model, model_tensors)
    elif keeps_reduction and facts.digest is None:
        # Only a saved folder holds selectors for several reductions: in other files
        # a foreign one is an error.
        make_variables = timm_tensors.make_variables
    trained_size = facts.trained_size or vit_config.image_size
    positions = None  # those of the trained size, if the model has another
    if image_sides(vit_config.image_size) != image_sides(trained_size):
        positions = tensors.get("pos_embed")
        fit_positions = resize_positions.fit_positions
        model_tensors = fit_positions(model_tensors, vit_config, trained_size)
    variables, drawn_parts = make_variables(
        model, model_tensors, location.origin.title, fresh_parts, seed or 0
    )
    params = variables["params"]
    untrained_parts = {p for p in params if is_in_parts(p, facts.untrained_parts)}
    untrained_parts.update(drawn_parts)
    origin = dataclasses.replace(
        location.origin,
        name=location.origin.name or vit_config.name or "",
        license=facts.license,
        image_size=trained_size,
        positions=positions,
        # A file alone does not tell its training's reduction.
        reduction=facts.reduction if location.file_names else None,
    )
    recovery = facts.recovery
    vit = Pretrained(
        model,
        variables,
        class_names=class_names,
        recovery=recovery and recovery.without_parts({*fresh_parts, *untrained_parts}),
        origin=origin.with_untrained(params, sorted(untrained_parts)),
        selectors=learned_selectors,
    )
    if num_classes is not None or seed is not None:
        vit.warn_of_untrained()
    is_like_clip = vit_config.arch.pre_norm and vit_config.head.is_single_label
    if is_like_clip and not (vit.class_names or vit.untrained_kinds):
        warnings.warn(
            f"{vit!r}: the head is taken for a classifier; config.problem_type "
            "'projection' says that it is CLIP's projection",
            stacklevel=2,
        )
    if recovery is not None:
        recovery.log_unrecovered(model, vit.label)
    return vit


def _change_config(facts, image_size, crop, num_classes):
    """Apply the caller's image size, crop and number of classes; None: no change."""
    config = facts.config
    if image_size is None:
        image_size = config.image_size
    # From the trained size, because `at_size` checks a new size alone.
    trained_size = facts.trained_size or config.image_size
    config = config.with_preprocessing(image_size=trained_size).at_size(image_size)
    if crop is not None:
        config = config.with_preprocessing(crop=crop)
    if num_classes is None or num_classes == config.num_classes:
        return config
    new_head = {"num_classes": num_classes, "problem_type": SINGLE_LABEL}
    return dataclasses.replace(config, **new_head)


def read_tensors(
    location: Location, facts: description.Description
) -> tuple[NamedArrays, description.Description]:
    """Read all tensors that the model may need, and correct the facts by them.

    Returns (tensors by timm's names, the facts with a complete `recovery` and the
    `trained_size`).
    Raises InputError for tensors that contradict the files' config.
    """
    variant_tensors = {}
    if location.origin.run is not None:
        tensors = _read_run_tensors(location)
    else:
        weights = location.find_weights()
        key = location.origin.checkpoint
        tensors = naming.read_timm_tensors(weights, key, facts.config)
        learned_tensors = {
            name: read_state_dict(location.path / name)
            for name in folder_files.LEARNED_FILES
            if name in location.file_names
        }
        tensors |= learned_tensors.get(folder_files.SELECTORS_FILE, {})
        variant_tensors = learned_tensors.get(folder_files.RECOVERED_FILE, {})
        if learned_tensors and facts.digest is not None:
            if facts.digest != variables_digest([tensors, variant_tensors]):
                names = " or ".join(learned_tensors)
                raise InputError(
                    f"{location.origin.title}: {names} belongs to other weights"
                )
    facts = _correct_facts(facts, tensors, location.origin.title)
    config = facts.config
    recovery = facts.recovery
    if recovery is not None:
        dense_shapes = variable_shapes(build_model(config))
        with description.content_errors(location.path / folder_files.RECOVERED_FILE):
            recovery = recovery.with_tensors(variant_tensors, dense_shapes)
    class_names = facts.class_names if config.num_classes else None
    if config.num_classes and class_names is None and not facts.has_file_config:
        # Without a file that states classes, only a public name tells their names.
        class_names = registry.published_class_names(config.name, config.num_classes)
    return tensors, facts._replace(class_names=class_names, recovery=recovery)


def _read_run_tensors(location):
    """Read a run's newest "best" or "latest" checkpoint, or its averages."""
    from imagepiece_jax.common import checkpoints  # an optional package

    origin = location.origin
    run_folder = location.path.resolve()
    names = (AVERAGES_KEY,) if origin.averaged else VARIABLE_COLLECTIONS

    def choose_variables(stored_state):
        if origin.averaged and not stored_state[AVERAGES_KEY]:
            raise InputError(f"run {run_folder} has no averages: its ema_decay is 0")
        return {name: stored_state[name] for name in names}

    folder = run_folder / folder_files.CHECKPOINTS_FOLDER / str(origin.checkpoint)
    state, _, _ = checkpoints.read_newest_step(folder, choose_variables)
    return timm_tensors.to_timm(state.get(AVERAGES_KEY, state))


def _correct_facts(facts, tensors, title):
    """Correct the config by the tensors.

    Tensors decide the number of classes and whether DeiT's distillation token is a
    register. Unless the files state them, tensors also decide the positions' image size
    and a gated MLP's width.
    """
    config = facts.config
    arch = config.arch
    head_weight = tensors.get("head.weight", np.zeros(()))
    num_classes = len(head_weight) if head_weight.ndim else 0
    if num_classes and facts.has_file_config:
        config = dataclasses.replace(config, **facts.head_fields)
    # A number of classes in the files must agree with the head.
    has_other_classes = config.num_classes not in (0, num_classes)
    if has_other_classes and facts.has_file_config:
        subject = f"{title}: num_classes is {config.num_classes}"
        raise InputError(f"{subject}, but its tensors have {num_classes}")
    changes: dict[str, Any] = {"num_classes": num_classes}
    if config.name and has_other_classes and config.problem_type == PROJECTION:
        changes["problem_type"] = SINGLE_LABEL
    # Without a head of its own, DeiT's distillation token is a register.
    if arch.dist_token and "reg_token" in tensors and "dist_token" not in tensors:
        changes["arch"] = dataclasses.replace(arch, dist_token=False, registers=1)
    # timm's mlp_ratio counts both halves of a gated MLP; the tensors tell the width.
    fc2_weight = tensors.get("blocks.0.mlp.fc2.weight", np.zeros(()))
    has_gated_mlp = arch.mlp == "swiglu" and fc2_weight.ndim == 2
    if has_gated_mlp and not facts.has_file_config:
        changes["mlp_ratio"] = fc2_weight.shape[1] / config.embed_dim
    config = dataclasses.replace(config, **changes)
    trained_size = facts.trained_size or config.image_size
    positions = tensors.get("pos_embed")
    has_fixed_size = facts.has_file_config and facts.trained_size is None
    if not has_fixed_size and positions is not None and positions.ndim == 3:
        num_positions = positions.shape[1]
        if config.arch.prefix_positions:
            num_positions -= config.arch.prefix
        # Positions of another grid than the config's are taken for a square's.
        grid = patch_grid(trained_size, config.patch_size, cut=True)
        side = math.isqrt(max(0, num_positions))
        if num_positions != math.prod(grid) and side * side == num_positions:
            trained_size = side * config.patch_size
    if facts.trained_size is None:
        config = config.with_preprocessing(image_size=trained_size)
    return facts._replace(config=config, trained_size=trained_size)
