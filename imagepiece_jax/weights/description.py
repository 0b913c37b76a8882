"""Description, the second stage of `load`: everything but the tensors.

The config comes from the caller, a public name, or the files beside the weights: a
config.json of timm, transformers, `save` or a run, or an open_clip_config.json.
"""

import dataclasses
import os
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imagepiece_jax.common.checks import replace_lists
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError, earlier_revision
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import read_run_config
from imagepiece_jax.models.recovery_record import RecoveredVariant, Recovery
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction
from imagepiece_jax.weights import folder_files, open_clip_config, timm_config
from imagepiece_jax.weights.location import HUB_SCHEME, Location, locate_weights
from imagepiece_jax.weights.tensor_files import open_tensors
from imagepiece_jax.weights.transformers_config import (
    find_vision_type,
    parse_image_processor,
    parse_transformers,
)

RECORD_FORMAT = 5  # of the part OWN_KEY; other formats are refused
RUN_FIELDS = {"image_size", "num_classes", "model", "reduction"}  # of a run's config


class Description(NamedTuple):
    """The facts about weights from the caller and the files beside them."""

    config: ViTConfig
    class_names: Sequence[str | None] | None = None
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

    Raises InputError if nothing tells which model the weights are.
    """
    if config is not None and not isinstance(config, ViTConfig):
        config = read_config(config)
    if location.config_file is None:
        config = config or _find_named_config(location)
        return Description(config, has_file_config=False)
    description = _describe_files(location, config is not None)
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
    is_hub_id = name_or_path.startswith(HUB_SCHEME)
    if not is_hub_id and not os.path.exists(os.path.expanduser(name_or_path)):
        names = registry.suggest_names(name_or_path)
        raise InputError(f"config is {name_or_path!r}, no model name or file; {names}")
    return describe_weights(locate_weights(name_or_path)).config


def _find_named_config(location):
    """Find the config by a file's own name, if it is the name of a public model."""
    if location.tensors is not None:
        raise InputError("config is missing: a state dict does not say its model")
    if not location.file_names:  # a file
        if model_name := registry.model_in_file_name(location.path):
            return registry.model_config(model_name)
    config_file = location.path.parent / folder_files.CONFIG_FILE
    remedy = f"its folder, {config_file.parent}, has a {config_file.name}, so load that"
    if not config_file.is_file():
        # Weights alone get this remedy: opening any other file is an error.
        with open_tensors(location.find_weights(), location.origin.checkpoint):
            remedy = (
                "load(.., config=NAME) or --config NAME, such as deit_ti, says which "
                "model it is, and save keeps that beside the weights"
            )
    raise InputError(f"{location.origin.title} does not name its model; {remedy}")


def _describe_files(location, has_given_config):
    """Read the files beside weights: config, image processor, a run's class names."""
    config_file = location.config_file
    config_fields = location.config_fields
    if location.origin.run is not None:
        if not RUN_FIELDS <= {*config_fields}:
            raise InputError(f"{config_file} describes no run and no model")
        with folder_files.content_errors(config_file):
            folder_files.check_run_format(config_fields)
            config = read_run_config(config_fields)
            reduction = Reduction.read(config_fields["reduction"])
            dtype = config_fields["model"]["dtype"]
        class_names = folder_files.read_class_names(location.path, config.num_classes)
        return Description(config, class_names, reduction=reduction, dtype=dtype)
    if config_file.name == folder_files.OPEN_CLIP_FILE:
        with folder_files.content_errors(config_file):
            return Description(open_clip_config.parse_open_clip(config_fields))
    image_processor_fields = {}
    if folder_files.PROCESSOR_FILE in location.file_names:
        processor_config = read_json(location.path / folder_files.PROCESSOR_FILE)
        image_processor_fields = processor_config.get("image_processor") or {}
    preprocessor_file = location.path / folder_files.PREPROCESSOR_FILE
    if not image_processor_fields and preprocessor_file.name in location.file_names:
        image_processor_fields = read_json(preprocessor_file)
    # timm's config.json and ours have mean and std, and so has the caller's config.
    # For transformers' they would silently be the defaults.
    has_mean = has_given_config or "architecture" in config_fields
    if not (image_processor_fields or has_mean):
        raise InputError(
            f"folder {location.path} has no {preprocessor_file.name} with the images' "
            "mean and std; place it there, or give config="
        )
    return parse_config(config_fields, image_processor_fields, location.path)


