"""Read a folder's config file: timm's, transformers', OpenCLIP's or `save`'s.

`config_fields` makes the content for `save`: our own complete part, and timm's part if
timm has the model.
"""

import dataclasses
import pathlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import as_tuple
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from imagepiece_jax.weights import open_clip_config, timm_config, transformers_config
from imagepiece_jax.weights.file_names import (
    CONFIG,
    OPEN_CLIP,
    OURS,
    PREPROCESSOR,
    PROCESSOR,
)
from imagepiece_jax.weights.location import Location

FORMAT = 4  # of the part OURS; other formats are refused


class WeightsInfo(NamedTuple):
    """The facts about weights from the files beside them: all but the tensors."""

    config: ViTConfig
    class_names: tuple[str | None, ...] | None = None
    license: str | None = None  # from timm's or our own config.json
    reduction: Reduction = DENSE_REDUCTION  # of the training or the saved model
    dtype: str = "float32"
    untrained: tuple[str, ...] = ()  # drawn parts that were never trained
    # the record of `recover`, without parameters, which RECOVERED holds
    recovery: Recovery | None = None
    # whether files beside the weights state the config; False: the caller or a name
    stated: bool = True
    # fields of the config that apply if the weights have a head
    of_head: Mapping[str, Any] = types.MappingProxyType({})
    # image size of the positions in a model of flexible size; None: the config's
    trained_size: int | tuple[int, int] | None = None
    digest: str | None = None  # of all files saved together; None: not compared


def read(source: Location, images_known: bool = False) -> WeightsInfo:
    """Read a folder's config file and its image processor's config file.

    images_known: accept a folder without an image processor's file
    """
    folder = source.path
    if source.config is None:
        read_json(source.config_file)  # raises the error in the file
    if source.config_file.name == OPEN_CLIP:
        parse_open_clip = open_clip_config.parse_open_clip
        return WeightsInfo(guarded(source.config_file, parse_open_clip, source.config))
    images = {}
    if PROCESSOR in source.names:
        images = read_json(folder / PROCESSOR).get("image_processor") or {}
    if not images and PREPROCESSOR in source.names:
        images = read_json(folder / PREPROCESSOR)
    return parse(source.config, images, folder, images_known)


def parse(
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    folder: pathlib.Path = pathlib.Path(),
    images_known: bool = False,
) -> WeightsInfo:
    """Like `read`, from the contents of config.json and preprocessor_config.json."""
    file = folder / CONFIG
    if OURS in config:
        return guarded(file, _parse_ours, config)
    if "architecture" in config:
        vit_config, names, size = guarded(file, timm_config.parse_timm, config)
        license = config.get("pretrained_cfg", config).get("license")
        return WeightsInfo(vit_config, names, license, trained_size=size)
    if not images and not images_known:
        raise InputError(
            f"folder {folder} has no {PREPROCESSOR}, so nothing says how images are "
            "normalized; place it beside the weights, or give config="
        )
    model_type = guarded(file, transformers_config.kind_of, config)
    parse_images = transformers_config.parse_images
    images = guarded(folder / PREPROCESSOR, parse_images, images, model_type)
    parse_transformers = transformers_config.parse_transformers
    vit_config, names, head = guarded(file, parse_transformers, config, images)
    return WeightsInfo(vit_config, names, of_head=head)


def guarded(file, call, *content):
    """Call `call(*content)`, and name the file in its errors."""
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
        raise InputError(f"{file} has an unknown field: {error}") from error


def config_fields(vit: Pretrained) -> dict[str, Any]:
    """Make the content of a config.json for `load`.

    "architecture" is timm's name if timm has the model, so that `timm.create_model`
    loads the dense part; else it is our own name (OURS).
    """
    model = vit.model
    reduction = dataclasses.replace(vit.reduction, prop_attn=model.prop_attn)
    optional = {}
    if vit.untrained_parts:
        optional["untrained"] = vit.untrained_parts
    if vit.recovery:
        optional["recovery"] = {
            "variants": [variant.record for variant in vit.recovery.variants]
        }
    if vit.class_names:
        optional["class_names"] = vit.class_names
    if vit.source.license:
        optional["license"] = vit.source.license
    record = {
        "format": FORMAT,
        "config": dataclasses.asdict(model.config),
        "reduction": str(reduction),
        "dtype": model.execution.dtype.name,
        **optional,
    }
    return {"architecture": OURS} | timm_config.describe_timm(vit) | {OURS: record}


def _parse_ours(file):
    """Parse our own part of a file (`config_fields`)."""
    record = as_tuple(file[OURS])
    if record.get("format") != FORMAT:
        raise InputError(
            f"{OURS}.format is {record.get('format')}; this version reads {FORMAT}: "
            "load it with the version that wrote it, or save the original weights "
            "again"
        )
    fields = dict(record["config"])
    fields["preprocessing"] = _of_record(Preprocessing, fields["preprocessing"])
    arch = dict(fields["arch"])
    if arch["rotary"]:
        arch["rotary"] = _of_record(Rotary, arch["rotary"])
    fields["arch"] = _of_record(Architecture, arch)
    config = _of_record(ViTConfig, fields)
    _check_same(config, file)
    recovery = None
    if "recovery" in record:
        variants = [
            _of_record(RecoveredVariant, variant)
            for variant in record["recovery"]["variants"]
        ]
        recovery = Recovery(tuple(variants))
    names = record.get("class_names")
    if names is not None:
        names = checked_names(names, config.num_classes)
    if record["reduction"] is None:  # Reduction.read(None) would be the dense model
        raise InputError(f"{OURS}.reduction is None")
    return WeightsInfo(
        config,
        class_names=names,
        license=record.get("license"),
        reduction=Reduction.read(record["reduction"]),
        dtype=checked_dtype(record["dtype"]),
        untrained=tuple(map(str, record.get("untrained", ()))),
        recovery=recovery,
        digest=record.get("digest"),
    )


def _of_record(record_class, fields):
    """Make a dataclass from a record, which must hold every field, without defaults."""
    for field in dataclasses.fields(record_class):
        # Values are in another file, and earlier versions wrote no `learned`.
        if field.name not in (*fields, "values", "learned"):
            raise KeyError(field.name)
    return record_class(**fields)


def _check_same(config, file):
    """Refuse a file whose timm part and own part disagree about the images."""
    # `save` writes both parts for one model, so somebody has edited one part.
    images = as_tuple(file.get("pretrained_cfg", {}))
    fields = {"mean": config.mean, "std": config.std}
    fields["input_size"] = (3, *image_sides(config.image_size))
    for field, value in fields.items():
        if images.get(field, value) != value:
            raise InputError(
                f"pretrained_cfg.{field} is {images[field]}, but {OURS}.config says "
                f"{value}"
            )
