"""Flags that several commands have: each is worded and bounded here once.

And the config that they come to: `model_config`.

Commands can be imported side by side, so a flag may be defined again. What is defined
by a command is in its --help: this module disclaims it.
"""

import math
import pathlib

from absl import flags

from imagepiece_jax import cli, config_files
from imagepiece_jax.errors import InputError

flags.disclaim_key_flags()

DTYPES = ("float32", "bfloat16", "float16")


def weights():
    """--weights."""
    told = "a .npz, .safetensors or .pth file, or the folder of a run"
    return flags.DEFINE_string("weights", None, told, allow_override=True)


def normalization():
    """--mean and --std; returns what gives both by name, or nothing."""
    told = "of the images of --weights, in [0, 1], such as .5,.5,.5; default: as the "
    told += "weights say, else ImageNet's"
    holders = {
        name: flags.DEFINE_string(name, None, told, allow_override=True)
        for name in ("mean", "std")
    }

    def given():
        from imagepiece_jax.models.registry import channels

        texts = {k: h.value for k, h in holders.items() if h.value is not None}
        if len(texts) == 1:
            raise InputError(f"--{next(iter(texts))} is alone; give --mean and --std")
        return {
            name: channels(f"--{name}", _numbers(text), positive=name == "std")
            for name, text in texts.items()
        }

    return given


def _numbers(text):
    """ "1,2" as a tuple; the text itself where it is none."""
    try:
        return tuple(map(float, text.strip("() ").split(",")))
    except ValueError:
        return text


def model_config(holder, path, normalization, checkpoint="best"):
    """(config, Pretrained) of the model whose weights are at `path`.

    holder: of --config, which must agree with what the weights tell. Without one it is
    the run's own, or for a file configs/base.py with what its tensors tell, and
    overrides change it: a reduction, an image size, but not what the weights decide.
    normalization: what --mean and --std gave; checkpoint: of a run. InputError for the
    first contradiction.
    """
    from imagepiece_jax.models import pretrained, run_files
    from imagepiece_jax.training import from_config

    config = holder.value
    if config is not None:
        from_config.check(config)
        from_config.model(config)  # its own mistakes first
        heads = run_files.heads(config.to_dict())
        told = pretrained.read(path, heads, checkpoint)
        told.under(config.to_dict())
        asked = run_files.model_fields(config.to_dict())
    else:
        overrides = cli.overrides()
        heads = dict(overrides).get("model.num_heads") or ""
        heads = int(heads) if heads.isdecimal() else None
        told = pretrained.read(path, heads, checkpoint)
        config = _config_of(told)
        for field, text in overrides:
            config_files.override(config, field, text)
        from_config.check(config)
        asked = run_files.model_fields(config.to_dict())
        typed = {field.removeprefix("model.") for field, _ in overrides}
        asked = {name: value for name, value in asked.items() if name in typed}

    def typed_as(field):
        return f"--{field}" if field in normalization else run_files.in_config(field)

    fields = told.changed(asked | normalization, typed_as)
    if "mean" not in fields:
        print(f"note: {pretrained.unknown_normalization(path)}", flush=True)
    with config.unlocked():
        for name, usual in pretrained.IMAGENET.items():
            config.model[name] = fields.get(name, usual)
    return config, told.of_config(config.to_dict())


def _config_of(told):
    """The ConfigDict of a Pretrained: its run's, or base.py with what tensors tell."""
    base = pathlib.Path(__file__).resolve().parent.parent / "configs" / "base.py"
    if not base.is_file():  # installed without the repository
        raise InputError(
            "--config is missing: a config file, such as configs/deit_s.py of the "
            "repository"
        )
    from imagepiece_jax.benchmark import device

    config = config_files.load(base)
    own = told.config
    if own is None:
        own = {k: told.fields[k] for k in ("image_size", "num_classes")}
        model = {k: v for k, v in told.fields.items() if k not in own}
        own["model"] = model | {"dtype": device.fast_dtype()}
    try:
        with config.unlocked():
            config.update(_with_tuples(own))
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{told.kind} {told.path} does not fit configs/base.py: {reason}"
        ) from error
    return config


def _with_tuples(tree):
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


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
        from imagepiece_jax.benchmark import timer

        finite(seconds)
        return timer.Rules(warmup.value, repeats.value, seconds.value)

    return made
