"""Location, the first stage of `load`: a file, a published folder, a run or a dict.

`locate_weights` looks at a path once. The later stages read its result.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Origin
from imagepiece_jax.models.program import is_exported
from imagepiece_jax.weights import hub
from imagepiece_jax.weights.file_names import (
    CONFIG_FILE,
    LEARNED_FILES,
    OPEN_CLIP_FILE,
    OWN_KEY,
    WEIGHTS_ENDINGS,
    WEIGHTS_FILES,
)
from imagepiece_jax.weights.run_files import CHECKPOINT_KINDS

# Kinds of weights, as error messages call them.
FILE_KIND = "weights file"
FOLDER_KIND = "folder"  # in the Hugging Face hub's format
RUN_KIND = "run"
STATE_DICT_KIND = "state dict"  # in memory
# config.json keys of published weights (timm's, transformers', ours), not of runs.
PUBLISHED_KEYS = {"architecture", "architectures", "model_type", OWN_KEY}


@dataclasses.dataclass(frozen=True)
class Location:
    """Weights on this machine."""

    origin: Origin  # path, kind and name; a run's config and checkpoint
    # the config file of a folder's weights, if there is one, and its content
    config_file: pathlib.Path | None = None
    config_fields: Mapping[str, Any] | None = None  # also None for broken JSON
    tensors: Mapping[str, Any] | None = None  # a STATE_DICT_KIND's
    file_names: frozenset[str] = frozenset()  # in a folder

    @property
    def title(self) -> str:
        """The path in error messages: "run runs/a", "folder hf://OWNER/NAME"."""
        return self.origin.title

    @property
    def path(self) -> pathlib.Path:
        """The path of weights on disk; a state dict has none."""
        return cast(pathlib.Path, self.origin.path)

    def find_weights(self) -> pathlib.Path | Mapping[str, Any]:
        """Find the weights: a file, a folder's single one, or a state dict."""
        if self.origin.kind != FOLDER_KIND:
            return self.path if self.tensors is None else self.tensors
        weights_names = _list_weights_names(self.file_names)
        if len(weights_names) == 1:
            return self.path / weights_names[0]
        names = f"{', '.join(weights_names)}, not one weights file"
        if not weights_names:
            names = f"no {WEIGHTS_FILES[0]}; name an exported file by its own path"
        raise InputError(f"folder {self.path} has {names}")


def locate_weights(
    weights: str | os.PathLike | Mapping[str, Any],
    has_config: bool = False,
    checkpoint: str | None = None,
    averaged: bool = False,
) -> Location:
    """Find weights on this machine; a hub id is fetched unless it is cached.

    Only a folder's config file is read. A folder with one weights file may lack it.

    weights: a path, a hub id or a state dict
    has_config: whether the caller describes the model; a state dict then needs no
        config file, and a local config file need not be JSON
    checkpoint, averaged: as for `load`
    """
    if isinstance(weights, Mapping):
        if not has_config:
            raise InputError("config is missing: a state dict does not say its model")
        location = Location(Origin(kind=STATE_DICT_KIND), tensors=weights)
    elif hub.is_hub_id(weights):
        # A hub folder's config must be JSON: it tells which files to fetch.
        location = _locate_weights_in(hub.fetch_folder(str(weights)))
    else:
        path = pathlib.Path(weights).expanduser()
        if not path.exists():
            raise InputError(
                f"weights is '{path}': no such file or folder; a model of the Hugging "
                f"Face hub is {hub.HUB_SCHEME}OWNER/NAME"
            )
        if path.is_dir():
            location = _locate_weights_in(path, has_config)
        elif is_exported(path):
            raise InputError(
                f"weights is '{path}', an exported program; evaluate, benchmark and "
                "onnxruntime run it, but load needs the original weights"
            )
        else:
            location = Location(Origin(path=path, kind=FILE_KIND, name=path.name))
    origin = location.origin
    if origin.kind == RUN_KIND:
        checkpoint = checkpoint or "best"
        check_choice("checkpoint", checkpoint, CHECKPOINT_KINDS)
    elif checkpoint in CHECKPOINT_KINDS:
        raise InputError(f"checkpoint is {checkpoint!r}, but {origin.title} is no run")
    elif averaged:
        raise InputError(
            f"averaged is for a run, but this is {origin.title}; in a file, "
            "checkpoint is the key of the averages"
        )
    origin = dataclasses.replace(origin, checkpoint=checkpoint, averaged=averaged)
    return dataclasses.replace(location, origin=origin)


def locate_config(path_or_id: str) -> Location | None:
    """Find the weights at a path or hub id, or beside a config file; None: neither.

    Of several config files, the named one is read.
    """
    folder, file_name = os.path.split(path_or_id)
    is_config_file = file_name in (CONFIG_FILE, OPEN_CLIP_FILE)
    if hub.is_hub_id(path_or_id):
        return locate_weights(folder if is_config_file else path_or_id)
    local_path = os.path.expanduser(path_or_id)
    if not os.path.exists(local_path):  # also for a name that is too long
        return None
    if is_config_file:
        config_file = pathlib.Path(local_path)
        return _locate_weights_in(config_file.parent, config_file=config_file)
    return locate_weights(local_path)


def _locate_weights_in(folder, config_may_be_broken=False, config_file=None):
    """Find the weights in a folder.

    config_file: None: the preferred config file
    """
    file_names = frozenset(os.listdir(folder))
    name = folder.name
    # A folder in the hub's cache: models--OWNER--NAME/snapshots/COMMIT
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        name = repository.removeprefix("models--").replace("--", "/")
    origin = Origin(path=folder, kind=FOLDER_KIND, name=name)
    if config_file is None:
        # OpenCLIP repositories often hold transformers' weights and config.json too,
        # and these are preferred.
        config_file = folder / CONFIG_FILE
        weights_names = _list_weights_names(file_names)
        has_only_open_clip = all(name.startswith("open_clip") for name in weights_names)
        prefers_open_clip = has_only_open_clip or CONFIG_FILE not in file_names
        if OPEN_CLIP_FILE in file_names and prefers_open_clip:
            config_file = folder / OPEN_CLIP_FILE
    if config_file.name not in file_names:
        location = Location(origin, file_names=file_names)
        location.find_weights()  # raises unless there is exactly one weights file
        return location
    config_fields = None
    try:
        config_fields = read_json(config_file)
    except InputError:
        if not config_may_be_broken:
            raise
    # A broken config.json is taken for published weights'.
    config_keys = PUBLISHED_KEYS if config_fields is None else {*config_fields}
    if OPEN_CLIP_FILE not in file_names and not config_keys & PUBLISHED_KEYS:
        origin = dataclasses.replace(origin, kind=RUN_KIND, run=config_fields)
    return Location(origin, config_file, config_fields, file_names=file_names)


def _list_weights_names(file_names):
    """List a folder's weights files: the first usual name, or else all."""
    for name in WEIGHTS_FILES:
        if name in file_names:
            return [name]
    candidate_names = file_names - {*LEARNED_FILES}
    return sorted(
        name for name in candidate_names if pathlib.Path(name).suffix in WEIGHTS_ENDINGS
    )
