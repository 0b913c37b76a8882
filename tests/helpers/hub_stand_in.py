"""A stand-in for huggingface_hub's cache, without a network."""

import importlib.machinery
import types


class EntryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(FileNotFoundError, EntryNotFoundError):
    pass


def stand_in_modules(cache):
    """{name: module} of huggingface_hub, by its real names, on the folder `cache`."""

    def cached_path(name, file, revision, part):
        """The path of a file of a branch or a commit, or None if it is absent."""
        folder = cache / f"models--{name.replace('/', '--')}"
        ref = folder / "refs" / (revision or "main")
        commit = ref.read_text() if ref.is_file() else str(revision)
        path = folder / part / commit / file
        return str(path) if path.is_file() else None

    def hf_hub_download(name, file, *, revision=None, local_files_only=False):
        path = cached_path(name, file, revision, "snapshots")
        if path is None:
            raise LocalEntryNotFoundError("no network")
        return path

    def try_to_load_from_cache(name, file, *, revision=None):
        if cached_path(name, file, revision, ".no_exist"):
            return no_file
        return cached_path(name, file, revision, "snapshots")

    no_file = object()  # huggingface_hub's own, which has a private name
    package = types.ModuleType("huggingface_hub")
    errors = types.ModuleType("huggingface_hub.errors")
    package.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    package.errors = errors
    package.hf_hub_download = hf_hub_download
    package.try_to_load_from_cache = try_to_load_from_cache
    errors.EntryNotFoundError = EntryNotFoundError
    errors.LocalEntryNotFoundError = LocalEntryNotFoundError
    return {package.__name__: package, errors.__name__: errors}
