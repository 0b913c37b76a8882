"""Published weights: ids of the Hugging Face hub, and folders in its form.

"hf://timm/vit_small_patch14_reg4_dinov2.lvd142m" names a repository, and "@" with a
branch, a tag or a commit after it one revision. Its config files and one file of
weights are fetched into huggingface_hub's own cache, and read as any other folder.
"""

import functools
import os
import pathlib
import re

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import check_is_path, read_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.weights import files, towers

SCHEME = "hf://"
CONFIG = files.CONFIG
PREPROCESSOR = "preprocessor_config.json"
OPEN_CLIP = "open_clip_config.json"
PROCESSOR = "processor_config.json"  # of images and of text, since transformers 5
OURS = "imagepiece_jax"  # the part of a config.json that is this package's own
SELECTORS = "selectors.safetensors"  # of a saved model, with learned selectors
PROJECTOR = "projector.safetensors"  # of a vision tower to its language model
RECOVERED = "recovered.safetensors"  # of a saved model, for reduced forms of it
OTHERS = (SELECTORS, PROJECTOR, RECOVERED)  # beside the weights of a saved model
INDEX = ".index.json"  # the end of a file that lists the parts of a sharded one
# Names of a file of weights, the preferred ones first; those of OpenCLIP are last.
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
WEIGHTS += (f"pytorch_model.bin{INDEX}",)
WEIGHTS += ("model.npz", "model.pth", "pytorch_model.pth")
WEIGHTS += ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# Of weights by other names.
ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_ADDRESS = re.compile(r"https?:/+(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)")
SHOWN_IDS = 3  # ids in a sentence
UNREACHABLE = "cannot be reached, and its cache"


def local(path: str | os.PathLike) -> pathlib.Path:
    """The place of weights on this machine: `path` itself, or the folder of a hub id.

    A hub's files are fetched unless they are in the cache. The place of an Orbax
    checkpoint, or of openpi's folder with one, is the file that lists the arrays.
    Raises InputError where there is nothing, where files cannot be fetched, and for a
        malformed id.
    """
    field = "path"
    check_is_path(field, path)
    text = os.fspath(path)
    if not text:
        raise InputError(field, None, "files and folders", problem="is empty")
    if is_id(text):
        return fetched(text)
    path = os.path.expanduser(path)
    if not exists(path):
        problem = f"is {path}: no such file or folder"
        raise InputError(field, str(path), problem=problem, **_hint_for(path))
    path = pathlib.Path(path)
    for folder in (path, path / "params"):
        if os.path.isfile(folder / files.ORBAX):
            return folder / files.ORBAX
    return path


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or folder, or `path` is a hub id."""
    return is_id(path) or os.path.exists(path)  # False for a name that is too long


def is_id(path: str | os.PathLike) -> bool:
    """Whether `path` is a hub id."""
    return str(path).startswith(SCHEME)


def short_name(path: pathlib.Path) -> str:
    """OWNER/NAME for a path in the cache of the hub, else the last part of the path."""
    if path.name == files.ORBAX:
        path = path.parent
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return path.name


def given_name(text: str) -> str:
    """As `short_name`, for a path or a hub id as it is typed."""
    if is_id(text):
        return text.removeprefix(SCHEME).partition("@")[0]
    return pathlib.Path(text).name


def has_owner(name: str) -> bool:
    """Whether a name of `short_name` is that of a repository of the hub."""
    return "/" in name


def path_text(path: pathlib.Path) -> str:
    """The text of a path for sentences: its hub id where it is in the hub's cache."""
    if path.name == files.ORBAX:
        path = path.parent
    name = short_name(path)
    if name == path.name:
        return str(path)
    return f"{SCHEME}{name}"


def _hint_for(path):
    """The hint, or the allowed values, for a missing path that looks like an id."""
    text = os.fspath(path)
    if text.startswith("hf:/"):  # an id that was made a Path
        meant = f"{SCHEME}{text[4:]}"
        if not isinstance(path, str):
            meant += ", a string, as a Path drops a slash"
        return {"hint": f"did you mean {meant}?"}
    if address := _ADDRESS.match(text) or re.match(r"hf[-_]hub:(.+)", text):
        return {"hint": f"did you mean {SCHEME}{address[1]}?"}
    if re.match(r"\w+:/", text):
        return {"allowed": f"paths on this machine, and {SCHEME}OWNER/NAME"}
    owner, _, name = text.rpartition("/")
    if owner in ("", "timm") and registry.public_fields(name):
        base, _, tag = name.partition(".")
        tags = [tag]
        if not tag:
            tags = registry.public_models()[base]["weights"]
        ids = [f"{SCHEME}timm/{base}.{tag}" for tag in tags if tag]
        if not ids:
            return {}
        return {"hint": f"did you mean {' or '.join(ids[:SHOWN_IDS])}?"}
    is_file = text.endswith((*ENDINGS, ".json")) or not owner or os.path.exists(owner)
    if is_file or not _ID.fullmatch(text):
        return {}
    return {"hint": f"did you mean {SCHEME}{text}?"}


