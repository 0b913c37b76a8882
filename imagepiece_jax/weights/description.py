"""Description, the second stage of `load`: everything but the tensors.

The config comes from the caller, a public name, or the files beside the weights: a
config.json of timm, transformers, `save` or a run, or an open_clip_config.json.
"""

import dataclasses
import os
import pathlib
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from imagepiece_jax.common.checks import replace_lists
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError, earlier_revision, titled_errors
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import read_run_config
from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from imagepiece_jax.weights import open_clip_config, timm_config, transformers_config
from imagepiece_jax.weights.file_names import (
    CONFIG_FILE,
    OPEN_CLIP_FILE,
    OWN_KEY,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    JsonFields,
)
from imagepiece_jax.weights.location import FILE_KIND, RUN_KIND, Location, locate_config
from imagepiece_jax.weights.run_files import check_run_format, read_class_names
from imagepiece_jax.weights.tensor_files import open_tensors

ParseResult = TypeVar("ParseResult")
RECORD_FORMAT = 5  # of the part OWN_KEY; other formats are refused
# Errors of parsers for content of an unknown form.
PARSER_ERRORS = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
RUN_FIELDS = {"image_size", "num_classes", "model", "reduction"}  # of a run's config


class Description(NamedTuple):
    """The facts about weights from the caller and the files beside them."""

    config: ViTConfig
    class_names: tuple[str | None, ...] | None = None
    license: str | None = None  # from timm's or our own config.json
    reduction: Reduction = DENSE_REDUCTION  # of the training or the saved model
    dtype: str = "float32"
    untrained_parts: tuple[str, ...] = ()  # drawn parts that were never trained
    # the record of `recover`, without parameters, which RECOVERED_FILE holds
    recovery: Recovery | None = None
    # whether files beside the weights state the config; False: the caller or a name
    has_file_config: bool = True
    # fields of the config that apply if the weights have a head
    head_fields: Mapping[str, Any] = types.MappingProxyType({})
    # image size of the positions, in `read_tensors`' result and in a model of flexible
    # size; None: the config's
    trained_size: ImageSize | None = None
    digest: str | None = None  # of all files saved together; None: not compared


def describe_weights(
    location: Location, config: ViTConfig | str | os.PathLike | None = None
) -> Description:
    """Collect the facts about weights from their files and the caller's `config`.

    config: as for `load`
    Raises InputError if nothing tells which model the weights are.
    """
    if config is not None and not isinstance(config, ViTConfig):
        config = read_config(config)
    if location.config_file is None:
        config = config or _find_named_config(location)
        return Description(config, has_file_config=False)
    try:
        description = _describe_files(location, config is not None)
    except InputError as error:
        # The caller's config replaces a config.json of `save` that is broken or from
        # another version.
        if config is None or OWN_KEY not in (location.config_fields or {OWN_KEY}):
            raise
        warnings.warn(
            f"{error}; the file is ignored, because config describes the model",
            stacklevel=3,
        )
        return Description(config, has_file_config=False)
    if config is None:
        return description
    return description._replace(config=config, has_file_config=False, trained_size=None)


def read_config(config: str | os.PathLike) -> ViTConfig:
    """Read a public model's config, or the config files beside weights.

    config: a public name, such as "deit_tiny_patch16_224.fb_in1k"; a config.json of
        timm, transformers, `save` or a run; an open_clip_config.json; or a folder with
        such a file
    """
    name_or_path = os.fspath(config)
    if registry.is_known(name_or_path):
        return registry.model_config(name_or_path)
    location = locate_config(name_or_path)
    if location is None:
        names = registry.suggest_names(name_or_path)
        raise InputError(f"config is {name_or_path!r}, no model name or file; {names}")
    return describe_weights(location).config


def _find_named_config(location):
    """Find the config by a file's own name, if it is the name of a public model."""
    weights_path = location.path
    if location.origin.kind == FILE_KIND:
        if name := registry.model_in_file_name(weights_path):
            return registry.model_config(name)
    remedy = f"its folder, {weights_path.parent}, has a {CONFIG_FILE}, so load that"
    if not (weights_path.parent / CONFIG_FILE).is_file():
        with open_tensors(location.find_weights(), location.origin.checkpoint):
            remedy = (  # for weights; any other file is named by the error of opening
                "load(.., config=NAME) or --config NAME, such as deit_ti, says which "
                "model it is, and save keeps that beside the weights"
            )
    raise InputError(f"{location.title} does not name its model; {remedy}")


