"""Errors that end a command with one sentence and an exit status."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """A mistake in a user's input, named in one sentence."""

    status = 2


@contextlib.contextmanager
def titled_errors(title: object) -> Iterator[None]:
    """Begin the sentence of an InputError inside with a title."""
    try:
        yield
    except InputError as error:
        error.args = (f"{title}: {error}",)
        raise


def earlier_revision(title: object) -> InputError:
    """Make the InputError for a file whose format this revision does not read."""
    return InputError(f"{title} was made by an earlier revision: make it again")


class NoLabels(InputError):
    """Images without labels, where labels are read."""


class RunError(RuntimeError):
    """A failure not caused by an argument, such as a loss that is not finite."""

    status = 1


class Stopped(Exception):
    """A run ended by the signal `signum`, after its state was saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command resumes from there")
        self.signum = signum
        self.status = 128 + signum  # as shells report a signal
