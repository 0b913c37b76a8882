"""Find out what a weights path holds: a file, a published folder, or a run.

`find` looks at a path once. Later questions read its Location.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import WeightsSource
from imagepiece_jax.models.program import is_exported
from imagepiece_jax.weights import hub
from imagepiece_jax.weights.file_names import (
    BESIDE,
    CONFIG,
    ENDINGS,
    OPEN_CLIP,
    OURS,
    WEIGHTS,
)

# Kinds of a Location, as error messages call them.
FILE = "weights file"
FOLDER = "folder"  # in the Hugging Face hub's format
RUN = "run"
STATE_DICT = "state dict"  # in memory
# config.json keys of published weights (timm's, transformers', ours), not of runs.
PUBLISHED = {"architecture", "architectures", "model_type", OURS}


@dataclasses.dataclass(frozen=True)
class Location:
    """Weights on this machine."""

    path: pathlib.Path | None  # None: in memory
    kind: str  # FILE, FOLDER, RUN or STATE_DICT
    # the config file of a folder's weights, if there is one, and its content
    config_file: pathlib.Path | None = None
    config: Mapping[str, Any] | None = None  # also None for broken JSON
    tensors: Mapping[str, Any] | None = None  # a STATE_DICT's
    # file names in a folder
    names: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    @property
    def name(self) -> str:
        """The last part of the path, or OWNER/NAME for a hub repository."""
        if self.path is None:
            return ""
        return hub.repository_at(self.path) or self.path.name

    @property
    def title(self) -> str:
        """The path in error messages: "run runs/a", "folder hf://OWNER/NAME"."""
        return WeightsSource(path=self.path, kind=self.kind, name=self.name).title

    def weights_file(self) -> pathlib.Path:
        """Find a folder's single weights file."""
        candidates = _weights_names(self.names)
        if len(candidates) == 1:
            return self.path / candidates[0]
        raise InputError(
            f"folder {self.path} must have one weights file, such as {WEIGHTS[0]}; it "
            f"has {', '.join(candidates) or 'none'}"
        )


def find(path: str | os.PathLike, may_be_broken: bool = False) -> Location:
    """Find the weights at a path or hub id; a hub id is fetched unless it is cached.

    Only a folder's config file is read. A folder with one weights file may lack it.

    may_be_broken: accept a local config file that is not JSON
    """
    if hub.is_id(path):  # its config must be JSON: it tells which files to fetch
        return _in_folder(hub.fetched(str(path)))
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"weights is '{path}': no such file or folder; a model of the Hugging Face "
            f"hub is {hub.SCHEME}OWNER/NAME"
        )
    if path.is_dir():
        return _in_folder(path, may_be_broken)
    if is_exported(path):
        raise InputError(
            f"weights is '{path}', an exported program; evaluate, benchmark and "
            "onnxruntime run it, but load needs the original weights"
        )
    return Location(path, FILE)


def of_config(file: str | os.PathLike) -> Location:
    """Find the weights in a config file's folder, and read that config file."""
    file = pathlib.Path(file).expanduser()
    return _in_folder(file.parent, config_file=file)


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or folder exists, or `path` is a hub id."""
    # os.path.exists is False for a name that is too long.
    return hub.is_id(path) or os.path.exists(path)


def is_run(path: str | os.PathLike) -> bool:
    """Whether `path` is a run's folder."""
    folder = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(folder / CONFIG):  # also False for a name that is too long
        return False
    return _in_folder(folder).kind == RUN


def _in_folder(folder, may_be_broken=False, config_file=None):
    """Make a folder's Location.

    config_file: None: the preferred config file
    """
    names = frozenset(os.listdir(folder))
    file = config_file or folder / _config_name(names)
    if file.name not in names:
        location = Location(folder, FOLDER, names=names)
        location.weights_file()  # raises unless there is exactly one weights file
        return location
    config = None
    try:
        config = read_json(file)
    except InputError:
        if not may_be_broken:
            raise
    kind = FOLDER
    if config is not None and OPEN_CLIP not in names and not {*config} & PUBLISHED:
        kind = RUN
    return Location(folder, kind, file, config, names=names)


def _config_name(names):
    """Choose a folder's config file name; the file may be missing."""
    # OpenCLIP repositories often hold transformers' weights and config.json too, and
    # these are preferred.
    weights = _weights_names(names)
    only_open_clip = all(name.startswith("open_clip") for name in weights)
    if OPEN_CLIP in names and (only_open_clip or CONFIG not in names):
        return OPEN_CLIP
    return CONFIG


def _weights_names(names):
    """List a folder's weights files: the first usual name, or else all."""
    for name in WEIGHTS:
        if name in names:
            return [name]
    candidates = names - {*BESIDE}
    return sorted(name for name in candidates if pathlib.Path(name).suffix in ENDINGS)
