"""What weights tell of their model: those of a weights file, or of a run's folder.

A file tells sizes, stem and classes by its tensors, a run everything by its config.
Every command and `load` learn here which model a path holds; its variables are read by
`training.weights.load`, which knows checkpoints.
"""

import dataclasses
import inspect
import json
import pathlib
from typing import Any

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.infer_config import recognise
from imagepiece_jax.models.state_dict import read_normalization, read_state_dict
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction import methods

RUN_CONFIG, CLASSES = "config.json", "classes.json"  # in the folder of a run
CHECKPOINTS = "checkpoints"  # the folder with its weights
OTHERS = ("run.json", "metrics.jsonl")  # that only a run writes
DENSE = {"name": "none"}
# What a reduction may name beside the fields of its method's recipe.
MODEL_FIELDS = ("prop_attn",)
IMAGENET = {"mean": MEAN, "std": STD}
# Fields that weights decide: with another value they are no longer this model's.
DECIDED = (
    *("embed_dim", "depth", "patch_size", "num_heads", "mlp_ratio", "stem"),
    *("class_token", "num_classes", "mean", "std"),
)
# Beside these, the fields that make another function of the same weights.
MEANT = ("image_size", "gelu")


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A trained model as its weights tell it; made by `read`.

    fields: of zoo.create_model without reduction, as far as they are told; reduction:
    what it was trained with, nothing for a file; config: the whole config of a run,
    None for a file.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    reduction: dict[str, Any]
    config: dict[str, Any] | None = None

    @property
    def kind(self):
        return "weights file" if self.config is None else "run"

    def changed(self, changes, named=str, instead=""):
        """`fields` with `changes`, in which None leaves a field as it is told.

        InputError for a change of what the weights decide; `named` is how a field is
        called in its sentence, `instead` what else is allowed.
        """
        given = {k: v for k, v in changes.items() if v is not None}
        asked = registry.MODELS.get(str(given.get("name")), {}) | given
        for field in DECIDED:
            if field in asked and field in self.fields:
                by = "" if field in given else f" of {given['name']!r}"
                told = self.fields[field]
                self._compare(named(field) + by, asked[field], told, instead)
        return self.fields | given

    def under(self, config):
        """(fields, reduction) of the model that `config` makes of these weights.

        config: a nested dict. InputError where it contradicts them; of a run in its
        reduction, image size or GELU, too: what only training reads may differ.
        """
        instead = "" if self.config is None else " or no --config"
        fields = self.changed(model_fields(config), in_config, instead)
        reduction = reduction_of(config)
        if self.config is not None:
            for field in MEANT:
                told = self.fields.get(field, fields.get(field))  # older runs have less
                self._compare(in_config(field), fields.get(field), told, instead)
            ours, theirs = completed(self.reduction), completed(reduction)
            for field in dict.fromkeys((*theirs, *ours)):
                name = "model" if field in MODEL_FIELDS else "reduction"
                asked, told = theirs.get(field), ours.get(field)
                self._compare(f"config.{name}.{field}", asked, told, instead)
        return fields, reduction

    def _compare(self, name, asked, told, instead):
        if plain(asked) != plain(told):
            raise InputError(
                f"{name} is {plain(asked)!r}, but {self.kind} {self.path} has "
                f"{plain(told)!r}: allowed is that{instead}"
            )


def read(path, num_heads=None):
    """The Pretrained of a weights file or of a run's folder.

    num_heads: of a file, whose tensors do not tell it; None as `recognise` takes it.
    InputError where there is no model to be told.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"weights {path}: no such file or folder")
    if path.is_dir():
        config = _config_of(path)
        reduction = reduction_of(config)
        name = config["model"].get("name")
        size = {"mlp_ratio": registry.MLP_RATIO} | registry.MODELS.get(name, {})
        given = {k: v for k, v in model_fields(config).items() if v is not None}
        return Pretrained(path, size | IMAGENET | given, reduction, config)
    try:
        fields = recognise(read_state_dict(path), num_heads)
    except InputError as error:
        text = str(error)
        named = text.startswith("weights file")
        raise InputError(text if named else f"weights file {path}: {text}") from error
    return Pretrained(path, fields | normalization(path), DENSE)


def own_files(path):
    """What must not be overwritten of weights: the file, or a run's own files."""
    path = pathlib.Path(path)
    names = (RUN_CONFIG, CLASSES, *OTHERS)
    return [path, *(path / name for name in names)]


