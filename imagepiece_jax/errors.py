"""Errors that end a command with one sentence and an exit status."""

import contextlib
import difflib
import functools
import inspect
import pathlib
import re
import reprlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """A mistake in typed words or in a file, as facts that `str` words.

    The sentence is "PLACE: FIELD PROBLEM; allowed: ALLOWED; HINT".

    field: its subject: an argument, a flag, or a config's field by its path
    value: the value found
    allowed: the allowed values, in words; or names, of which the error has all, or as
        its hint the one that is like the value
    problem: the predicate of the sentence; "": "is VALUE"
    place: the file or folder it is in; without a field, the subject
    hint: a remedy, a clause of its own

    Its facts stay as they are. A caller that catches one and knows more raises another:
    `raise error.inside(place=file) from error`, or stands in `with inside(place=file)`.
    """

    status = 2
    is_sentence = False  # whether it was given as one

    def __init__(
        self, field="", value=None, allowed="", *, problem="", place="", hint=""
    ):
        if (value, allowed, problem, place, hint) == (None, "", "", "", ""):
            self.is_sentence = True
            problem = field
            field = ""
        super().__init__(problem)
        if not isinstance(allowed, str):
            names = allowed
            allowed = ", ".join(names)
            if similar := closest(str(value), names):
                allowed = ""
                hint = f"did you mean {similar}?"
        self.problem = problem
        self.field = field
        self.place = str(place)
        self.value = value
        self.allowed = allowed
        self.hint = hint

    @classmethod
    def at(cls, place, problem, allowed="", hint="", value=None) -> "InputError":
        """The mistake of a whole file or folder: "PLACE PROBLEM; allowed: .."."""
        return cls("", value, allowed, problem=problem, place=place, hint=hint)

    def __str__(self):
        about_part = self.field or self.is_sentence
        words = [str(self.problem) or f"is {self.value!r}"]
        if self.field:
            words.insert(0, self.field)
        if self.place:
            words.insert(0, f"{self.place}:" if about_part else self.place)
        clauses = [" ".join(words)]
        if self.allowed:
            clauses.append(f"allowed: {self.allowed}")
        if self.hint:
            clauses.append(self.hint)
        return "; ".join(clauses)

    def __repr__(self):
        # For an error in a list, such as a Predictor's answers.
        return f"{type(self).__name__}({str(self)!r})"

    def inside(self, group="", place="", hint="") -> "InputError":
        """The same mistake as a caller further out names it.

        group: prefix of the field: "r" inside "config.reduction" is
            "config.reduction.r", an error without field or place is about the group
            itself; flags and paths from "config" on have it already
        place: the file or folder, where the error has none
        hint: a remedy, where the error has none
        """
        field = self.field
        about_field = bool(field or not self.place)
        if group and about_field and not field.startswith(("--", "config.")):
            field = f"{group}.{field}".removesuffix(".")
        return self.with_facts(
            field=field,
            place=self.place or str(place),
            hint=self.hint or hint,
        )

    def renamed(self, names: Mapping[str, str]) -> "InputError":
        """The same mistake, whose field has another name where `names` has one.

        So have fields in the other clauses, as "FIELD=.." or "FIELD=VALUE".
        """
        facts = {"field": names.get(self.field, self.field)}
        for clause in ("problem", "allowed", "hint"):
            facts[clause] = re.sub(
                r"(?<![-.\w])\w+(?==)",
                lambda found: names.get(found[0], found[0]),
                str(getattr(self, clause)),
            )
        return self.with_facts(**facts)

    def with_facts(self, **facts: Any) -> "InputError":
        """The same mistake with these facts in place of its own."""
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self) | facts)
        return error

    def _render_traceback_(self):
        """The lines that IPython shows: those of its cells, then the sentence."""
        shown = []
        for frame in traceback.extract_tb(self.__traceback__):
            of_ipython = "IPython" in pathlib.Path(frame.filename).parts
            if not of_ipython and frame.filename != __file__:  # nor `short_traceback`
                shown.append(frame)
        return [*traceback.format_list(shown), f"{type(self).__name__}: {self}"]


