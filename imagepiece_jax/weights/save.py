"""The folder that a trained model is saved to, which `load` reads.

It has the form of the Hugging Face hub:

model.safetensors       the dense part, by timm's names
selectors.safetensors   learned by a reduction
recovered.safetensors   what reduced forms recovered; 0.NAME is of the first cost
config.json             timm's architecture, with arguments where the model differs, and
                        all that this package needs to make the same model again
"""

import json
import os
import pathlib

import safetensors
import safetensors.numpy
from flax import traverse_util

from imagepiece_jax.common.files import (
    LOCK,
    read_json,
    replacing_folder,
)
from imagepiece_jax.errors import InputError, inside, short_traceback
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.models.variables import (
    check_variables,
    digest,
    variable_shapes,
)
from imagepiece_jax.weights import hub, hub_configs, layouts
from imagepiece_jax.weights.file_names import (
    BESIDE,
    CONFIG,
    ENDINGS,
    OURS,
    RECOVERED,
    SELECTORS,
    WEIGHTS,
)
from imagepiece_jax.weights.infer import infer

DENSE_PART = WEIGHTS[0]
FILES = (DENSE_PART, *BESIDE, CONFIG)  # of a saved model
# Endings of files that somebody may expect in place of the folder.
OF_PROGRAMS = ".onnx"
OF_FILES = (*ENDINGS, OF_PROGRAMS, ".h5", ".pkl", ".msgpack", ".npy", ".keras")


@short_traceback
def save(folder: str | os.PathLike, vit: Pretrained) -> pathlib.Path:
    """Write a trained model to a folder, completely or not at all.

    `load(folder)` gives one with the same logits, bit for bit, its reduction with
    learned selectors, class names and preprocessing included. timm loads the dense part
    by timm.create_model("local-dir:FOLDER", pretrained=True), where it has such models.

    folder: new, or one of a saved model, which is replaced; a symbolic link stays. It
        may also come behind the model
    Returns the folder, which can be uploaded as it is.
    Raises InputError for a folder that holds anything else, and for variables that are
        not the model's.
    """
    if isinstance(folder, Pretrained):  # the order that `export` has
        folder, vit = vit, folder
    folder = checked_folder(folder)
    check_pretrained(vit)
    _check(vit)
    tensors = timm_tensors.to_timm(vit.dense_variables)
    learned = {k: v for k, v in tensors.items() if k.startswith("reducer.")}
    dense = {k: v for k, v in tensors.items() if k not in learned}
    dense = layouts.as_timm(dense, vit.model.arch)
    described = hub_configs.describe(vit)
    if vit.recovery:
        read = layouts.to_timm(dense).tensors | learned
        described[OURS]["recovery"]["saved_beside"] = digest(read)
    # Numbers of NumPy, where a model was made with them, are written as Python's.
    text = json.dumps(described, indent=2, default=lambda v: v.item())
    config = json.loads(text)
    vit.warn_of_untrained()
    _check_round_trip(vit.model, dense | learned, config)
    with replacing_folder(folder) as new:
        _write(new / DENSE_PART, dense)
        if learned:
            _write(new / SELECTORS, learned)
        if recovered := _recovered(vit.recovery):
            _write(new / RECOVERED, recovered)
        (new / CONFIG).write_text(text + "\n", "utf-8")
    return folder


def _recovered(recovery):
    """Tensors of the costs of a Recovery, the number of its cost before each name."""
    tensors = {}
    for number, cost in enumerate(recovery.costs if recovery else ()):
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
    """The folder's path; InputError where another file would be overwritten."""
    if hub.is_id(folder):
        allowed = "folders of this machine, which hf upload takes from here"
        raise InputError.at(folder, "is an id of the hub", allowed)
    folder = pathlib.Path(os.path.expanduser(folder))
    ending = folder.suffix.lower()
    if ending in OF_FILES and not folder.exists():
        hint = ""
        if ending == OF_PROGRAMS:
            hint = f"imagepiece_jax.export(vit, {str(folder)!r}) writes such a file"
        problem = f"ends in {ending}, as files do, but save writes a folder"
        allowed = f"names of folders, such as {folder.with_suffix('')}"
        raise InputError.at(folder, problem, allowed, hint, ending)
    allowed = "a new or empty folder, or one that save wrote"
    names = []
    try:
        if folder.exists():
            names = sorted({file.name for file in folder.iterdir()} - {LOCK})
    except OSError as error:
        raise InputError.at(
            folder, f"is not a folder ({error.strerror})", allowed
        ) from error
    others = [name for name in names if name not in FILES]
    if names and (others or not _is_saved(folder)):
        found = (others or names)[0]
        raise InputError.at(folder, f"holds {found}", allowed, value=found)
    if folder.exists() and folder.samefile(os.curdir):
        problem = "is the working directory, which would be replaced"
        raise InputError.at(folder, problem, "folders elsewhere or in it")
    return folder


def _is_saved(folder):
    """Whether the config.json in a folder is one that `save` wrote."""
    try:
        return OURS in read_json(folder / CONFIG)
    except InputError:  # there is none, or another program's
        return False


def _check(vit):
    """InputError for a model that `load` could not make again."""
    if vit.reduction is None:
        problem = "is unknown: someone made the model's plan by hand"
        raise InputError("reduction", None, "models of create_model", problem=problem)
    if vit.model.folded:
        allowed = "the model that it was made from"
        raise InputError("model", None, allowed, problem="is in the form of optimize")
    check_variables(vit.model, vit.variables, vit.image_size)


def _check_round_trip(model, tensors, config):
    """InputError where `load` would refuse these files, or make another model."""
    with inside(hint="so the model cannot be loaded again"):
        parsed = hub_configs.parse(config, {})
        read = layouts.to_timm(tensors).tensors
        saved = infer(read, parsed["spec"])
        again = saved.create(parsed["reduction"])
        timm_tensors.from_timm(read, variable_shapes(again, saved.image_size))
    for field in ("plan", "arch", "num_heads", "stem", "prop_attn"):
        value = getattr(model, field)
        loaded = getattr(again, field)
        if loaded != value:
            problem = f"is {value!r}, and would be loaded as {loaded!r}"
            allowed = "models of create_model"
            raise InputError(f"model.{field}", value, allowed, problem=problem)