def heads(config):
    """The number of attention heads in a nested dict; None where it is not told."""
    if config is None:
        return None
    size = registry.MODELS.get(config["model"].get("name"), {})
    return config["model"].get("num_heads") or size.get("num_heads")


def normalization(path):
    """{"mean", "std"} that weights tell of their images; {} where they do not.

    A run that is older than the fields was trained with ImageNet's.
    """
    path = pathlib.Path(path)
    if path.is_file():
        told = read_normalization(path)
    elif (path / RUN_CONFIG).is_file():
        model = _config_of(path)["model"]
        told = {k: model[k] for k in IMAGENET if model.get(k) is not None} or IMAGENET
    else:
        return {}
    return {
        name: registry.channels(f"{path}: {name}", values, positive=name == "std")
        for name, values in told.items()
    }


def class_names(path):
    """Names by label, None for a class without one, of the run in the folder `path`.

    None for a weights file, and for a run that has no names: its data name no classes,
    or it was trained by a version that kept none.
    """
    folder = pathlib.Path(path)
    path = folder / CLASSES
    if not path.exists():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if not isinstance(names, list) or not all(
        name is None or isinstance(name, str) for name in names
    ):
        raise InputError(f"{path} is no list of names, one for each class")
    classes = _config_of(folder)["num_classes"]
    if len(names) != classes:
        raise InputError(
            f"{path} has {len(names)} names, but the run has {classes} classes: "
            "allowed is one for each, or no such file"
        )
    return tuple(names)


def typed(normalization):
    """Return what --mean and --std gave, None or by name, checked."""
    return {
        name: registry.channels(f"--{name}", values, positive=name == "std")
        for name, values in (normalization or {}).items()
    }


def untold(path, flags="--mean and --std", taken="ImageNet's"):
    """The line on weights that do not tell how their images were normalized."""
    return (
        f"{path} does not say how its images were normalized: {taken} mean and "
        f"standard deviation are taken; {flags} set others"
    )


def model_fields(config):
    """The fields of zoo.create_model in a nested dict, but for the reduction."""
    own = {name: config[name] for name in ("image_size", "num_classes")}
    return {name: plain(value) for name, value in config["model"].items()} | own


def reduction_of(config):
    """The reduction of a nested dict, with `prop_attn` where it is told."""
    fields = {k: plain(v) for k, v in config["reduction"].items() if v is not None}
    own = {k: config["model"].get(k) for k in MODEL_FIELDS}
    return fields | {k: v for k, v in own.items() if v is not None}


def completed(reduction):
    """All fields that decide what a reduction does, with the recipe's defaults."""
    given = dict(reduction or DENSE)
    name = given.pop("name", "none")
    method = methods.find(name, **{k: given[k] for k in given if k not in MODEL_FIELDS})
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(method.recipe).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    meant = {field: method.model_fields.get(field, False) for field in MODEL_FIELDS}
    known = {k: v for k, v in given.items() if k in defaults or k in MODEL_FIELDS}
    known = {k: plain(v) for k, v in known.items()}
    return {"name": name, **meant, **defaults, **known}


def plain(value):
    """A list, as JSON has it for a tuple, or an array as a tuple again."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


def in_config(field):
    """How a field of zoo.create_model is called in a config."""
    top = ("image_size", "num_classes")
    return f"config.{field}" if field in top else f"config.model.{field}"


def _config_of(folder):
    """The config of the run in `folder`, a nested dict; InputError without one."""
    try:
        config = json.loads((folder / RUN_CONFIG).read_text(encoding="utf-8"))
        model_fields(config), reduction_of(config)
        told = {name: config[name] for name in ("image_size", "num_classes")}
        wrong = {k: v for k, v in told.items() if not isinstance(v, int)}
        if not isinstance(name := config["model"].get("name"), str | None):
            wrong["model.name"] = name
        if not wrong:
            return config
        reason = "its {} is {!r}".format(*next(iter(wrong.items())))
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no JSON"
    except KeyError as error:
        reason = f"it has no {error.args[0]}"
    except (TypeError, AttributeError):
        reason = "it is no config"
    for run in folder.parents:
        within = folder.relative_to(run).parts[0] == CHECKPOINTS
        if within and (run / RUN_CONFIG).is_file():
            raise InputError(
                f"{folder} is a part of the run {run}: allowed is {run} itself, and "
                "best or latest for the checkpoint"
            )
    raise InputError(
        f"{folder} is a folder without a run's {RUN_CONFIG} ({reason}); allowed are a "
        "weights file and the folder of a run"
    )
