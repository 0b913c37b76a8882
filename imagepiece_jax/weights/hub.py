"""Weights of the Hugging Face hub, by their ids.

"hf://timm/vit_small_patch14_reg4_dinov2.lvd142m" names a repository, and "@" with a
branch, a tag or a commit after it one revision. Its config files and one file of
weights are fetched into huggingface_hub's own cache, and read as any other folder.
"""

import functools
import os
import pathlib
import re

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import tensor_files
from imagepiece_jax.weights.file_names import (
    CONFIG,
    INDEX,
    OPEN_CLIP,
    OURS,
    PREPROCESSOR,
    PROCESSOR,
    RECOVERED,
    SELECTORS,
    WEIGHTS,
)

SCHEME = "hf://"
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_id(path: str | os.PathLike) -> bool:
    """Whether `path` is a hub id."""
    return str(path).startswith(SCHEME)


def repository_at(folder: pathlib.Path) -> str | None:
    """OWNER/NAME of a folder in the cache of the hub; None for any other folder."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return None


def fetched(text):
    """The folder of a hub id.

    A process asks the hub once, and again where files are gone: others may clear the
    cache meanwhile.
    """
    if not all(file.exists() for file in repository_files(text)):
        repository_files.cache_clear()
    return repository_files(text)[0].parent


@functools.cache
def repository_files(text):
    """The files of a hub id, config.json first."""
    name = text.removeprefix(SCHEME)
    if not _ID.fullmatch(name):
        raise InputError(
            f"{text} is no id of the hub, {SCHEME}OWNER/NAME or "
            f"{SCHEME}OWNER/NAME@REVISION"
        )
    extras.check(text, "huggingface_hub")
    name, _, revision = name.partition("@")
    repository = _Repository(text, name, revision or None)
    file = repository.needed(CONFIG, OPEN_CLIP)
    config = read_json(file)
    weights = repository.needed(*WEIGHTS)
    if weights.name.endswith(INDEX):
        for part in sorted({*tensor_files.parts(weights).values()}):
            repository.needed(part)
    if file.name == OPEN_CLIP:
        return repository.files
    if weights.name.startswith("open_clip"):
        repository.optional(OPEN_CLIP)
    if "architecture" not in config:  # timm's own form says it all
        # transformers 5 prefers the second file, and writes it alone for models of
        # images and texts. Caches that older versions filled do not know it.
        if repository.optional(PREPROCESSOR):
            repository.get(PROCESSOR)
        else:
            repository.optional(PROCESSOR)
    if OURS in config:
        repository.optional(SELECTORS)
        if "recovery" in config[OURS]:
            repository.optional(RECOVERED)
    return repository.files


class _Repository:
    """One revision of a repository, whose files are fetched one by one.

    `huggingface_hub.snapshot_download` (2.4) gives back a folder that lacks files where
    there is no network and another program, such as timm, has filled the cache: a model
    without its preprocessor_config.json would be loaded with other means
    (test_a_cache_that_does_not_say_whether_there_is_a_file). Nor does it choose one of
    several files of weights (test_only_the_files_that_are_needed_are_fetched).
    """

    def __init__(self, text, name, revision):
        self._text = text
        self._name = name
        self._revision = revision
        self._unreachable = False
        self.files = []

    def needed(self, *names):
        """The path of the first of these files that there is."""
        for name in names:
            if file := self.get(name):
                return file
        place = self._text
        if self._unreachable:
            place += ": the hub cannot be reached, and its cache"
        raise InputError(f"{place} has none of {', '.join(names)}")

    def optional(self, name):
        """Fetch a file where the repository has it; return its path, or None."""
        file = self.get(name)
        if file or not self._unreachable:
            return file
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(
            self._name, name, revision=self._revision
        )
        if cached is None:  # another value says that the repository has no such file
            raise InputError(
                f"{self._text}: the hub cannot be reached, and its cache does not say "
                f"whether there is a {name}; without a network load its folder, "
                f"{self.files[0].parent}"
            )
        return None

    def get(self, name):
        """The path of a file; None where there is none, or none in reach.

        The first file settles the commit of all.
        """
        import huggingface_hub
        from huggingface_hub import errors

        try:
            file = huggingface_hub.hf_hub_download(
                self._name,
                name,
                revision=self._revision,
                local_files_only=self._unreachable,
            )
        except errors.LocalEntryNotFoundError:
            self._unreachable = True  # no second request: each takes seconds
            return None
        except errors.EntryNotFoundError:
            return None
        except errors.HFValidationError as error:
            raise InputError(f"{self._text}: {error}") from error
        path = pathlib.Path(file)
        self.files.append(path)
        self._revision = path.parent.name  # the commit, in the layout of the cache
        return path