def _describe_files(location, has_config):
    """Read the files beside weights: config, image processor, a run's class names."""
    config_file = location.config_file
    # Broken JSON is read again, which raises the error in the file.
    config_fields = location.config_fields
    if config_fields is None:
        config_fields = read_json(config_file)
    if location.origin.kind == RUN_KIND:
        if not RUN_FIELDS <= {*config_fields}:
            raise InputError(f"{config_file} describes no run and no model")
        description = parse_content(config_file, _parse_run_config, config_fields)
        class_names = read_class_names(location.path, config_fields["num_classes"])
        return description._replace(class_names=class_names)
    if config_file.name == OPEN_CLIP_FILE:
        parse = open_clip_config.parse_open_clip
        return Description(parse_content(config_file, parse, config_fields))
    processor_fields = {}
    if PROCESSOR_FILE in location.file_names:
        file_fields = read_json(location.path / PROCESSOR_FILE)
        processor_fields = file_fields.get("image_processor") or {}
    if not processor_fields and PREPROCESSOR_FILE in location.file_names:
        processor_fields = read_json(location.path / PREPROCESSOR_FILE)
    return parse_config(config_fields, processor_fields, location.path, has_config)


def _parse_run_config(config_fields):
    check_run_format(config_fields)
    reduction = Reduction.read(config_fields["reduction"])
    dtype = config_fields["model"]["dtype"]
    return Description(read_run_config(config_fields), reduction=reduction, dtype=dtype)


def parse_config(
    config_fields: JsonFields,
    processor_fields: JsonFields,
    folder: pathlib.Path = pathlib.Path(),
    has_config: bool = False,
) -> Description:
    """Describe weights by the contents of their folder's config files.

    config_fields, processor_fields: of config.json and preprocessor_config.json
    has_config: whether the caller describes the images, which no file then need do
    """
    config_file = folder / CONFIG_FILE
    if OWN_KEY in config_fields:
        return parse_content(config_file, _parse_own_record, config_fields)
    if "architecture" in config_fields:
        parse = timm_config.parse_timm
        return Description(**parse_content(config_file, parse, config_fields))
    if not processor_fields and not has_config:
        lack = f"no {PREPROCESSOR_FILE} with the images' mean and std"
        raise InputError(f"folder {folder} has {lack}; place it there, or give config=")
    parse = transformers_config.find_vision_type
    model_type = parse_content(config_file, parse, config_fields)
    parse = transformers_config.parse_image_processor
    file = folder / PREPROCESSOR_FILE
    processor = parse_content(file, parse, processor_fields, model_type)
    parse = transformers_config.parse_transformers
    return Description(**parse_content(config_file, parse, config_fields, processor))


def parse_content(
    file: str | os.PathLike | None, parse: Callable[..., ParseResult], *content: Any
) -> ParseResult:
    """Call `parse(*content)`, and name the file in its errors."""
    with titled_errors(file):
        try:
            return parse(*content)
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"it has no {error.args[0]}") from error
        except PARSER_ERRORS as error:
            raise InputError(f"it has an unknown field: {error}") from error


def _parse_own_record(config_fields):
    """Parse our own part of a file (`save.make_config_fields`)."""
    config_fields = replace_lists(config_fields)
    record = config_fields[OWN_KEY]
    if record.get("format") != RECORD_FORMAT:
        raise earlier_revision("it")
    if record["reduction"] is None:  # Reduction.read(None) would be the dense model
        raise InputError(f"{OWN_KEY}.reduction is None")
    config_record = dict(record["config"])
    arch_fields = dict(config_record["arch"])
    if arch_fields["rotary"]:
        arch_fields["rotary"] = _read_record(Rotary, arch_fields["rotary"])
    config_record["arch"] = _read_record(Architecture, arch_fields)
    preprocessing = config_record["preprocessing"]
    config_record["preprocessing"] = _read_record(Preprocessing, preprocessing)
    config = _read_record(ViTConfig, config_record)
    trained_size = record.get("trained_size")
    _check_same_images(config, trained_size or config.image_size, config_fields)
    class_names = record.get("class_names")
    if class_names is not None:
        class_names = checked_names(class_names, config.num_classes)
    recovery = None
    if "recovery" in record:
        variants = record["recovery"]["variants"]
        recovery = Recovery(tuple(_read_record(RecoveredVariant, v) for v in variants))
    return Description(
        config,
        class_names=class_names,
        license=record.get("license"),
        reduction=Reduction.read(record["reduction"]),
        dtype=checked_dtype(record["dtype"]),
        untrained_parts=tuple(map(str, record.get("untrained", ()))),
        recovery=recovery,
        trained_size=trained_size,
        digest=record.get("digest"),
    )


def _read_record(record_class, fields):
    """Make a dataclass from a record, which must hold every field, without defaults."""
    for field in dataclasses.fields(record_class):
        if field.name not in (*fields, "values"):  # values are in another file
            raise KeyError(field.name)
    return record_class(**fields)


def _check_same_images(config, image_size, config_fields):
    # `save` writes both parts for one model, so somebody has edited one part.
    pretrained_cfg = config_fields.get("pretrained_cfg", {})
    own_values = {"mean": config.mean, "std": config.std}
    own_values["input_size"] = (3, *image_sides(image_size))
    for field, own_value in own_values.items():
        timm_value = pretrained_cfg.get(field, own_value)
        if timm_value != own_value:
            other = f"but {OWN_KEY}.config says {own_value}"
            raise InputError(f"pretrained_cfg.{field} is {timm_value}, {other}")
