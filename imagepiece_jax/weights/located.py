"""Located, the first stage of `load`: a file, a published folder, a run or a dict.

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
class Located:
    """Weights on this machine."""

    path: pathlib.Path | None  # None: in memory
    kind: str  # FILE_KIND, FOLDER_KIND, RUN_KIND or STATE_DICT_KIND
    # the config file of a folder's weights, if there is one, and its content
    config_file: pathlib.Path | None = None
    config: Mapping[str, Any] | None = None  # also None for broken JSON
    tensors: Mapping[str, Any] | None = None  # a STATE_DICT_KIND's
    # file names in a folder
    names: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)
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
            run=self.config if self.kind == RUN_KIND else None,
        )

    @property
    def title(self) -> str:
        """The path in error messages: "run runs/a", "folder hf://OWNER/NAME"."""
        return self.origin.title

    @property
    def folder(self) -> pathlib.Path:
        """The path of weights on disk; a state dict has none."""
        return cast(pathlib.Path, self.path)

    def find_tensors(self) -> pathlib.Path | Mapping[str, Any]:
        """Find the weights file, in a folder the single one, or the state dict."""
        if self.kind != FOLDER_KIND:
            return self.folder if self.tensors is None else self.tensors
        candidates = _list_weights_names(self.names)
        if len(candidates) == 1:
            return self.folder / candidates[0]
        raise InputError(
            f"folder {self.path} must have one weights file, such as "
            f"{WEIGHTS_FILES[0]}; it has {', '.join(candidates) or 'none'}"
        )


def locate_weights(
    weights: str | os.PathLike | Mapping[str, Any],
    has_config: bool = False,
    checkpoint: str | None = None,
    averaged: bool = False,
) -> Located:
    """Find weights on this machine; a hub id is fetched unless it is cached.

    Only a folder's config file is read. A folder with one weights file may lack it.

    weights: a path, a hub id or a state dict
    has_config: whether the caller describes the model; a state dict then needs no
        config file, and a local config file need not be JSON
    checkpoint, averaged: as for `load`
    """
    if not isinstance(weights, Mapping):
        located = _locate_path(weights, has_config)
    elif has_config:
        located = Located(None, STATE_DICT_KIND, tensors=weights)
    else:
        raise InputError("config is missing: a state dict does not say its model")
    if located.kind == RUN_KIND:
        checkpoint = checkpoint or "best"
        check_choice("checkpoint", checkpoint, CHECKPOINT_KINDS)
    elif checkpoint in CHECKPOINT_KINDS:
        raise InputError(f"checkpoint is {checkpoint!r}, but {located.title} is no run")
    elif averaged:
        raise InputError(
            f"averaged is for a run, but this is {located.title}; in a file, "
            "checkpoint is the key of the averages"
        )
    return dataclasses.replace(located, checkpoint=checkpoint, averaged=averaged)


def _locate_path(path: str | os.PathLike, config_may_be_broken: bool) -> Located:
    """Find the weights at a path or hub id."""
    if hub.is_hub_id(path):  # its config must be JSON: it tells which files to fetch
        return _locate_folder(hub.fetch_folder(str(path)))
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"weights is '{path}': no such file or folder; a model of the Hugging Face "
            f"hub is {hub.HUB_SCHEME}OWNER/NAME"
        )
    if path.is_dir():
        return _locate_folder(path, config_may_be_broken)
    if is_exported(path):
        raise InputError(
            f"weights is '{path}', an exported program; evaluate, benchmark and "
            "onnxruntime run it, but load needs the original weights"
        )
    return Located(path, FILE_KIND)


def locate_config(path: str) -> Located | None:
    """Find the weights at a path, or beside the config file at a path; None: neither.

    Of several config files, the named one is read.
    """
    folder, name = os.path.split(path)
    is_config_file = name in (CONFIG_FILE, OPEN_CLIP_FILE)
    if hub.is_hub_id(path):
        return locate_weights(folder if is_config_file else path)
    config_file = os.path.expanduser(path)
    if not os.path.exists(config_file):  # also for a name that is too long
        return None
    config_file = pathlib.Path(config_file)
    if is_config_file:
        return _locate_folder(config_file.parent, config_file=config_file)
    return locate_weights(config_file)


def _locate_folder(
    folder: pathlib.Path,
    config_may_be_broken: bool = False,
    config_file: pathlib.Path | None = None,
) -> Located:
    """Find the weights in a folder.

    config_file: None: the preferred config file
    """
    names = frozenset(os.listdir(folder))
    found_file = config_file or folder / _choose_config_name(names)
    if found_file.name not in names:
        located = Located(folder, FOLDER_KIND, names=names)
        located.find_tensors()  # raises unless there is exactly one weights file
        return located
    config = None
    try:
        config = read_json(found_file)
    except InputError:
        if not config_may_be_broken:
            raise
    kind = FOLDER_KIND
    keys = PUBLISHED_KEYS if config is None else {*config}
    if OPEN_CLIP_FILE not in names and not keys & PUBLISHED_KEYS:
        kind = RUN_KIND
    return Located(folder, kind, found_file, config, names=names)


def _choose_config_name(names: frozenset[str]) -> str:
    """Choose a folder's config file name; the file may be missing."""
    # OpenCLIP repositories often hold transformers' weights and config.json too, and
    # these are preferred.
    weights_names = _list_weights_names(names)
    has_only_open_clip = all(name.startswith("open_clip") for name in weights_names)
    if OPEN_CLIP_FILE in names and (has_only_open_clip or CONFIG_FILE not in names):
        return OPEN_CLIP_FILE
    return CONFIG_FILE


def _list_weights_names(names: frozenset[str]) -> list[str]:
    """List a folder's weights files: the first usual name, or else all."""
    for name in WEIGHTS_FILES:
        if name in names:
            return [name]
    candidates = names - {*LEARNED_FILES}
    return sorted(
        name for name in candidates if pathlib.Path(name).suffix in WEIGHTS_ENDINGS
    )
