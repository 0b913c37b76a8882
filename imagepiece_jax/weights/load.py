"""From a path to a model: the public `load`.

Names and config files say what the weights are (`read_source`); tensors and the caller
complete that WeightsSource (`infer.completed`), and where several say a field,
`infer.ORDER` decides. A model is created by it, and filled.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.image_size import sides, size_text
from imagepiece_jax.common.warning import warn
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, resize_positions, timm_tensors
from imagepiece_jax.models.pretrained import Pretrained, WeightsSource, digests
from imagepiece_jax.models.problem_type import SINGLE_LABEL
from imagepiece_jax.models.recovery_record import Recovery
from imagepiece_jax.models.spec import ModelSpec
from imagepiece_jax.models.variables import digest, variable_shapes
from imagepiece_jax.reduction.reduction import DENSE, ReductionLike
from imagepiece_jax.weights import hub_configs, layouts, location, runs
from imagepiece_jax.weights.file_names import RECOVERED
from imagepiece_jax.weights.infer import NO_FIELDS, completed, with_fc_norm
from imagepiece_jax.weights.layouts import Contents

HEADS = ("head", "head_dist")  # parts that a new number of classes makes anew


def load(
    weights: str | os.PathLike,
    reduction: ReductionLike = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    name: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    checkpoint: str | None = None,
    averaged: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str | None] | None = None,
    problem_type: str | None = None,
    seed: int | None = None,
    **changes: Any,
) -> Pretrained:
    """A trained model, from the path of its weights.

    weights: a file (.npz, .safetensors, .pth); a folder with config.json and weights,
        as timm, transformers and `save` write it; the folder of a run; or an id of the
        Hugging Face hub, "hf://OWNER/NAME" or "hf://OWNER/NAME@REVISION", whose files
        are fetched once into huggingface_hub's cache
    reduction: a share of the dense model's MACs, such as 0.5, which the recommended
        method gets; or a method with its fields, such as "evit:keep_rate=0.7"; "none":
        the dense model; None: as it was trained or saved, though
        `Pretrained.with_reduction` takes None for the dense model
    image_size: pixels a side, or (height, width), to which positions are resized
    name: of the model, where neither files nor their names say it
    dtype: of layers; None: that of a run, else "float32"
    attention: what computes it, "xla", "cudnn" or "auto", which chooses
    checkpoint: of a run, "best", which is the default, or "latest"; of a file with
        several models, the key of one, such as "teacher"
    averaged: take the weights averaged over the training's steps, which a run has
        (config.ema_decay), and a file that timm's or DeiT's code saved in training
    mean, std: of the images' pixels in [0, 1], where the weights do not say them
    crop: share of an image's sides that evaluation keeps; None: the weights' own
    num_classes: another number than the weights' gives a new head, which is drawn; 0
        leaves the head out
    class_names: instead of the weights' own
    problem_type: what the logits mean, by transformers' names, instead of what the
        weights say: "single_label_classification", which is theirs where they say
        nothing, "multi_label_classification" or "regression"
    seed: of parts that are drawn; selectors that the reduction learns and the weights
        lack are drawn where it is given, and refused where it is None
    changes: other fields of a ModelSpec, and parts of an Architecture, that differ,
        such as gelu; and those that neither tensors nor a config nor the file's name
        show: num_heads, norm_eps, gelu, resize, pool and others, for which the error
        asks. What a dict `arch` does not say is as the name has it, or DeiT
    Raises InputError for a field that contradicts the weights, and for weights that do
        not say which model they are. Warns where nothing says the normalization or the
        crop.
    """
    for field in changes:
        if field not in ModelSpec.names():
            raise TypeError(f"load() got an unexpected keyword argument {field!r}")
    changes |= {"image_size": image_size, "name": name, "dtype": dtype}
    changes |= {"attention": attention, "mean": mean, "std": std}
    requested = ModelSpec.from_fields(changes)
    if changes.get("arch") is not None:
        requested = requested.with_all_parts()
    vit = load_as(
        SavedWeights(weights, checkpoint, averaged),
        requested,
        reduction=reduction,
        num_classes=num_classes,
        crop=crop,
        seed=seed,
    )
    given = {}
    if class_names is not None:
        given["class_names"] = class_names
    if problem_type is not None:
        given["problem_type"] = problem_type
    if given:
        vit = dataclasses.replace(vit, **given)
    if num_classes is not None or seed is not None:
        vit.warn_of_untrained()
    warn_of_images(vit, crop)
    return vit


class SavedWeights:
    """Weights at a path, whose files are read once."""

    def __init__(
        self,
        path: str | os.PathLike,
        checkpoint: str | None = None,
        averaged: bool = False,
    ):
        self.source = read_source(path, checkpoint, averaged)

    @functools.cached_property
    def contents(self) -> Contents:
        """What the files hold, read at first use."""
        source = self.source
        path = source.path
        if source.run is not None:
            tensors, facts = runs.read_checkpoint(
                path, source.checkpoint, source.averaged
            )
            runs.check_normalization(path, source.spec.fields, facts)
            return Contents(tensors, NO_FIELDS)
        if source.is_folder:
            return layouts.read_folder(path, source.averaged, source.checkpoint)
        return layouts.read_weights(path, source.averaged, source.checkpoint)


def load_as(
    weights: SavedWeights,
    requested: ModelSpec = NO_FIELDS,
    otherwise: ModelSpec = NO_FIELDS,
    *,
    reduction: ReductionLike = None,
    num_classes: int | None = None,
    crop: float | None = None,
    seed: int | None = None,
) -> Pretrained:
    """The model of weights, with the arguments that `load` has, too.

    `load` adds names of classes and the meaning of logits that the caller gives, and a
    warning of parts that were drawn.

    requested: fields that the caller adds or changes
    otherwise: fields that hold where nothing else says them
    """
    contents = None
    if weights.source.run is None:  # tensors show the sizes that a run's config says
        contents = weights.contents
    source = completed(weights.source, contents, requested, otherwise)
    # A name stands for the sizes of a folder's weights.
    spec = source.spec.with_requested(requested, source.place, source.is_folder)
    class_names = source.class_names
    problem_type = source.problem_type
    fresh = ()
    if num_classes not in (None, spec.num_classes):
        fresh = HEADS
        spec = dataclasses.replace(spec, num_classes=num_classes)
        class_names = None
        problem_type = SINGLE_LABEL
    model = _create(source, spec, reduction, requested.prop_attn)
    images = Preprocessing(spec.image_size, **source.crop)
    if crop is not None:
        images = dataclasses.replace(images, crop=crop)
    name = spec.name
    if name in registry.MODELS:  # which are not public models
        name = None
    vit = Pretrained(
        model,
        variable_shapes(model, spec.image_size),
        images,
        class_names,
        problem_type,
        name=name,
        spec=spec,
        source=source,
    )
    vit = dataclasses.replace(vit, recovery=source.recovery)
    exact = reduction is None and seed is None
    vit = _fill(vit, weights.contents, fresh, seed, exact)
    vit.say_dense_numbers()
    return vit


def _create(source, spec, reduction, prop_attn):
    """The model of a config, with a reduction.

    reduction: None: the one that the weights were trained with
    prop_attn: for that one, whether attention is proportional; None: as it was trained
    """
    trained = source.reduction or DENSE
    trained_size = source.spec.image_size
    if reduction is None:
        reduction = trained
        if prop_attn is not None:
            reduction = dataclasses.replace(reduction, prop_attn=prop_attn)
    try:
        return spec.create_at_cost(reduction)
    except InputError as error:
        if reduction != trained:  # it is the caller's mistake, not one of the file
            raise
        where = source.place
        if sides(spec.image_size) != sides(trained_size):
            where += f", whose reduction is one for {size_text(trained_size)} pixels"
        raise InputError(f"{where}: {error}") from error


def _fill(vit, contents, fresh, seed, exact):
    """A Pretrained with values in place of the shapes of its variables.

    fresh: names of parts that are drawn
    seed: of these, and of selectors that the weights lack; None: they must have them
    exact: whether tensors of other selectors than the model's are an error
    """
    source = vit.source
    tensors = contents.tensors
    if source.run is None:
        tensors = with_fc_norm(contents, source.spec)
    size = vit.image_size
    learned = _learned(tensors, source.untrained)
    if seed is not None:
        fresh = (*fresh, *timm_tensors.lacking_selectors(learned, vit.variables))
    trained_size = source.spec.image_size
    trained_positions = None
    resized = tensors
    if sides(size) != sides(trained_size):
        resized = resize_positions.fit(tensors, vit.model, size, trained_size)
    if resized is not tensors:
        values = np.asarray(tensors["pos_embed"], np.float32)
        trained_positions = resize_positions.Trained(values, trained_size)
    variables, drawn = timm_tensors.model_variables(
        vit.model,
        size,
        resized,
        source.place,
        fresh=fresh,
        seed=seed or 0,
        exact=exact,
    )
    for part in variables["params"]:
        if part not in drawn and timm_tensors.matches(part, source.untrained):
            drawn.append(part)
    recovery = _filled_recovery(vit, contents, variables, (*fresh, *drawn))
    return dataclasses.replace(
        vit,
        variables=variables,
        selectors=learned,
        trained_positions=trained_positions,
        drawn=digests(variables, drawn),
        recovery=recovery,
    )


def _filled_recovery(vit, contents, variables, drawn):
    """The Recovery of a Pretrained, with its numbers.

    variables: of the dense model
    drawn: parts that were not learned, nor recovered, or are left out
    """
    recovery = vit.recovery
    if recovery is None:
        return recovery
    file = f"weights file {vit.source.path / RECOVERED}"
    if recovery.saved_beside not in (None, digest(contents.tensors)):
        raise InputError(f"{file} was learned for other weights than those beside it")
    costs = []
    dense = {}
    leaves = traverse_util.flatten_dict(variables["params"], sep="/")
    for index, cost in enumerate(recovery.costs):
        start = f"{index}."
        tensors = {}
        for name, tensor in contents.recovered.items():
            if name.startswith(start):
                tensors[name.removeprefix(start)] = tensor
        if not tensors and cost.changed:
            raise InputError(f"{file} has no numbers for {cost.form}")
        try:
            numbers = timm_tensors.numbers_from_timm(tensors, vit.variables, drawn)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        dense |= {path: leaves[path] for path in numbers}
        costs.append(dataclasses.replace(cost, numbers=numbers))
    return Recovery(tuple(costs), dense)


def read_source(
    path: str | os.PathLike, checkpoint: str | None = None, averaged: bool = False
) -> WeightsSource:
    """What names, configs and records at a path say of its weights.

    No tensor is read.

    A file named after a known model, such as deit_tiny_patch16_224.pth, is one unless
    the caller names another.
    checkpoint, averaged: as `load` takes them
    """
    found = location.find(path)
    place = found.place
    if checkpoint in runs.KINDS and found.kind != location.RUN:
        raise InputError(f"checkpoint is {checkpoint!r}, but {place} is no run")
    if found.kind == location.FILE:
        spec = ModelSpec(name=registry.name_of_file(found.path))
        fields = {"spec": spec}
    elif found.kind == location.FOLDER:
        if found.config_file is None:
            raise InputError(
                f"{place} has no config.json; config= must say which model it holds"
            )
        fields = {"reduction": DENSE, **hub_configs.read(found)}
    else:
        if checkpoint is None:
            checkpoint = "best"
        check_choice("checkpoint", checkpoint, runs.KINDS)
        fields = runs.read(found)
    return WeightsSource(
        path=found.path,
        place=place,
        name=found.name,
        config_file=found.config_file,
        checkpoint=checkpoint,
        averaged=averaged,
        **fields,
    )


def _learned(tensors, untrained):
    """The tensors of learned selectors; {} where they were drawn and never trained."""
    if any(part.startswith(timm_tensors.SELECTOR) for part in untrained):
        return {}
    start = f"{timm_tensors.SELECTOR}."
    return {k: v for k, v in tensors.items() if k.startswith(start)}


def warn_of_images(vit: Pretrained, crop: float | None = None):
    """Warn where nothing says how the images of loaded weights are prepared.

    crop: that of the caller, if any
    """
    if not vit.source.normalized:
        warn(unknown_normalization(vit.source))
    note = crop_note(vit.source, vit.preprocessing)
    if note and crop is None:
        warn(note)


def unknown_normalization(source, taken="ImageNet's"):
    """A note on weights that do not say how their images were normalized."""
    return (
        f"{source} does not say how its images were normalized: {taken} mean and "
        "standard deviation are taken; mean and std set others"
    )


def crop_note(source, images, field="crop"):
    """A note on weights that say no crop, or one of several; None for all others.

    images: the Preprocessing by their crop
    field: that sets another
    """
    if not images.resizes:
        return None
    if source.chosen_tag:
        return (
            f"{source} has a name that stands for weights of several crops: that of "
            f"{source.chosen_tag} is taken ({images.text}), as in timm; a name with a "
            f"tag says which weights they are, or {field} which crop"
        )
    if source.says_crop:
        return None
    return (
        f"{source} does not say how its images are cropped: DeiT's way is taken "
        f"({images.text}); {field} sets another"
    )
