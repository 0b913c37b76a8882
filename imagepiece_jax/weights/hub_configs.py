"""The config file of a folder: timm's, transformers', OpenCLIP's or one of `save`.

`describe` writes timm's form, with a part of our own that has all of a model's fields.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import as_tuple, check_choice
from imagepiece_jax.common.files import read_json
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import PROBLEMS, SINGLE_LABEL
from imagepiece_jax.models.recovery_record import (
    RecoveredCost,
    Recovery,
)
from imagepiece_jax.models.spec import ModelSpec, size_of
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.weights import (
    open_clip_config,
    timm_config,
    transformers_config,
)
from imagepiece_jax.weights.file_names import (
    CONFIG,
    OPEN_CLIP,
    OURS,
    PREPROCESSOR,
    PROCESSOR,
)
from imagepiece_jax.weights.location import Location

FORMAT = 2  # of `OURS`: another one is not read


def read(found: Location) -> dict[str, Any]:
    """Fields of a WeightsSource by a folder's config file and its processor's."""
    if found.config_file.name == OPEN_CLIP:
        parse_config = open_clip_config.parse_open_clip
        return guarded(found.config_file, parse_config, found.config)
    folder = found.path
    images = {}
    if (folder / PROCESSOR).is_file():
        images = read_json(folder / PROCESSOR).get("image_processor") or {}
    if not images and (folder / PREPROCESSOR).is_file():
        images = read_json(folder / PREPROCESSOR)
    return parse(found.config, images, folder)


def parse(
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    folder: pathlib.Path = pathlib.Path(),
) -> dict[str, Any]:
    """As `read`, from the contents of config.json and of preprocessor_config.json."""
    file = folder / CONFIG
    if OURS in config:
        return guarded(file, _parse_ours, config)
    if "architecture" in config:
        return guarded(file, timm_config.parse_timm, config)
    parsed = guarded(file, transformers_config.parse_transformers, config)
    processor = transformers_config.processor
    normalization, crop = guarded(folder / PREPROCESSOR, processor, images, config)
    merged = parsed["spec"].completed_by(normalization)
    return parsed | {"spec": merged, "crop": crop}


def guarded(file, call, *content):
    """The result of `call`, whose errors name the file with this content."""
    try:
        return call(*content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except KeyError as error:
        raise InputError(f"{file} has no {error.args[0]}") from error
    except (
        ArithmeticError,
        AttributeError,
        IndexError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(f"{file} has a field that no model has: {error}") from error


def describe(vit: Pretrained) -> dict[str, Any]:
    """The content of a config.json by which `load` makes a Pretrained again.

    Its architecture is timm's name where timm has the model: `timm.create_model` then
    loads the dense part. Else it is OURS.
    """
    model = vit.model
    reduction = dataclasses.replace(vit.reduction, prop_attn=model.prop_attn)
    optional = {}
    if vit.untrained:
        optional["untrained"] = vit.untrained_parts
    if vit.problem_type != SINGLE_LABEL:
        optional["problem_type"] = vit.problem_type
    if vit.recovery:
        optional["recovery"] = {"costs": [cost.record for cost in vit.recovery.costs]}
    ours = {
        "format": FORMAT,
        "model": {
            "name": vit.name,
            "arch": dataclasses.asdict(model.arch),
            "num_heads": model.num_heads,
            "image_size": vit.preprocessing.image_size,
            "mean": model.mean,
            "std": model.std,
        },
        "preprocessing": vit.preprocessing.options,
        "reduction": str(reduction),
        "dtype": model.dtype.name,
        **optional,
    }
    return {"architecture": OURS} | timm_config.describe_timm(vit) | {OURS: ours}


def _parse_ours(config):
    """Our own part of a file that `describe` wrote."""
    ours = as_tuple(config[OURS])
    classes = config["num_classes"]
    if ours.get("format") != FORMAT:
        raise InputError(
            f"{OURS}.format is {ours.get('format')}; this version reads {FORMAT}"
        )
    spec = ModelSpec.from_fields(ours["model"])
    spec = dataclasses.replace(spec, dtype=ours["dtype"])
    Preprocessing(spec.image_size, **ours["preprocessing"])
    reduction = Reduction.read(ours["reduction"])
    _check_same(spec, config)
    class_names = timm_config.labels(config, classes)
    if class_names is not None:
        class_names = checked_names(class_names, classes)
    recovery = None
    if "recovery" in ours:
        record = ours["recovery"]
        costs = [RecoveredCost(**cost) for cost in record["costs"]]
        recovery = Recovery(tuple(costs), saved_beside=record.get("saved_beside"))
    problem_type = ours.get("problem_type", SINGLE_LABEL)
    check_choice("problem_type", problem_type, PROBLEMS)
    return {
        "spec": spec,
        "sizes": {"num_classes": classes},
        "crop": ours["preprocessing"],
        "reduction": reduction,
        "class_names": class_names,
        "license": config["pretrained_cfg"].get("license"),
        "problem_type": problem_type,
        "saved": True,
        "untrained": tuple(ours.get("untrained", ())),
        "recovery": recovery,
    }


def _check_same(spec, config):
    """Compare our own part with timm's on what no tensor shows.

    Both are of one model, so somebody changed one of them.
    """
    images = as_tuple(config["pretrained_cfg"])
    of_timm = {"mean": images["mean"], "std": images["std"]}
    if config["architecture"] != OURS:
        named = timm_config.parse_timm(config)["spec"]
        of_timm |= named.completed_by(size_of(named.name)).fields
        of_timm["arch.gelu"] = named.architecture.gelu
    own = spec.fields | {"arch.gelu": spec.architecture.gelu}
    for field in ("image_size", "num_heads", "arch.gelu", "mean", "std"):
        value = own.get(field)
        other = of_timm.get(field)
        if None not in (value, other) and value != other:
            raise InputError(
                f"{OURS}.model.{field} is {value!r}, but timm's part of the file says "
                f"{other!r}"
            )
