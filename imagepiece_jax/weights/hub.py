"""Fetch weights from the Hugging Face hub by id: hf://OWNER/NAME or ..@REVISION.

A revision is a branch, a tag or a commit. Config files and one weights file go into
huggingface_hub's own cache, which is then read like any other folder.
"""

import functools
import os
import pathlib
import re

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import file_names, tensor_files
from imagepiece_jax.weights.file_names import OPEN_CLIP_FILE, JsonFields

HUB_SCHEME = "hf://"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_id(path_or_id: str | os.PathLike) -> bool:
    """Whether `path_or_id` is a hub id."""
    return str(path_or_id).startswith(HUB_SCHEME)


def cached_repository_name(folder: pathlib.Path) -> str | None:
    """Return OWNER/NAME of a folder in the hub's cache; None for any other folder."""
    repository_folder = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository_folder.startswith("models--"):
        return repository_folder.removeprefix("models--").replace("--", "/")
    return None


def fetch_folder(hub_id: str) -> pathlib.Path:
    """Fetch a hub id, and return its folder in the cache."""
    # A process asks the hub once, and again if another process cleared the cache.
    if not all(file.exists() for file in fetch_repository_files(hub_id)):
        fetch_repository_files.cache_clear()
    return fetch_repository_files(hub_id)[0].parent


@functools.cache
def fetch_repository_files(hub_id: str) -> list[pathlib.Path]:
    """Fetch the files of a hub id: the config file, then the rest."""
    repository = _parse_hub_id(hub_id)
    config_file = repository.fetch_first(file_names.CONFIG_FILE, OPEN_CLIP_FILE)
    config_fields = read_json(config_file)
    weights_file = _fetch_weights(repository)
    if config_file.name == OPEN_CLIP_FILE:
        return repository.fetched_files
    if weights_file.name.startswith("open_clip"):
        repository.fetch_optional(OPEN_CLIP_FILE)
    # timm's and our own config need no other file.
    if "architecture" not in config_fields:
        _fetch_image_processor(repository)
    _fetch_learned_files(repository, config_fields.get(file_names.OWN_KEY))
    return repository.fetched_files


class _Repository:
    """One revision of a repository, fetched file by file."""

    # Why not `huggingface_hub.snapshot_download` (2.4)? Without a network it returns a
    # folder that lacks files if another program, such as timm, filled the cache. A
    # model without its preprocessor_config.json would then silently get another mean
    # and std (test_a_cache_must_know_whether_the_hub_has_a_file). It also cannot choose
    # one of several weights files (test_only_needed_files_are_fetched).

    def __init__(self, hub_id: str, name: str, revision: str | None) -> None:
        self._hub_id = hub_id
        self._name = name
        self._revision = revision
        self._is_unreachable = False
        self.fetched_files: list[pathlib.Path] = []

    def fetch_first(self, *candidates: str) -> pathlib.Path:
        """Fetch the first of these files that exists, and return its path."""
        for file_name in candidates:
            if file := self.try_fetch(file_name):
                return file
        subject = self._hub_id
        if self._is_unreachable:
            subject += ": the hub cannot be reached, and its cache"
        raise InputError(f"{subject} has none of {', '.join(candidates)}")

    def fetch_optional(self, file_name: str) -> pathlib.Path | None:
        """Fetch a file if the repository has it; return its path or None.

        Raises InputError if neither the hub nor the cache can tell.
        """
        file = self.try_fetch(file_name)
        if file or not self._is_unreachable:
            return file
        import huggingface_hub

        cached_file = huggingface_hub.try_to_load_from_cache(
            self._name, file_name, revision=self._revision
        )
        # Any other value means that the repository has no file of this name.
        if cached_file is None:
            raise InputError(
                f"{self._hub_id}: the hub cannot be reached, and the cache does not "
                f"say whether {file_name} exists; offline, load the folder "
                f"{self.fetched_files[0].parent}"
            )
        return None

    def try_fetch(self, file_name: str) -> pathlib.Path | None:
        """Fetch a file and return its path; None if it is missing or out of reach."""
        import huggingface_hub
        from huggingface_hub import errors

        try:
            fetched_path = huggingface_hub.hf_hub_download(
                self._name,
                file_name,
                revision=self._revision,
                local_files_only=self._is_unreachable,
            )
        except errors.LocalEntryNotFoundError:
            self._is_unreachable = True  # no further requests: a request takes seconds
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.HFValidationError as error:
            raise InputError(f"{self._hub_id}: {error}") from error
        file = pathlib.Path(fetched_path)
        self.fetched_files.append(file)
        # The cache names folders after commits: the first file fixes the commit of all
        # later files.
        self._revision = file.parent.name
        return file


def _fetch_weights(repository: _Repository) -> pathlib.Path:
    """Fetch one weights file, or an index with all its parts; return its path."""
    weights_file = repository.fetch_first(*file_names.WEIGHTS_FILES)
    if weights_file.name.endswith(file_names.INDEX_ENDING):
        for part_name in sorted({*tensor_files.read_weight_map(weights_file).values()}):
            repository.fetch_first(part_name)
    return weights_file


def _fetch_image_processor(repository: _Repository) -> None:
    """Fetch the config files of transformers' image processor."""
    # transformers 5 prefers processor_config.json, and writes no other file for
    # image-text models. Caches that older versions filled do not know it, so beside a
    # preprocessor_config.json it may be out of reach.
    if repository.fetch_optional(file_names.PREPROCESSOR_FILE):
        repository.try_fetch(file_names.PROCESSOR_FILE)
    else:
        repository.fetch_optional(file_names.PROCESSOR_FILE)


def _fetch_learned_files(repository: _Repository, record: JsonFields | None) -> None:
    """Fetch what `save` wrote beside the weights."""
    if record is not None:
        repository.fetch_optional(file_names.SELECTORS_FILE)
        if "recovery" in record:
            repository.fetch_optional(file_names.RECOVERED_FILE)


def _parse_hub_id(hub_id: str) -> _Repository:
    """Find the repository and revision of a hub id; nothing is fetched."""
    name_and_revision = hub_id.removeprefix(HUB_SCHEME)
    if not _HUB_ID.fullmatch(name_and_revision):
        raise InputError(
            f"{hub_id} is not a hub id; it must be {HUB_SCHEME}OWNER/NAME or "
            f"{HUB_SCHEME}OWNER/NAME@REVISION"
        )
    extras.check_installed(hub_id, "huggingface_hub")
    name, _, revision = name_and_revision.partition("@")
    return _Repository(hub_id, name, revision or None)