@contextlib.contextmanager
def inside(group="", place="", hint=""):
    """A block whose InputErrors a caller further out names, by `InputError.inside`."""
    try:
        yield
    except InputError as error:
        raise error.inside(group, place, hint) from error


@contextlib.contextmanager
def renamed(names: Mapping[str, str]):
    """A block whose InputErrors a caller has other names for: `InputError.renamed`."""
    try:
        yield
    except InputError as error:
        raise error.renamed(names) from error


def short_traceback(function):
    """`function`, a public one, whose InputErrors show the caller's line and their own.

    An InputError is a mistake in what the caller gave, which frames of this package and
    the error that it was noticed by do not explain; a keyword argument that `function`
    does not have is one, too, and so is an argument without the name that it needs. A
    RunError, such as of a full disk, is shown in the same way. Any other error keeps
    its traceback, and so do all with JAX's own switch, JAX_TRACEBACK_FILTERING=off.
    """

    parameters = inspect.signature(function).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = [name for name in parameters if name != "self"]
    by_name = []
    for each in parameters.values():
        if each.kind is each.KEYWORD_ONLY:
            by_name.append(each.name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            if not takes_any:  # else the function checks them
                check_names(kwargs, names)
            if by_name:
                _check_named(args, [*parameters], by_name)
            return function(*args, **kwargs)
        except (InputError, RunError) as error:
            jax = sys.modules.get("jax")  # not every caller has imported it
            if jax is not None and jax.config.jax_traceback_filtering == "off":
                raise
            raise error.with_traceback(None) from None

    return call


def _check_named(args, parameters, by_name):
    """Raise InputError for an argument without a name where only names are taken."""
    unnamed = args[parameters.index(by_name[0]) :]
    if unnamed:
        number = len(args) - len(unnamed) + (parameters[0] != "self")
        allowed = ", ".join([f"{name}=.." for name in by_name])
        problem = f"is {shown(unnamed[0])}, without the name of what it is"
        raise InputError(f"argument {number}", unnamed[0], allowed, problem=problem)


def shown(value):
    """Any value as a sentence shows it: in one line, shortened."""
    return " ".join(reprlib.repr(value).split())


def flags_of(*fields):
    """{field: its flag} for fields whose flags have the same names."""
    return {field: f"--{field}" for field in fields}


class RunError(RuntimeError):
    """A failure during a run that no flag caused, such as a loss that is not finite."""

    status = 1


class Stopped(Exception):
    """A run that the signal `signum` ended, after its state was saved."""

    def __init__(self, signum, step):
        super().__init__(f"stopped at step {step}; the same command resumes from there")
        self.signum = signum
        self.status = 128 + signum


def closest(word, words):
    """The most similar of the `words` in any case, None if none is similar.

    Words as unlike as image_size and batch_size (difflib's ratio is 0.6) are not.
    """
    lower = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.65)
    return lower[found[0]] if found else None


def suggestion(word, words, otherwise):
    """A hint for a mistyped `word`: the closest of `words`, or `otherwise`."""
    similar = closest(word, words)
    return f"did you mean {similar}?" if similar else otherwise


def check_names(given, allowed):
    """Raise InputError for the first of the `given` names that is not `allowed`."""
    for name in given:
        if name not in allowed:
            raise InputError(str(name), name, [*allowed], problem="is unknown")


def one_of(name, value, options):
    """`options[value]`, of a sequence `value` itself.

    Raises InputError, about the field `name`, for a value that is not there.
    """
    if value not in [*options]:
        listed = ", ".join(map(str, options))
        raise InputError(name, value, listed)
    return options[value] if isinstance(options, dict) else value


def check_truth(name, value):
    """Raise InputError, about the field `name`, for anything but True and False."""
    if not isinstance(value, bool):  # 1 == True
        raise InputError(name, value, "True, False")


def whole_numbers(name, words):
    """The numbers that a list of words holds: ["8", "1"] -> [8, 1].

    Raises InputError, about the field `name`, for the first that is below 1 or none.
    """
    for word in words:
        if not word.isdecimal() or int(word) < 1:
            raise InputError(
                name, word, "whole numbers of at least 1, such as 256 or 1,8,64"
            )
    return [int(word) for word in words]
