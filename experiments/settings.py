"""Settings of experiments: a dataclass each, of which the command makes its flags."""

import dataclasses
from collections.abc import Iterable, Mapping

from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common import fields
from imagepiece_jax.common.fields import count, optional, text
from imagepiece_jax.common.timer import Rules
from imagepiece_jax.errors import InputError

OUT = "runs/experiments"
SEED = count(0, most=2**32 - 1)
# What defines the flag of a field, by the type of its default; else it is a text.
DEFINE = {bool: cli.switch, int: cli.integer, float: cli.real, tuple: cli.listed}
flags.disclaim_key_flags()  # of the command that defines them


class Settings(fields.CheckedFields):
    """Base of settings, whose fields are the flags of a command."""

    @classmethod
    def path(cls, field: str) -> str:
        return f"--{field}"

    def refuse(self, field: str, allowed: str, problem: str = ""):
        value = getattr(self, field)
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        raise InputError(problem, field=self.path(field), value=value, allowed=allowed)


def flag(kind, help_text: str):
    """A field of Settings, of a kind of `common.fields`, and the help of its flag."""
    metadata = {**kind.metadata, "help": help_text}
    return dataclasses.field(default=kind.default, metadata=metadata)


def one_or_more(default: tuple, of):
    """A kind of field: values of the kind `of`, each once."""
    entry, allowed = of.metadata["convert"], of.metadata["allowed"]

    def convert(values):
        if not values:
            raise ValueError(values)
        return tuple(dict.fromkeys(map(entry, values)))

    return fields.checked(default, convert, f"one or more {allowed}")


@dataclasses.dataclass(frozen=True)
class Common(Settings):
    """Settings of every experiment but `scratch`."""

    # Fields without a help are flags of `imagepiece_jax.cli`.
    weights: str | None = None
    runs: str | None = flag(optional(text()), "a folder of trained runs, one a model")
    small: bool = flag(fields.switch(False), "fine-tune --weights for every model")
    seeds: tuple[int, ...] = flag(one_or_more((0, 1, 2), SEED), "of --small's runs")
    data: str | None = None
    resize: str | None = None
    limit: int | None = None
    out: str = flag(text(OUT), "folder")
    again: bool = flag(fields.switch(False), "measure what was measured before, too")
    eval_batch_size: int = flag(count(100, least=1), "images at once")
    readers: int = flag(count(0), "processes that read images")
    dtype: str | None = None
    speed: bool = flag(fields.switch(True), "also measure speeds")
    speed_batch_size: int = flag(count(64, least=1), "of speeds in tables")
    warmup: int = Rules.warmup
    repeats: int = Rules.repeats
    seconds: float = Rules.seconds

    def __post_init__(self):
        super().__post_init__()
        if self.runs and self.small:
            problem, allowed = "is given with --small", "one of them"
            raise InputError(problem, field="--runs", value=self.runs, allowed=allowed)

    @property
    def rules(self):
        """How speeds are measured."""
        return Rules(self.warmup, self.repeats, self.seconds)


def own_fields(cls: type[Settings]) -> set[str]:
    """Names of the fields that not every experiment has."""
    common = {field.name for field in dataclasses.fields(Common)}
    return {field.name for field in dataclasses.fields(cls)} - common


def define_flags(settings: Mapping[str, type[Settings]]):
    """Define the flags of experiments, by their names."""
    for cls in dict.fromkeys(settings.values()):
        for field in dataclasses.fields(cls):
            if "help" not in field.metadata or field.name in flags.FLAGS:
                continue
            default, help_text = field.default, field.metadata["help"]
            if field.name in own_fields(cls):
                users = [n for n, c in settings.items() if field.name in own_fields(c)]
                help_text = f"{', '.join(users)}: {help_text}"
            define = DEFINE.get(type(default), cli.text)
            texts = [*map(str, default)] if define is cli.listed else default
            define(field.name, texts, help_text)


def read_flags(cls: type[Settings]) -> Settings:
    """The settings that are typed."""
    values = {}
    for field in dataclasses.fields(cls):
        # Where another module defines a flag of that name, its default is not ours.
        if "help" not in field.metadata or flags.FLAGS[field.name].present:
            value = flags.FLAGS[field.name].value
            is_list = isinstance(value, list)
            values[field.name] = tuple(map(fields.literal, value)) if is_list else value
    return cls(**values)


def check_flags(classes: Iterable[type[Settings]], every: Iterable[type[Settings]]):
    """Raise InputError for a typed flag that none of the `classes` has.

    every: the classes of all experiments
    """
    ours = set().union(*map(own_fields, classes))
    for name in sorted(set().union(*map(own_fields, every)) - ours):
        if flags.FLAGS[name].present:
            problem = "is a flag of other experiments"
            allowed = "flags whose line of --help names this one, or no experiment"
            raise InputError(problem, field=f"--{name}", allowed=allowed)
