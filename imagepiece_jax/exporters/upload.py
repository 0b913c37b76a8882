"""Upload of exported files to a repository on the Hugging Face hub, in one commit."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

from imagepiece_jax.common import extras
from imagepiece_jax.common.progress import announced_work, notes
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.exporters import card

# {HTTP status: what the user can do}
REFUSAL_ADVICE = {
    401: "the hub does not accept the token; log in again: `hf auth login`",
    403: "the token may not write there; log in with one that may: `hf auth login`",
}


def check_repository(repo: str, dry_run: bool = False) -> None:
    """Check, before any work, that files can be uploaded to a repository.

    repo: OWNER/NAME; new, empty, or of an earlier upload
    dry_run: check the name alone, without the network
    Raises InputError for another name, without a login, and without rights; RunError
        if the hub cannot be reached.
    """
    extras.check_installed("push", "huggingface_hub")
    from huggingface_hub import HfApi, errors, utils

    api = HfApi()
    with translate_hub_errors(repo):
        utils.validate_repo_id(repo)
        owner, separator, _ = repo.partition("/")
        if not separator:
            raise InputError(f"push is {repo!r}; it must be OWNER/NAME")
        if dry_run:
            return
        user = api.whoami()
        owners = [user["name"], *(group["name"] for group in user.get("orgs", ()))]
        if owner.lower() not in map(str.lower, owners):
            raise InputError(
                f"push is {repo!r}, but the login on the hub may write to "
                f"{', '.join(owners)} alone"
            )
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise InputError(f"push is {repo!r}: {REFUSAL_ADVICE[403]}")
        try:
            repository_files = {*api.list_repo_files(repo)} - {".gitattributes"}
        except errors.RepositoryNotFoundError:
            return
        is_ours = not repository_files
        if card.CARD_FILE_NAME in repository_files:
            page_path = api.hf_hub_download(repo, card.CARD_FILE_NAME)
            is_ours = card.is_card_page(pathlib.Path(page_path))
        if not is_ours:
            raise InputError(
                f"push is {repo!r}, which exists, and export did not write it; "
                "choose another name"
            )


def commit_files(
    repo: str,
    folder: pathlib.Path,
    files: Sequence[pathlib.Path],
    dry_run: bool = False,
) -> None:
    """Upload files of a folder in one commit, and note their names and sizes.

    Raises InputError and RunError like `check_repository`; then nothing is uploaded.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    note_lines = [f"{'would push' if dry_run else 'pushed'} to {api.endpoint}/{repo}:"]
    operations = []
    for file in files:
        repository_path = file.relative_to(folder).as_posix()
        operations.append(CommitOperationAdd(repository_path, file))
        note_lines.append(f"  {repository_path}, {file.stat().st_size:,} bytes")
    if not dry_run:
        with translate_hub_errors(repo), announced_work(f"uploading to {repo}"):
            api.create_repo(repo, exist_ok=True)
            api.create_commit(repo, operations, commit_message="Export of a model")
    for line in note_lines:
        notes.info(line)


@contextlib.contextmanager
def translate_hub_errors(repo: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into sentences."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(
            f"push is {repo!r}; it must be OWNER/NAME ({error})"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise InputError(
            "push needs a login on the hub: `hf auth login`, or a token in HF_TOKEN"
        ) from error
    except (errors.HTTPError, OSError, RuntimeError) as error:
        hub_error = error
        if isinstance(error, RuntimeError):  # hides the error of a large file
            hub_error = error.__cause__ or error
        status = getattr(getattr(hub_error, "response", None), "status_code", None)
        if status in REFUSAL_ADVICE:
            raise InputError(f"push is {repo!r}: {REFUSAL_ADVICE[status]}") from error
        reason = str(hub_error).partition("\n")[0]
        raise RunError(f"push to {repo} failed: {reason}") from error
