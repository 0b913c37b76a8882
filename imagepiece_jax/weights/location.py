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
from imagepiece_jax.models.origin import Origin
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

    path: pathlib.Path | None  # None: in memory
    kind: str  # FILE_KIND, FOLDER_KIND, RUN_KIND or STATE_DICT_KIND
    # the config file of a folder's weights, if there is one, and its content
    config_file: pathlib.Path | None = None
    config_fields: Mapping[str, Any] | None = None  # also None for broken JSON
    tensors: Mapping[str, Any] | None = None  # a STATE_DICT_KIND's
    # file names in a folder
    file_names: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
    checkpoint: str | None = None  # a run's CHECKPOINT_KINDS; a model's key in a file
    averaged: bool = False  # whether to read a run's averaged weights

    @property
    def origin(self) -> Origin:
        """What the path tells about the weights; an Origin's other fields are empty."""
        name = ""
        if self.path is not None:
            name = hub.cached_repository_name(self.path) or self.path.name
        return Origin(
            path=self.path,
            kind=self.kind,
            name=name,
            checkpoint=self.checkpoint,
            averaged=self.averaged,
            run=self.config_fields if self.kind == RUN_KIND else None,
        )

    @property
    def title(self) -> str:
        """The path in error messages: "run runs/a", "folder hf://OWNER/NAME"."""
        return self.origin.title

    @property
    def disk_path(self) -> pathlib.Path:
        """The path of weights on disk; a state dict has none."""
        return cast(pathlib.Path, self.path)

    def find_weights(self) -> pathlib.Path | Mapping[str, Any]:
        """Find the weights: a file, a folder's single one, or a state dict."""
        if self.kind != FOLDER_KIND:
            return self.disk_path if self.tensors is None else self.tensors
        weights_names = _list_weights_names(self.file_names)
        if len(weights_names) == 1:
            return self.disk_path / weights_names[0]
        names = ", ".join(weights_names) or f"none, such as {WEIGHTS_FILES[0]}"
        raise InputError(f"folder {self.path} has {names}, not one weights file")


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
    if not isinstance(weights, Mapping):
        location = _locate_weights_at(weights, has_config)
    elif has_config:
        location = Location(None, STATE_DICT_KIND, tensors=weights)
    else:
        raise InputError("config is missing: a state dict does not say its model")
    title = location.title
    if location.kind == RUN_KIND:
        checkpoint = checkpoint or "best"
        check_choice("checkpoint", checkpoint, CHECKPOINT_KINDS)
    elif checkpoint in CHECKPOINT_KINDS:
        raise InputError(f"checkpoint is {checkpoint!r}, but {title} is no run")
    elif averaged:
        raise InputError(
            f"averaged is for a run, but this is {title}; in a file, "
            "checkpoint is the key of the averages"
        )
    return dataclasses.replace(location, checkpoint=checkpoint, averaged=averaged)


def _locate_weights_at(path_or_id, config_may_be_broken):
    """Find the weights at a path or hub id."""
    # A hub folder's config must be JSON: it tells which files to fetch.
    if hub.is_hub_id(path_or_id):
        return _locate_weights_in(hub.fetch_folder(str(path_or_id)))
    path = pathlib.Path(path_or_id).expanduser()
    if not path.exists():
        raise InputError(
            f"weights is '{path}': no such file or folder; a model of the Hugging Face "
            f"hub is {hub.HUB_SCHEME}OWNER/NAME"
        )
    if path.is_dir():
        return _locate_weights_in(path, config_may_be_broken)
    if is_exported(path):
        raise InputError(
            f"weights is '{path}', an exported program; evaluate, benchmark and "
            "onnxruntime run it, but load needs the original weights"
        )
    return Location(path, FILE_KIND)


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
    chosen_file = config_file or folder / _choose_config_name(file_names)
    if chosen_file.name not in file_names:
        location = Location(folder, FOLDER_KIND, file_names=file_names)
        location.find_weights()  # raises unless there is exactly one weights file
        return location
    config_fields = None
    try:
        config_fields = read_json(chosen_file)
    except InputError:
        if not config_may_be_broken:
            raise
    kind = FOLDER_KIND
    # A broken config.json is taken for published weights'.
    config_keys = PUBLISHED_KEYS if config_fields is None else {*config_fields}
    if OPEN_CLIP_FILE not in file_names and not config_keys & PUBLISHED_KEYS:
        kind = RUN_KIND
    return Location(folder, kind, chosen_file, config_fields, file_names=file_names)


def _choose_config_name(file_names):
    """Choose a folder's config file name; the file may be missing."""
    # OpenCLIP repositories often hold transformers' weights and config.json too, and
    # these are preferred.
    weights_names = _list_weights_names(file_names)
    has_only_open_clip = all(name.startswith("open_clip") for name in weights_names)
    prefers_open_clip = has_only_open_clip or CONFIG_FILE not in file_names
    if OPEN_CLIP_FILE in file_names and prefers_open_clip:
        return OPEN_CLIP_FILE
    return CONFIG_FILE


def _list_weights_names(file_names):
    """List a folder's weights files: the first usual name, or else all."""
    for name in WEIGHTS_FILES:
        if name in file_names:
            return [name]
    candidate_names = file_names - {*LEARNED_FILES}
    return sorted(
        name for name in candidate_names if pathlib.Path(name).suffix in WEIGHTS_ENDINGS
    )