def is_published(folder: str | os.PathLike) -> bool:
    """Whether a folder's config file is that of published weights, not of a run."""
    if pathlib.Path(folder, OPEN_CLIP).is_file():
        return True
    return has_key(folder, "architecture", "architectures", "model_type", OURS)


def config_file(folder: pathlib.Path) -> pathlib.Path:
    """The config file of a folder of published weights.

    Repositories of OpenCLIP often hold transformers' weights and config.json, too,
    which are preferred.
    """
    of_open_clip = folder / OPEN_CLIP
    usual = folder / CONFIG
    if not of_open_clip.is_file():
        return usual
    names = [file.name for file in weights_files(folder)]
    only_open_clip = all(name.startswith("open_clip") for name in names)
    if only_open_clip or not usual.is_file():
        return of_open_clip
    return usual


def has_key(folder: str | os.PathLike, *keys: str) -> bool:
    """Whether a folder's config.json is readable and has one of these keys."""
    try:
        config = read_json(pathlib.Path(folder, CONFIG))
    except InputError:
        return False
    return any(key in config for key in keys)


def kind(path: pathlib.Path) -> str:
    """The kind of a path: a "weights file", a published "folder", or a "run"."""
    if not path.is_dir():
        return "weights file"
    return "folder" if is_published(path) else "run"


def weights_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights in a folder: one of a usual name, or else all."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return [folder / name]
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix in ENDINGS and file.name not in OTHERS:
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
        allowed = f"{SCHEME}OWNER/NAME and {SCHEME}OWNER/NAME@REVISION"
        raise InputError.at(text, "is no id of the hub", allowed)
    extras.check(text, "huggingface_hub")
    name, _, revision = name.partition("@")
    repository = _Repository(text, name, revision or None)
    file = repository.needed(CONFIG, OPEN_CLIP)
    config = read_json(file)
    weights = repository.needed(*WEIGHTS)
    has_tower = towers.has_tower(config)
    if weights.name.endswith(INDEX):
        parts = set()
        for name, part in files.parts(weights).items():
            if not has_tower or towers.OF_TOWER.match(name):
                parts.add(part)
        for part in sorted(parts):
            repository.needed(part)
    if file.name == OPEN_CLIP:
        return repository.files
    if weights.name.startswith("open_clip"):
        repository.optional(OPEN_CLIP)
    if "architecture" not in config:  # timm's own form says it all
        repository.optional(PREPROCESSOR)
        if has_tower:
            repository.optional(PROCESSOR)
    if OURS in config:
        repository.optional(SELECTORS)
        if "projector" in [*config[OURS]]:
            repository.optional(PROJECTOR)
        if "recovery" in [*config[OURS]]:
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

    def _error(self, problem, **facts):
        """The InputError for this repository, or for a hub that cannot be reached."""
        if self._unreachable:
            facts["field"] = "the hub"
        return InputError(problem=problem, place=self._text, **facts)

    def needed(self, *names):
        """The path of the first of these files that there is; InputError for none."""
        for name in names:
            if file := self._get(name):
                return file
        problem = f"has none of {', '.join(names)}"
        if len(names) == 1:
            problem = f"has no {names[0]}"
        allowed = f"repositories with {CONFIG} and weights"
        if self._unreachable:
            problem = f"{UNREACHABLE} {problem}"
            allowed = "ids that were loaded here before, or a network"
        raise self._error(problem, allowed=allowed)

    def optional(self, name):
        """Fetch a file where the repository has it; InputError if nobody knows."""
        if self._get(name) or not self._unreachable:
            return
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(
            self._name, name, revision=self._revision
        )
        if cached is None:  # another value says that the repository has no such file
            problem = f"{UNREACHABLE} does not say whether there is a {name}"
            folder = self.files[0].parent
            given = ""
            if name in (PREPROCESSOR, PROCESSOR):
                given = ", with mean=.., std=.."
            allowed = f"a network, or instead of the id its folder, {folder}{given}"
            raise self._error(problem, allowed=allowed)

    def _get(self, name):
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
        except errors.RevisionNotFoundError as error:
            problem = "is no revision of the repository"
            allowed = "its branches, tags and commits"
            raise self._error(problem, allowed=allowed) from error
        except errors.GatedRepoError as error:
            hint = "accept them on its page, and log in by: hf auth login"
            problem = "is for those who accepted its terms"
            raise self._error(problem, hint=hint) from error
        except errors.RepositoryNotFoundError as error:
            hint = "for a private one log in by: hf auth login"
            raise self._error("is no repository of the hub", hint=hint) from error
        except Exception as error:  # of its HTTP client, of the disk
            reason = str(error).partition("\n")[0] or type(error).__name__
            problem = f"has a {name} that cannot be fetched ({reason})"
            raise self._error(problem, hint="try again") from error
        path = pathlib.Path(file)
        self.files.append(path)
        self._revision = path.parent.name  # the commit, in the layout of the cache
        return path
