"""Save a trained model to a folder for `load`, in the Hugging Face hub's format."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from imagepiece_jax.common import files
from imagepiece_jax.common.checks import replace_lists
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_tensors
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variables_digest
from imagepiece_jax.weights import folder_files, naming, timm_config
from imagepiece_jax.weights.description import RECORD_FORMAT, parse_config
from imagepiece_jax.weights.tensor_files import LazyTensor

# A saved folder holds up to four files. CONFIG_FILE has all `load` needs to make the
# same model, and timm's architecture if timm has the model.
DENSE_FILE = folder_files.WEIGHTS_FILES[0]
SAVED_FILES = (DENSE_FILE, *folder_files.LEARNED_FILES, folder_files.CONFIG_FILE)


def save(vit: Pretrained, folder: str | os.PathLike) -> pathlib.Path:
    """Write a trained model to a folder, completely or not at all.

    `load(folder)` gives the same logits, bit for bit, with the reduction, its learned
    selectors, class names and preprocessing. timm loads the dense part, if timm has the
    model, with timm.create_model("local-dir:FOLDER", pretrained=True).

    folder: new, or a saved model's, which is replaced; a symbolic link stays
    Returns the folder, which can be uploaded as it is.
    Raises InputError for a folder that holds anything else, and for variables that do
        not match the model.
    """
    folder = checked_folder(folder)
    if vit.model.execution.folded:
        raise InputError("the model was changed by optimize; save the loaded one")
    # JSON cannot write NumPy scalars, which a config may hold.
    config_fields = replace_lists(make_config_fields(vit))
    tensors = timm_tensors.to_timm(vit.dense_variables)
    if vit.origin.positions is not None:
        tensors["pos_embed"] = np.asarray(vit.origin.positions, np.float32)
    tensors, _ = timm_tensors.split_selectors(tensors)
    architecture = config_fields["architecture"]
    tensors = naming.pack_for_timm(tensors, vit.config.arch, architecture)
    selectors = vit.collect_selectors()
    variant_tensors = vit.recovery.to_tensors() if vit.recovery else {}
    # As `load` will read them. LazyTensors spare the copy that arrays would get.
    lazy_tensors = {}
    for name, tensor in tensors.items():
        lazy_tensors[name] = LazyTensor(functools.partial(np.asarray, tensor))
    loaded_tensors = naming.read_timm_tensors(lazy_tensors) | selectors
    digest = variables_digest([loaded_tensors, variant_tensors])
    config_fields[folder_files.OWN_KEY]["digest"] = digest
    vit.warn_of_untrained()
    _check_round_trip(vit, loaded_tensors, config_fields)
    arrays_by_file = {
        DENSE_FILE: tensors,
        folder_files.SELECTORS_FILE: selectors,
        folder_files.RECOVERED_FILE: variant_tensors,
    }
    metadata = {"format": "pt"}  # some readers refuse a file without this entry
    with files.replacement_folder(folder) as new_folder:
        try:
            for name, arrays in arrays_by_file.items():
                if arrays:
                    safetensors.numpy.save_file(arrays, new_folder / name, metadata)
        except safetensors.SafetensorError as error:  # a disk is full or fails
            raise OSError(str(error)) from error
        files.write_json(new_folder / folder_files.CONFIG_FILE, config_fields)
    return folder


def make_config_fields(pretrained: Pretrained) -> dict[str, Any]:
    """Make the content of a config.json for `load`: our own complete part, and timm's.

    "architecture" is timm's name if timm has the model, so that `timm.create_model`
    loads the dense part; else it is our own name (OWN_KEY).
    """
    model = pretrained.model
    reduction = pretrained.known_reduction()
    reduction = dataclasses.replace(reduction, prop_attn=model.prop_attn)
    variants = pretrained.recovery.variants if pretrained.recovery else ()
    has_trained_positions = pretrained.origin.positions is not None
    optional_fields = {
        "untrained": pretrained.origin.untrained_parts(pretrained.variables["params"]),
        "recovery": variants and {"variants": [variant.record for variant in variants]},
        "class_names": pretrained.class_names,
        "trained_size": pretrained.origin.image_size if has_trained_positions else None,
        "license": pretrained.origin.license,
    }
    record = {
        "format": RECORD_FORMAT,
        "config": dataclasses.asdict(model.config),
        "reduction": str(reduction),
        "dtype": model.execution.dtype.name,
        **{name: value for name, value in optional_fields.items() if value},
    }
    own_key = folder_files.OWN_KEY
    timm_fields = timm_config.describe_timm(pretrained)
    return {"architecture": own_key, **timm_fields, own_key: record}


def checked_folder(folder: str | os.PathLike) -> pathlib.Path:
    """Return the folder's path after checking that saving destroys no other file."""
    folder = pathlib.Path(os.path.expanduser(folder))
    replaceable_names = ()
    # A missing or foreign config.json is no error: `check_own_files` decides.
    with contextlib.suppress(InputError, OSError):
        if folder_files.OWN_KEY in files.read_json(folder / folder_files.CONFIG_FILE):
            replaceable_names = SAVED_FILES
    is_replaceable = lambda file: file.name in replaceable_names  # noqa: E731
    files.check_own_files("folder", folder, "a saved model", is_replaceable)
    if folder.exists() and folder.samefile(os.curdir):
        raise InputError(f"folder {folder} is the working directory")
    return folder


def _check_round_trip(pretrained, loaded_tensors, config_fields):
    """Check that `load` would make the same model from these tensors and config."""
    description = parse_config(config_fields, {})
    loaded_model = build_model(description.config, description.reduction)
    # The saved positions are of the trained size: `load` resizes them to these.
    if pretrained.origin.positions is not None:
        model_positions = np.asarray(pretrained.dense_variables["params"]["pos_embed"])
        loaded_tensors = loaded_tensors | {"pos_embed": model_positions}
    timm_tensors.make_own_variables(loaded_model, loaded_tensors, "the saved model")
    has_equal_plan = loaded_model.plan == pretrained.model.plan
    if not has_equal_plan or loaded_model.prop_attn != pretrained.model.prop_attn:
        reduction = description.reduction
        raise InputError(f"the model's plan or prop_attn is not {reduction}'s")
