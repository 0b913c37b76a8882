"""The folder that a trained model is saved to, which `load` reads.

It has the form of the Hugging Face hub:

model.safetensors       the dense part, by timm's names
selectors.safetensors   learned by a reduction
recovered.safetensors   what reduced forms recovered; 0.NAME is of the first cost
config.json             all that makes the same model again, and timm's architecture
                        where timm has it
"""

import contextlib
import json
import os
import pathlib

import safetensors
import safetensors.numpy
from flax import traverse_util

from imagepiece_jax.common.files import LOCK, check_own, read_json, replacing_folder
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import check_variables, digest, variable_shapes
from imagepiece_jax.weights import config_json, layouts
from imagepiece_jax.weights.file_names import (
    BESIDE,
    CONFIG,
    OURS,
    RECOVERED,
    SELECTORS,
    WEIGHTS,
)

DENSE_PART = WEIGHTS[0]
FILES = (DENSE_PART, *BESIDE, CONFIG)  # of a saved model


def save(vit: Pretrained, folder: str | os.PathLike) -> pathlib.Path:
    """Write a trained model to a folder, completely or not at all.

    `load(folder)` gives one with the same logits, bit for bit, its reduction with
    learned selectors, class names and preprocessing included. timm loads the dense part
    by timm.create_model("local-dir:FOLDER", pretrained=True), where it has such models.

    folder: new, or one of a saved model, which is replaced; a symbolic link stays
    Returns the folder, which can be uploaded as it is.
    Raises InputError for a folder that holds anything else, and for variables that are
        not the model's.
    """
    folder = checked_folder(folder)
    if vit.reduction is None:
        raise InputError("reduction is unknown: the model's plan was made by hand")
    if vit.model.execution.folded:
        raise InputError("the model is in the form of optimize")
    check_variables(vit.model, vit.dense_variables)
    tensors = timm_tensors.to_timm(vit.dense_variables)
    dense, own = timm_tensors.apart(tensors)
    learned = timm_tensors.merged_selectors(vit.selectors, own)
    described = config_json.config_fields(vit)
    dense = layouts.as_timm(dense, vit.config.arch, described["architecture"])
    recovered = _recovered(vit.recovery)
    described[OURS]["digest"] = digest(
        [layouts.with_timm_names(dense) | learned, recovered]
    )
    # Numbers of NumPy, where a model was made with them, are written as Python's.
    text = json.dumps(described, indent=2, default=lambda v: v.item())
    config = json.loads(text)
    vit.warn_of_untrained()
    _check_round_trip(vit.model, dense | own, config)
    with replacing_folder(folder) as new:
        _write(new / DENSE_PART, dense)
        if learned:
            _write(new / SELECTORS, learned)
        if recovered:
            _write(new / RECOVERED, recovered)
        (new / CONFIG).write_text(text + "\n", "utf-8")
    return folder


def _recovered(recovery):
    """Tensors of the costs of a Recovery, the number of its cost before each name."""
    tensors = {}
    for number, cost in enumerate(recovery.variants if recovery else ()):
        params = traverse_util.unflatten_dict(cost.numbers, sep="/")
        for name, tensor in timm_tensors.to_timm({"params": params}).items():
            tensors[f"{number}.{name}"] = tensor
    return tensors


def _write(file, tensors):
    """Write tensors to a file; OSError where a disk is full or fails."""
    metadata = {"format": "pt"}  # some readers refuse a file without this entry
    try:
        safetensors.numpy.save_file(tensors, file, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error


def checked_folder(folder):
    """The folder's path, where no other file would be overwritten."""
    folder = pathlib.Path(os.path.expanduser(folder))
    own = (LOCK,)
    with contextlib.suppress(InputError, OSError):  # none, or another program's
        if OURS in read_json(folder / CONFIG):
            own += FILES
    check_own("folder", folder, "a saved model", lambda file: file.name in own)
    if folder.exists() and folder.samefile(os.curdir):
        raise InputError(f"folder {folder} is the working directory")
    return folder


def _check_round_trip(model, tensors, config):
    """Check that `load` makes the same model of these files."""
    described = config_json.parse(config, {})
    again = build_model(described.config, described.reduction)
    read = layouts.with_timm_names(tensors)
    timm_tensors.from_timm(read, variable_shapes(again))
    for field in ("plan", "prop_attn"):
        value = getattr(model, field)
        loaded = getattr(again, field)
        if loaded != value:
            raise InputError(
                f"model.{field} is {value!r}, and would be loaded as {loaded!r}"
            )
