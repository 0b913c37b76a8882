"""What there is at a path of weights: a file, a published folder, or a run.

A path is looked at once, by `find`, whose Location has all that is asked of it later.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import WeightsSource
from imagepiece_jax.weights import hub
from imagepiece_jax.weights.file_names import (
    BESIDE,
    CONFIG,
    ENDINGS,
    OPEN_CLIP,
    OURS,
    WEIGHTS,
)

# Kinds of a Location, in words.
FILE = "weights file"
FOLDER = "folder"  # in the form of the Hugging Face hub
RUN = "run"
STATE_DICT = "state dict"  # in memory
# Keys of a config.json that only published weights have: timm's, transformers', ours.
PUBLISHED = {"architecture", "architectures", "model_type", OURS}


@dataclasses.dataclass(frozen=True)
class Location:
    """Weights on this machine."""

    path: pathlib.Path | None  # None: in memory
    kind: str  # FILE, FOLDER, RUN or STATE_DICT
    # what says which model a folder's weights are, and its content; None: nothing does
    config_file: pathlib.Path | None = None
    config: Mapping[str, Any] | None = None  # None, too, where it is no JSON
    tensors: Mapping[str, Any] | None = None  # of a STATE_DICT
    # of the files in a folder
    names: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    @property
    def name(self) -> str:
        """The last part of the path; of a repository of the hub OWNER/NAME."""
        if self.path is None:
            return ""
        return hub.repository_at(self.path) or self.path.name

    @property
    def place(self) -> str:
        """The path in sentences: "run runs/a", "folder hf://OWNER/NAME"."""
        return WeightsSource(path=self.path, kind=self.kind, name=self.name).place

    def weights_file(self) -> pathlib.Path:
        """The file of weights in a folder."""
        candidates = _weights_names(self.names)
        if len(candidates) == 1:
            return self.path / candidates[0]
        raise InputError(
            f"folder {self.path} must have one weights file, such as {WEIGHTS[0]}; it "
            f"has {', '.join(candidates) or 'none'}"
        )


def find(path: str | os.PathLike, may_be_broken: bool = False) -> Location:
    """The weights at a path, or of a hub id, whose files are fetched for that.

    A folder's config file is read, and no other; a folder of one weights file may lack
    it. Files of the hub that are in its cache are not fetched again.

    may_be_broken: whether a folder's config file may be no JSON
    """
    if hub.is_id(path):
        return _in_folder(hub.fetched(str(path)))
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise InputError(
            f"weights is '{path}': no such file or folder; a model of the Hugging Face "
            f"hub is {hub.SCHEME}OWNER/NAME"
        )
    if path.is_dir():
        return _in_folder(path, may_be_broken)
    if path.suffix.lower() == ".onnx":
        raise InputError(
            f"weights is '{path}', an exported program: evaluate, benchmark and "
            "onnxruntime run it; load takes the weights that it was made of"
        )
    return Location(path, FILE)


def of_config(file: str | os.PathLike) -> Location:
    """The weights in the folder of a config file, which says what model they are."""
    file = pathlib.Path(file).expanduser()
    return _in_folder(file.parent, config_file=file)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder, or `path` is a hub id."""
    return hub.is_id(path) or os.path.exists(path)  # False for a name that is too long


def is_run(path: str | os.PathLike) -> bool:
    """Whether there is the folder of a run at `path`."""
    folder = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(folder / CONFIG):  # nor for a name that is too long
        return False
    return _in_folder(folder).kind == RUN


def _in_folder(folder, may_be_broken=False, config_file=None):
    """The Location of a folder, with the arguments of `find`.

    config_file: the one to read; None: the preferred one
    """
    names = frozenset(os.listdir(folder))
    file = config_file or folder / _config_name(names)
    if file.name not in names:
        location = Location(folder, FOLDER, names=names)
        location.weights_file()  # it has one
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
    """The file in a folder that says which model its weights are, there or not.

    Repositories of OpenCLIP often hold transformers' weights and config.json, too,
    which are preferred.
    """
    weights = _weights_names(names)
    only_open_clip = all(name.startswith("open_clip") for name in weights)
    if OPEN_CLIP in names and (only_open_clip or CONFIG not in names):
        return OPEN_CLIP
    return CONFIG


def _weights_names(names):
    """The files of weights in a folder: one of a usual name, or else all."""
    for name in WEIGHTS:
        if name in names:
            return [name]
    others = names - {*BESIDE}
    return sorted(name for name in others if pathlib.Path(name).suffix in ENDINGS)
