"""Flags that several commands have: each is worded and bounded here once.

Commands can be imported side by side, so a flag may be defined again. What is defined
by a command is in its --help: this module disclaims it.
"""

import math

from absl import flags

from imagepiece_jax.errors import InputError

flags.disclaim_key_flags()

DTYPES = ("float32", "bfloat16", "float16")


def weights():
    """--weights."""
    told = "a .npz, .safetensors or .pth file, or the folder of a run"
    return flags.DEFINE_string("weights", None, told, allow_override=True)


def checkpoint():
    """--checkpoint: best or latest."""
    told = "which of a run's checkpoints"
    kinds = ["best", "latest"]
    return flags.DEFINE_enum("checkpoint", "best", kinds, told, allow_override=True)


def data(default=""):
    """--data; `default`: what stands in for it, where it may be missing."""
    told = "csv:FILE, folder:PATH, imagenet2012 or digits"
    told += f"; default: {default}" if default else ""
    return flags.DEFINE_string("data", None, told, allow_override=True)


def resize():
    """--resize: deit or none."""
    told = "none: images have the right size already"
    kinds = ["deit", "none"]
    return flags.DEFINE_enum("resize", None, kinds, told, allow_override=True)


def sweep(told):
    """--sweep, which can be given more than once."""
    told = f"METHOD:FIELD=V1,V2: {told}"
    return flags.DEFINE_multi_string("sweep", [], told, allow_override=True)


def dtype(whose):
    """--dtype; None stands for measure.device's fast one."""
    told = f"{whose}; default: bfloat16, and float32 on CPUs"
    return flags.DEFINE_enum("dtype", None, DTYPES, told, allow_override=True)


def finite(holder):
    """Value of a flag that is a number; InputError for "nan" and "inf"."""
    if not math.isfinite(holder.value):
        raise InputError(f"--{holder.name} is {holder.value}; allowed are numbers")
    return holder.value


def rules():
    """--warmup, --repeats and --seconds; returns what makes measure.clock.Rules."""
    whole, real = flags.DEFINE_integer, flags.DEFINE_float
    warmup = whole("warmup", 20, "calls before", 2, allow_override=True)
    repeats = whole("repeats", 5, "turns of each", 1, allow_override=True)
    seconds = real("seconds", 1.0, "of a turn", 0.0, allow_override=True)

    def made():
        from imagepiece_jax.measure import clock

        finite(seconds)
        return clock.Rules(warmup.value, repeats.value, seconds.value)

    return made
