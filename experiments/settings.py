"""Settings of experiments: a dataclass each, of which the command makes its flags."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import get_type_hints

from absl import flags

from imagepiece_jax.common import fields
from imagepiece_jax.common.fields import (
    choice,
    count,
    number,
    optional,
    several,
    text,
)
from imagepiece_jax.errors import InputError

OUT = "runs/experiments"
MODES = ("inference", "copy", "train")
flags.disclaim_key_flags()  # of the command that defines them


class Settings(fields.CheckedFields):
    """Base of settings, whose fields are the flags of a command."""

    @classmethod
    def path(cls, field: str) -> str:
        return f"--{field}"

    def refuse(self, field: str, allowed: str):
        value = getattr(self, field)
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        shown = "empty" if value == "" else repr(value)
        raise InputError(f"{self.path(field)} is {shown}; allowed: {allowed}")


def flag(kind, help_text: str, of: tuple[str, ...] = ()):
    """A field of Settings, of a kind of `common.fields`, and the help of its flag.

    of: names of the experiments that read it; (): all may
    """
    words = f"{', '.join(of)}: {help_text}" if of else help_text
    return dataclasses.field(
        default=kind.default, metadata={**kind.metadata, "help": words, "of": of}
    )


def check_flags(names: list[str], *classes: type[Settings]):
    """Raise InputError for a typed flag that none of these experiments reads."""
    for field in itertools.chain(*map(dataclasses.fields, classes)):
        of = field.metadata.get("of")
        if of and flags.FLAGS[field.name].present and not {*of} & {*names}:
            raise InputError(
                f"--{field.name} is of {', '.join(of)}; allowed with {names[0]} are "
                "flags whose line in --help names it, or no experiment"
            )


def one_or_more(default: tuple, of):
    """A kind of field: values of the kind `of`, each once."""
    entry, allowed = of.metadata["kind"]

    def convert(values):
        if not values:
            raise ValueError(values)
        return tuple(dict.fromkeys(map(entry, values)))

    return fields.checked(default, convert, f"one or more {allowed}")


def define_flags(cls: type[Settings]) -> Callable[[], Settings]:
    """Define the flags of the fields that have a help; return what reads all fields.

    A field without one is a flag that `imagepiece_jax.cli` has defined.
    """
    hints = get_type_hints(cls)
    ours = [field for field in dataclasses.fields(cls) if "help" in field.metadata]
    for field in ours:
        define, _ = _kind(hints[field.name])
        default = field.default
        if define is flags.DEFINE_list:
            default = [*map(str, default)]
        if field.name not in flags.FLAGS:
            define(field.name, default, field.metadata["help"], allow_override=True)

    def read():
        values = {}
        for field in dataclasses.fields(cls):
            # Where another module defines a flag of that name, its default is not ours.
            if field in ours and not flags.FLAGS[field.name].present:
                continue
            _, convert = _kind(hints[field.name])
            values[field.name] = convert(flags.FLAGS[field.name].value)
        return cls(**values)

    return read


def _kind(hint):
    """(what defines the flag of a field of this type, from its value to the field's)"""
    for kind, define in (
        (bool, flags.DEFINE_bool),
        (int, flags.DEFINE_integer),
        (float, flags.DEFINE_float),
        (str, flags.DEFINE_string),
    ):
        if hint in (kind, kind | None):
            return define, lambda value: value
        if hint == tuple[kind, ...]:
            return flags.DEFINE_list, functools.partial(_entries, kind)
    raise TypeError(f"no flag is of type {hint}")


def _entries(kind, texts):
    """Texts as numbers; one that is none stays text, and is refused as that."""
    try:
        return tuple(map(kind, texts))
    except ValueError:
        return tuple(texts)


MAPS = ("saliency", "saliency-picture", "carried-maps")
SWEEPS = ("patch_features", "fixed_tokens", "int8", "decisions")
SEED = count(0, most=2**32 - 1)


@dataclasses.dataclass(frozen=True)
class TableSettings(Settings):
    """Settings of all experiments but `scratch`."""

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
    warmup: int = 20
    repeats: int = 5
    seconds: float = 1.0
    batch_sizes: tuple[int, ...] = flag(
        one_or_more((1, 8, 32, 64, 128, 256), count(1, least=1)),
        "images at once",
        ("throughput",),
    )
    modes: tuple[str, ...] = flag(
        one_or_more(MODES, choice("copy", (*MODES, "end_to_end"))),
        "what is timed",
        ("throughput",),
    )
    size: str = flag(
        choice("deit_s", ("deit_ti", "deit_s")), "the model", ("throughput",)
    )
    mask_fill: str = flag(
        choice("mean", ("mean", "black", "noise")), "of masks", ("masking",)
    )
    mask_grid: bool = flag(fields.switch(False), "on different patches", ("masking",))
    folds: int = flag(count(5), "parts of the data, each tested on once", ("adapt",))
    decoder: str | None = flag(
        optional(text()),
        "the weights file of the head that draws maps",
        (*MAPS, "fixed_tokens", "int8"),
    )
    fill: tuple[str, ...] = flag(
        one_or_more(("nearest",), text()),
        "what dropped patches get",
        (*MAPS, "fixed_tokens"),
    )
    sweep: tuple[str, ...] = dataclasses.field(default=(), metadata={"of": SWEEPS})
    counts: tuple[int, ...] = flag(
        one_or_more((128, 64, 32), count(1, least=1)),
        "how many tokens",
        ("fixed_tokens",),
    )
    neighbors: str | None = flag(
        optional(text()),
        "another data set, for nearest neighbors",
        ("fixed_tokens",),
    )
    memory: int = flag(
        count(1000, least=20), "images of its train split, evenly", ("fixed_tokens",)
    )
    queries: int = flag(
        count(500, least=2), "images of its val split, evenly", ("fixed_tokens",)
    )
    methods: tuple[str, ...] = flag(
        several((), text(), "names of methods"),
        "these, tome and random; default: all",
        ("saliency",),
    )
    shares: tuple[float, ...] = flag(
        one_or_more((0.9, 0.75, 0.6, 0.5, 0.4), number(above=0, below=1)),
        "of the dense model's MACs",
        ("saliency",),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.runs and self.small:
            raise InputError("--runs and --small are both given; allowed: one")

    @property
    def rules(self):
        """How speeds are measured."""
        from imagepiece_jax.common.timer import Rules

        return Rules(self.warmup, self.repeats, self.seconds)

    @property
    def reductions(self):
        """Those of --sweep but the dense model; InputError where there are none."""
        from imagepiece_jax.reduction.settings import DENSE
        from imagepiece_jax.reduction.sweep_text import parse_sweeps

        if not self.sweep:
            raise InputError(
                "--sweep is missing: name methods, such as --sweep tome:r=8"
            )
        return [r for r in parse_sweeps(self.sweep) if r["name"] != DENSE["name"]]
