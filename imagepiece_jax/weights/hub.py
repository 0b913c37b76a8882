"""Fetch weights from the Hugging Face hub by id: hf://OWNER/NAME or ..@REVISION.

A revision is a branch, a tag or a commit. Config files and one weights file go into
huggingface_hub's own cache, which is then read like any other folder.
"""

import functools
import os
import pathlib

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import file_names, tensor_files

HUB_SCHEME = "hf://"


def is_hub_id(path_or_id: str | os.PathLike) -> bool:
    """Whether `path_or_id` is a hub id."""
    return str(path_or_id).startswith(HUB_SCHEME)


@functools.cache  # a process asks the hub once
def fetch_folder(hub_id: str) -> pathlib.Path:
    """Fetch a hub id, and return its folder in the cache."""
    extras.check_installed(hub_id, "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    name, _, revision = hub_id.removeprefix(HUB_SCHEME).partition("@")

    def fetch(revision, patterns):
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns
        )
        return pathlib.Path(folder)

    patterns = [*file_names.FACT_FILES, *file_names.LEARNED_FILES]
    try:
        folder = fetch(revision or None, patterns)
    except (errors.HFValidationError, errors.LocalEntryNotFoundError) as error:
        raise InputError(f"{hub_id}: {error}") from error
    commit = folder.name  # as the cache names folders; all files are of one commit
    try:
        tree = huggingface_hub.get_cached_repo_tree(name, revision=commit)
        repository_names = {file.path for file in tree}
    except errors.CachedRepoTreeNotFoundError:
        # Offline, and another program filled the cache, perhaps without all files.
        repository_names = {*os.listdir(folder)}
        # timm's config and ours have mean and std, transformers' has not. Without its
        # processor's file a model would silently get another mean and std.
        processor_files = {file_names.PREPROCESSOR_FILE, file_names.PROCESSOR_FILE}
        if (
            file_names.CONFIG_FILE in repository_names
            and not processor_files & repository_names
            and "architecture" not in read_json(folder / file_names.CONFIG_FILE)
        ):
            raise InputError(
                f"{hub_id}: the hub cannot be reached, and its cache does not say "
                f"whether {file_names.PREPROCESSOR_FILE} exists; offline, load the "
                f"folder {folder}"
            ) from None
    names = [name for name in file_names.WEIGHTS_FILES if name in repository_names]
    if not names:
        raise InputError(f"{hub_id} has none of {', '.join(file_names.WEIGHTS_FILES)}")
    patterns = names[:1]
    if patterns[0].endswith(file_names.INDEX_ENDING):
        parts = tensor_files.read_weight_map(folder / names[0]).values()
        patterns = [names[0], *parts]
    fetch(commit, patterns)
    return folder
