"""Location, the first stage of `load`: a file, a published folder, a run or a dict.

`locate_weights` looks at a path once. A Hugging Face hub id is hf://OWNER/NAME or
hf://OWNER/NAME@REVISION: a branch, a tag or a commit. Its config files and one weights
file go into huggingface_hub's own cache, which is then read like any other folder.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, cast

from imagepiece_jax.common import extras
from imagepiece_jax.common.checks import check_choice
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Origin
from imagepiece_jax.weights import folder_files, tensor_files
from imagepiece_jax.weights.tensor_files import PathOrStateDict

HUB_SCHEME = "hf://"
# Kinds of weights, as error messages call them.
FILE_KIND = "weights file"
FOLDER_KIND = "folder"  # in the Hugging Face hub's format
RUN_KIND = "run"
STATE_DICT_KIND = "state dict"  # in memory
# config.json keys of published weights (timm's, transformers', ours), not of runs.
PUBLISHED_KEYS = {"architecture", "architectures", "model_type", folder_files.OWN_KEY}


@dataclasses.dataclass(frozen=True)
class Location:
    """Weights on this machine."""

    origin: Origin  # path, kind and name; a run's config and checkpoint
    # the config file of a folder's weights, if there is one, and its content
    config_file: pathlib.Path | None = None
    config_fields: Mapping[str, Any] | None = None
    tensors: Mapping[str, Any] | None = None  # a STATE_DICT_KIND's
    file_names: frozenset[str] = frozenset()  # in a folder

    @property
    def path(self) -> pathlib.Path:
        """The path of weights on disk; a state dict has none."""
        return cast(pathlib.Path, self.origin.path)

    def find_weights(self) -> pathlib.Path | Mapping[str, Any]:
        """Find the weights: a file, a folder's single one, or a state dict."""
        if self.origin.kind != FOLDER_KIND:
            return self.path if self.tensors is None else self.tensors
        weights_names = _list_weights_files(self.file_names)
        if len(weights_names) == 1:
            return self.path / weights_names[0]
        problem = f"{', '.join(weights_names)}, not one weights file"
        if not weights_names:
            default_name = folder_files.WEIGHTS_FILES[0]
            problem = f"no {default_name}; name an exported file by its own path"
        raise InputError(f"folder {self.path} has {problem}")


def locate_weights(
    weights: PathOrStateDict, checkpoint: str | None = None, averaged: bool = False
) -> Location:
    """Find weights, named as for `load`; a hub id is fetched unless it is cached.

    Only a folder's config file is read. A folder with one weights file may lack it. The
    path of a config file stands for its folder.
    """
    if isinstance(weights, Mapping):
        location = Location(Origin(kind=STATE_DICT_KIND), tensors=weights)
    elif str(weights).startswith(HUB_SCHEME):
        location = _locate_folder_weights(fetch_folder(str(weights)))
    else:
        path = pathlib.Path(weights).expanduser()
        if not path.exists():
            raise InputError(
                f"weights is '{path}': no such file or folder; a model of the Hugging "
                f"Face hub is {HUB_SCHEME}OWNER/NAME"
            )
        location = Location(Origin(path=path, kind=FILE_KIND, name=path.name))
        if path.is_dir():
            location = _locate_folder_weights(path)
        elif path.name in (folder_files.CONFIG_FILE, folder_files.OPEN_CLIP_FILE):
            location = _locate_folder_weights(path.parent, config_file=path)
    origin = location.origin
    if origin.kind == RUN_KIND:
        checkpoint = checkpoint or "best"
        check_choice("checkpoint", checkpoint, folder_files.CHECKPOINT_KINDS)
    elif averaged:
        raise InputError(f"averaged is for a run, but this is {origin.title}")
    origin = dataclasses.replace(origin, checkpoint=checkpoint, averaged=averaged)
    return dataclasses.replace(location, origin=origin)


@functools.cache  # a process asks the hub once
def fetch_folder(hub_id: str) -> pathlib.Path:
    """Fetch a hub id, and return its folder in the cache."""
    extras.check_installed(hub_id, "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = hub_id.removeprefix(HUB_SCHEME).partition("@")

    def fetch_files(branch_or_commit, file_names):
        cached_folder = huggingface_hub.snapshot_download(
            repository, revision=branch_or_commit, allow_patterns=file_names
        )
        return pathlib.Path(cached_folder)

    small_files = [*folder_files.FACT_FILES, *folder_files.LEARNED_FILES]
    try:
        folder = fetch_files(revision or None, small_files)  # None: the main branch
    except (errors.HFValidationError, errors.LocalEntryNotFoundError) as error:
        raise InputError(f"{hub_id}: {error}") from error
    commit = folder.name  # as the cache names folders; all files are of one commit
    try:
        tree = huggingface_hub.get_cached_repo_tree(repository, revision=commit)
        repository_names = {file.path for file in tree}
    except errors.CachedRepoTreeNotFoundError:
        # Offline, and another program filled the cache, perhaps without all files.
        repository_names = {*os.listdir(folder)}
    known_names = folder_files.WEIGHTS_FILES
    weights_names = [name for name in known_names if name in repository_names]
    if not weights_names:
        raise InputError(f"{hub_id} has none of {', '.join(known_names)}")
    # Only the first is fetched: the names are in order of preference.
    part_of_tensor = {}
    if weights_names[0].endswith(folder_files.INDEX_ENDING):
        part_of_tensor = tensor_files.read_weight_map(folder / weights_names[0])
    fetch_files(commit, [weights_names[0], *part_of_tensor.values()])
    return folder


def _locate_folder_weights(folder, config_file=None):
    """Find the weights in a folder; config_file: None: the preferred config file."""
    file_names = frozenset(os.listdir(folder))
    name = folder.name
    # A folder in the hub's cache: models--OWNER--NAME/snapshots/COMMIT
    cache_name = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cache_name.startswith("models--"):
        name = cache_name.removeprefix("models--").replace("--", "/")
    origin = Origin(path=folder, kind=FOLDER_KIND, name=name)
    if config_file is None:
        # OpenCLIP repositories often hold transformers' weights and config.json too,
        # and these are preferred.
        config_file = folder / folder_files.CONFIG_FILE
        weights_names = _list_weights_files(file_names)
        has_only_open_clip = all(each.startswith("open_clip") for each in weights_names)
        prefers_open_clip = has_only_open_clip or config_file.name not in file_names
        if folder_files.OPEN_CLIP_FILE in file_names and prefers_open_clip:
            config_file = folder / folder_files.OPEN_CLIP_FILE
    if config_file.name not in file_names:
        location = Location(origin, file_names=file_names)
        location.find_weights()  # raises unless there is exactly one weights file
        return location
    config_fields = read_json(config_file)
    # OpenCLIP's repositories are published, whatever their config.json holds.
    has_open_clip_file = folder_files.OPEN_CLIP_FILE in file_names
    if not has_open_clip_file and PUBLISHED_KEYS.isdisjoint(config_fields):
        origin = dataclasses.replace(origin, kind=RUN_KIND, run=config_fields)
    return Location(origin, config_file, config_fields, file_names=file_names)


def _list_weights_files(file_names):
    """List a folder's weights files: the first usual name, or else all."""
    for name in folder_files.WEIGHTS_FILES:
        if name in file_names:
            return [name]
    other_names = sorted(file_names - {*folder_files.LEARNED_FILES})
    return [name for name in other_names if name.endswith(folder_files.WEIGHTS_ENDINGS)]
