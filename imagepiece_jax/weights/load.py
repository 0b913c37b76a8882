"""The public `load`: from a path to a model, in four stages.

Location: what the path holds. Description: which model it is. Tensors: the stored
arrays, and the config they show. Pretrained: a model with its variables.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import resize_positions, timm_tensors
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model, make_execution
from imagepiece_jax.models.fit_to_cost import log_reduction
from imagepiece_jax.models.head import SINGLE_LABEL
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import is_in_parts
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike
from imagepiece_jax.weights.description import Description, describe_weights
from imagepiece_jax.weights.location import Location, locate_weights
from imagepiece_jax.weights.tensors import Tensors, read_tensors

TRAINED_REDUCTION = "trained"  # the reduction of the training or of the saved model
HEAD_PARTS = ("head", "head_dist")  # parts to draw for a new number of classes


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
    location = locate_weights(weights, config is not None, checkpoint, averaged)
    description = describe_weights(location, config)
    tensors = read_tensors(location, description)
    vit_config = change_config(description, tensors, image_size, crop, num_classes)
    new_head_parts: tuple[str, ...] = ()
    if vit_config.num_classes != tensors.config.num_classes:
        new_head_parts = HEAD_PARTS
    elif class_names is None:
        class_names = tensors.class_names
    if class_names is not None:
        class_names = checked_names(class_names, vit_config.num_classes)
    keeps_reduction = reduction == TRAINED_REDUCTION
    if keeps_reduction:
        reduction = description.reduction
    reduction = Reduction.read(reduction)
    execution = make_execution(vit_config, dtype or description.dtype, attention)
    try:
        model = build_model(vit_config, reduction, execution)
    except InputError as error:
        if not keeps_reduction:  # the caller's mistake, not the file's
            raise
        raise InputError(f"{location.title}: {error}") from error
    log_reduction(reduction, model)
    # Only a saved folder holds selectors for several reductions.
    keeps_foreign_selectors = keeps_reduction and description.digest is None
    fitted_tensors, new_selectors = fit_tensors(
        location, tensors, model, keeps_foreign_selectors, seed
    )
    fresh_parts = (*new_head_parts, *new_selectors)
    variables, drawn_parts = timm_tensors.make_variables(
        model, fitted_tensors, location.title, fresh_parts=fresh_parts, seed=seed or 0
    )
    params = variables["params"]
    untrained_parts = {p for p in params if is_in_parts(p, description.untrained_parts)}
    untrained_parts.update(drawn_parts)
    is_resized = image_sides(vit_config.image_size) != image_sides(
        tensors.config.image_size
    )
    # A file alone does not tell its training's reduction.
    origin = dataclasses.replace(
        location.origin,
        name=location.origin.name or vit_config.name or "",
        license=description.license,
        image_size=tensors.config.image_size,
        positions=tensors.dense_tensors.get("pos_embed") if is_resized else None,
        reduction=description.reduction if location.file_names else None,
    )
    vit = Pretrained(
        model,
        variables,
        class_names=class_names,
        recovery=tensors.recovery
        and tensors.recovery.without_parts({*fresh_parts, *untrained_parts}),
        origin=origin.with_untrained(params, sorted(untrained_parts)),
        selectors=tensors.learned_selectors,
    )
    if num_classes is not None or seed is not None:
        vit.warn_of_untrained()
    warn_of_unclear_head(vit)
    if vit.recovery is not None:
        vit.recovery.log_unrecovered(vit.model, vit.label)
    return vit


def change_config(
    description: Description,
    tensors: Tensors,
    image_size: ImageSize | None,
    crop: float | None,
    num_classes: int | None,
) -> ViTConfig:
    """Apply the caller's image size, crop and number of classes; None: no change."""
    config = tensors.config
    if image_size is None and description.trained_size is not None:
        image_size = description.config.image_size
    if image_size is not None:
        config = config.at_size(image_size)
    if crop is not None:
        config = config.with_preprocessing(crop=crop)
    if num_classes is None or num_classes == config.num_classes:
        return config
    return dataclasses.replace(
        config, num_classes=num_classes, problem_type=SINGLE_LABEL
    )


def fit_tensors(
    location: Location,
    tensors: Tensors,
    model: ViT,
    keeps_foreign_selectors: bool,
    seed: int | None,
) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Select the tensors for a model and its image size: (tensors, parts to draw).

    keeps_foreign_selectors: leave selectors in that the model lacks; `make_variables`
        names them in its error
    seed: draws untrained and missing selectors; None: missing ones are refused
    """
    model_tensors: Mapping[str, np.ndarray] = tensors.dense_tensors | tensors.selectors
    fresh_parts = ()
    if seed is not None:
        trained_tensors = tensors.dense_tensors | tensors.learned_selectors
        model_tensors, fresh_parts = timm_tensors.drop_foreign_selectors(
            model, trained_tensors, location.title, None
        )
    elif not keeps_foreign_selectors:
        model_tensors, _ = timm_tensors.drop_foreign_selectors(
            model, model_tensors, location.title
        )
    trained_size = tensors.config.image_size
    if image_sides(model.config.image_size) != image_sides(trained_size):
        model_tensors = resize_positions.fit_positions(
            model_tensors, model.config, trained_size
        )
    return model_tensors, fresh_parts


def warn_of_unclear_head(vit: Pretrained) -> None:
    """Warn if the head, taken for a classifier, may be CLIP's projection."""
    is_like_clip = vit.config.arch.pre_norm and vit.config.head.is_single_label
    if is_like_clip and not (vit.class_names or vit.untrained_kinds):
        warnings.warn(
            f"{vit!r}: the head is taken for a classifier; config.problem_type "
            "'projection' says that it is CLIP's projection",
            stacklevel=3,
        )