def parse_config(
    config_fields: folder_files.JsonFields,
    image_processor_fields: folder_files.JsonFields,
    folder: pathlib.Path = pathlib.Path(),
) -> Description:
    """Describe weights by the contents of config.json and preprocessor_config.json."""
    config_file = folder / folder_files.CONFIG_FILE
    with folder_files.content_errors(config_file):
        if folder_files.OWN_KEY in config_fields:
            return _parse_own_record(config_fields)
        if "architecture" in config_fields:
            return Description(**timm_config.parse_timm(config_fields))
        model_type = find_vision_type(config_fields)
    with folder_files.content_errors(folder / folder_files.PREPROCESSOR_FILE):
        image_settings = parse_image_processor(image_processor_fields, model_type)
    with folder_files.content_errors(config_file):
        return Description(**parse_transformers(config_fields, image_settings))


def _parse_own_record(config_fields):
    """Parse our own part of a file (`save.make_config_fields`)."""
    config_fields = replace_lists(config_fields)  # JSON has lists for tuples
    record = config_fields[folder_files.OWN_KEY]
    if record.get("format") != RECORD_FORMAT:
        raise earlier_revision("it")
    if record["reduction"] is None:  # Reduction.read(None) would be the dense model
        raise InputError(f"{folder_files.OWN_KEY}.reduction is None")
    config_record = {**record["config"]}
    architecture_record = {**config_record["arch"]}
    if rotary_record := architecture_record["rotary"]:
        architecture_record["rotary"] = _read_record(Rotary, rotary_record)
    config_record["arch"] = _read_record(Architecture, architecture_record)
    preprocessing_record = config_record["preprocessing"]
    config_record["preprocessing"] = _read_record(Preprocessing, preprocessing_record)
    config = _read_record(ViTConfig, config_record)
    trained_size = record.get("trained_size")
    # `save` writes both parts for one model, so somebody has edited one part.
    value_of_field = {"mean": config.mean, "std": config.std}
    # timm's input_size is (channels, height, width).
    value_of_field["input_size"] = (3, *image_sides(trained_size or config.image_size))
    pretrained_cfg = config_fields.get("pretrained_cfg", {})
    for field, config_value in value_of_field.items():
        timm_value = pretrained_cfg.get(field, config_value)
        if timm_value != config_value:
            contradiction = f"but {folder_files.OWN_KEY}.config says {config_value}"
            raise InputError(f"pretrained_cfg.{field} is {timm_value}, {contradiction}")
    class_names = record.get("class_names")
    if class_names is not None:
        class_names = checked_names(class_names, config.num_classes)
    recovery = None
    if "recovery" in record:
        variants = []
        for variant_record in record["recovery"]["variants"]:
            variants.append(_read_record(RecoveredVariant, variant_record))
        recovery = Recovery(tuple(variants))
    return Description(
        config,
        class_names=class_names,
        license=record.get("license"),
        reduction=Reduction.read(record["reduction"]),
        dtype=checked_dtype(record["dtype"]),
        untrained_parts=tuple(record.get("untrained", ())),
        recovery=recovery,
        trained_size=trained_size,
        digest=record.get("digest"),
    )


def _read_record(record_class, fields):
    """Make a dataclass of a record's fields; a missing one would become the default."""
    for field in dataclasses.fields(record_class):
        if field.name not in (*fields, "values"):  # values are in RECOVERED_FILE
            raise KeyError(field.name)
    return record_class(**fields)
