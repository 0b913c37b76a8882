"""Errors that end a command with one sentence and an exit status."""

import difflib
import functools
import re

# A field of a config, where it is not a flag to type, nor part of a file's name.
FILES = "json|safetensors|npz|pth|pt|bin|tar"
FIELD = re.compile(rf"(?<![\w/.-])config\.(?!(?:model\.)?(?:{FILES})\b)(?:model\.)?")


class InputError(ValueError):
    """A mistake in what was typed or in a file.

    Its sentence names the field or file, what was found and what is allowed. Commands
    print it without a traceback (see `imagepiece_jax.cli`).
    """

    status = 2


def of_keywords(function):
    """`function`, with InputErrors that say num_heads, not config.model.num_heads.

    Users of Python call it so; commands call what is inside, and name the config.
    """

    @functools.wraps(function)
    def called(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except InputError as error:
            error.args = (FIELD.sub("", str(error)),)
            raise

    return called


class RunError(RuntimeError):
    """A failure during a run that no flag caused, such as a loss that is not finite."""

    status = 1


class Stopped(Exception):
    """A run that was asked to stop by the signal `signum`, after its state is saved."""

    def __init__(self, signum, step):
        super().__init__(f"stopped at step {step}; the same command resumes from there")
        self.signum, self.status = signum, 128 + signum


def closest(word, words):
    """The most similar of the `words`, None if none is similar."""
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def suggestion(word, words, otherwise):
    """What to type instead of `word`: the closest of `words`, or `otherwise`."""
    similar = closest(word, words)
    return f"did you mean {similar}?" if similar else otherwise


def one_of(name, value, options):
    """`options[value]`. Raises InputError, about the field `name`, without it."""
    if value not in [*options]:
        listed = ", ".join(map(str, options))
        raise InputError(f"{name} is {value!r}; allowed are {listed}")
    return options[value]
