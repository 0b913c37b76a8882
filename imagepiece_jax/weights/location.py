"""What there is at a path of weights: a file, a published folder, or a run.

A path is looked at once, by `find`, whose Location has all that is asked of it later.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError, inside
from imagepiece_jax.weights import hub
from imagepiece_jax.weights.file_names import (
    ADAPTER,
    BESIDE,
    CHECKPOINTS,
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
# Keys of a config.json that only published weights have: timm's, transformers', ours.
PUBLISHED = ("architecture", "architectures", "model_type", OURS)
ALLOWED = (
    f"a weights file, a folder with {CONFIG} and weights as timm, transformers "
    f"or save writes them, the folder of a run, or {hub.SCHEME}OWNER/NAME"
)


@dataclasses.dataclass(frozen=True)
class Location:
    """Weights on this machine."""

    path: pathlib.Path
    kind: str  # FILE, FOLDER or RUN
    # what says which model a folder's weights are, and its content; None: of a file
    config_file: pathlib.Path | None = None
    config: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The last part of the path; of a repository of the hub OWNER/NAME."""
        return hub.repository_at(self.path) or self.path.name

    @property
    def place(self) -> str:
        """The path in sentences: "run runs/a", "folder hf://OWNER/NAME"."""
        repository = hub.repository_at(self.path)
        if repository is None:
            return f"{self.kind} {self.path}"
        return f"{self.kind} {hub.SCHEME}{repository}"


def find(path: str | os.PathLike) -> Location:
    """The weights at a path, or of a hub id, whose files are fetched for that.

    A folder's config file is read, and no other. Files of the hub that are in its cache
    are not fetched again.
    Raises InputError where there is nothing, where files cannot be fetched, for a
        malformed id, and for a folder that says nothing of its weights.
    """
    field = "path"
    text = os.fspath(path)
    if not text:
        raise InputError(field, None, "files and folders", problem="is empty")
    if hub.is_id(text):
        return _in_folder(hub.fetched(text))
    given = path
    path = os.path.expanduser(given)
    if not exists(path):
        problem = f"is {path}: no such file or folder"
        raise InputError(field, path, problem=problem, **hub.hint_for(given))
    path = pathlib.Path(path)
    if path.is_dir():
        return _in_folder(path)
    return Location(path, FILE)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder, or `path` is a hub id."""
    return hub.is_id(path) or os.path.exists(path)  # False for a name that is too long


def is_run(path: str | os.PathLike) -> bool:
    """Whether there is the folder of a run at `path`.

    Raises InputError as `find` does, but where there is nothing.
    """
    folder = pathlib.Path(os.path.expanduser(path))
    if not os.path.isfile(folder / CONFIG):  # nor for a name that is too long
        return False
    return _in_folder(folder).kind == RUN


def last_checkpoint(path: str | os.PathLike) -> str | None:
    """The checkpoint for figures: "latest" of a run, None of other weights.

    A run's best was chosen on the images of the figures.
    """
    return "latest" if is_run(path) else None


def _in_folder(folder):
    """The Location of a folder. Raises InputError where nothing says what it holds."""
    file = config_file(folder)
    config = None
    if file.exists():
        config = read_json(file)
        names_model = any(key in config for key in PUBLISHED)
        if names_model or (folder / OPEN_CLIP).is_file():
            return Location(folder, FOLDER, file, config)
    with inside(place=f"folder {folder}"):
        _check_run(folder, config)
    return Location(folder, RUN, file, config)


def _check_run(folder, config):
    """Raise InputError for a folder that is known to be something else than a run.

    config: the content of its config.json; None: it has none
    """
    if (folder / ADAPTER).exists() or "peft_type" in (config or ()):
        problem = "holds a peft adapter, which has only the changes to a model"
        allowed = "the folder that merge_and_unload().save_pretrained(..) writes"
        raise InputError(allowed=allowed, problem=problem)
    if config is not None:
        return
    for run in folder.parents:
        within = folder.relative_to(run).parts[0] == CHECKPOINTS
        if within and (run / CONFIG).is_file():
            allowed = f"{run} itself, and best or latest for the checkpoint"
            raise InputError(allowed=allowed, problem=f"is in the run {run}")
    if files := weights_files(folder):
        names = ", ".join(file.name for file in files)
        problem = f"has weights ({names}), but no {CONFIG}"
        hint = f"name the file that you mean, such as {files[0]}"
        raise InputError(problem=problem, hint=hint)
    raise InputError(allowed=ALLOWED, problem=f"has no {CONFIG}")


def config_file(folder: pathlib.Path) -> pathlib.Path:
    """The file of a folder that says which model its weights are, there or not.

    Repositories of OpenCLIP often hold transformers' weights and config.json, too,
    which are preferred.
    """
    of_open_clip = folder / OPEN_CLIP
    config = folder / CONFIG
    if not of_open_clip.is_file():
        return config
    names = [file.name for file in weights_files(folder)]
    only_open_clip = all(name.startswith("open_clip") for name in names)
    if only_open_clip or not config.is_file():
        return of_open_clip
    return config


def weights_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights in a folder: one of a usual name, or else all."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix in ENDINGS and file.name not in BESIDE:
            found.append(file)
    return found


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder. Raises InputError for none, and for several."""
    candidates = weights_files(folder)
    if len(candidates) == 1:
        return candidates[0]
    names = [file.name for file in candidates]
    problem = "has no weights file"
    if names:
        problem = f"has {len(names)} weights files, {', '.join(names)}"
    raise InputError.at(
        f"folder {folder}", problem, f"one, such as {WEIGHTS[0]}", value=names
    )
