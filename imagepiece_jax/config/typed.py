"""Fields of a config that a command line changes: --config.FIELD=VALUE."""

import re

from imagepiece_jax.common import fields
from imagepiece_jax.config.files import MACS, METHOD, Overrides, fields_of_text
from imagepiece_jax.errors import InputError

# Fields that commands on weights have flags for, by the names of these.
WORDS_OF_LOAD = {
    "batch_size": "batch",
    "data.dir": "data_dir",
    "data.eval_crop": "crop",
    "data.eval_crop_mode": "crop_mode",
    "data.eval_interpolation": "interpolation",
    "data.eval_rule": "rule",
    "data.name": "data",
    "data.resize": "resize",
    "data.threads": "threads",
    "data.workers": "workers",
    "eval_batch_size": "batch",
    "image_size": "image_size",
    "model.attention": "attention",
    "model.dtype": "dtype",
    "model.mean": "mean",
    "model.name": "name",
    "model.std": "std",
    "seed": "seed",
}


def split_overrides(words: list[str]) -> tuple[list[str], Overrides]:
    """(other words, the overrides) of a command line.

    An override is --config.FIELD=VALUE or --config.FIELD VALUE; for a switch
    --config.FIELD (True, not a text) or --noconfig.FIELD (False).
    """
    rest = []
    overrides = []
    words = [*words]
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", word, re.DOTALL)
        if not match:
            rest.append(word)
            continue
        negated, field, text = match.groups()
        if text is None:
            text = not negated
            follows = words and not re.match(r"--?[a-z]", words[0])
            if follows and not negated:
                text = words.pop(0)
        if field in ("reduction", "model", "data"):  # groups with a field name
            field += ".name"
        if field == METHOD and fields.number_in(str(text)) is not None:
            overrides += [(MACS, text), (METHOD, "auto")]
        elif field == METHOD and re.search("[:=]", str(text)):
            overrides += of_reduction(text)
        else:
            overrides.append((field, text))
    return rest, Overrides(overrides)


def of_reduction(text: str) -> list[tuple[str, str]]:
    """The overrides that a reduction stands for, a share or a text "tome:r=8".

    A share is the cost of the config's own method.
    """
    if fields.number_in(text) is not None:
        return [(MACS, text)]
    name, *typed = fields_of_text(text)
    return [(METHOD, name), *typed]


def with_reduction(overrides: Overrides, text: str | None) -> Overrides:
    """The overrides, and those that --reduction stands for.

    Raises InputError where both say the reduction.
    """
    if text is None:
        return overrides
    for field, _ in overrides:
        if field in (METHOD, MACS):
            problem = f"is given with --config.{field}"
            raise InputError("--reduction", None, "one of the two", problem=problem)
    return Overrides([*overrides, *of_reduction(text)])


def in_words_of_load(overrides: Overrides, names: list[str]) -> str:
    """What overrides are beside --weights: "--name=deit_s --reduction=tome:r=8".

    Only those that a command can say are in it.

    names: of the command's flags
    """
    words = []
    method = ""
    cost = ""
    amounts = []
    for field, value in overrides:
        group, _, leaf = field.rpartition(".")
        if field == METHOD:
            method = "" if value == "auto" else value
        elif field == MACS:
            cost = value
        elif group == "reduction":
            amounts.append(f"{leaf}={value}")
        elif WORDS_OF_LOAD.get(field) in names:
            words.append(f"--{WORDS_OF_LOAD[field]}={value}")
        elif group in ("model", "model.arch") and field not in WORDS_OF_LOAD:
            words.append(f"--model={leaf}={value}")
    if method or amounts:
        parts = [method or "METHOD", *amounts]
        if cost:
            parts.append(f"macs={cost}")
        words.append(f"--reduction={':'.join(parts)}")
    elif cost:
        words.append(f"--reduction={cost}")
    return " ".join(words)
