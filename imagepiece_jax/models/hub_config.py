"""What config.json and preprocessor_config.json say of published weights.

Both forms of the Hugging Face hub are read, timm's and transformers'. `describe` writes
timm's, with a part of our own that says all of a model.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from imagepiece_jax import __version__
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import timm_config, transformers_config
from imagepiece_jax.models.vit import ViT

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
OURS = "imagepiece_jax"  # the part of a config.json that is this package's own


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """What a published model's config files say.

    given: what no tensor tells, as `infer_config` takes it; told: what tensors tell
    too; preprocessing: fields of a Preprocessing but the size; reduction and dtype: of
    a model that this package saved; class_names: by label, None for a class without.
    """

    given: Mapping[str, Any]
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reduction: Mapping[str, Any] | None = None
    dtype: str | None = None
    class_names: tuple[str | None, ...] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of create_model that are no matter of tensors."""
        found = {"preprocessing": self.preprocessing} if self.preprocessing else {}
        return found | ({"dtype": self.dtype} if self.dtype else {})

    def check(self, fields: Mapping[str, Any]) -> None:
        """InputError where `fields`, which tensors tell, are others than here."""
        for field, value in self.told.items():
            found = fields[field]
            if found != value:
                raise InputError(
                    f"{CONFIG} says {field} {value!r}, but its tensors have {found!r}; "
                    "allowed are files of one model"
                )


def read(folder: pathlib.Path) -> HubConfig:
    """The HubConfig of a folder with a config.json; InputError with the file's name.

    A preprocessor_config.json beside it is read too, where there is one.
    """
    config = read_json(folder / CONFIG)
    images = {}
    if (folder / PREPROCESSOR).is_file():
        images = read_json(folder / PREPROCESSOR)
    try:
        return parse(config, images)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def is_own(folder: pathlib.Path) -> bool:
    """Whether a folder's config.json is of a model that this package saved."""
    try:
        return OURS in read_json(folder / CONFIG)
    except InputError:
        return False


def parse(config: Mapping[str, Any], images: Mapping[str, Any]) -> HubConfig:
    """As `read`, of the contents of config.json and of preprocessor_config.json."""
    if OURS in config:
        return _checked(HubConfig(**_guarded(CONFIG, _own, config)))
    if "architecture" in config:
        return _checked(HubConfig(**_guarded(CONFIG, timm_config.parse, config)))
    found = _guarded(CONFIG, transformers_config.parse, config)
    read = transformers_config.processor
    given, prepared = _guarded(PREPROCESSOR, read, images, config)
    given |= found.pop("given")
    return _checked(HubConfig(given=given, preprocessing=prepared, **found))


def _checked(found):
    """`found`, whose size of images is one, as far as there is one."""
    size = found.given.get("image_size", 1)
    right = [isinstance(side, int) and side > 0 for side in sides(size)]
    if right not in ([True], [True, True]):
        raise InputError(
            f"{CONFIG}: the size of images is {size!r}; allowed are one or two numbers "
            "of pixels"
        )
    return found


def _guarded(file, call, *content):
    """What `call` makes of a file's content, whose mistakes are named with the file."""
    try:
        return call(*content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except KeyError as error:
        raise InputError(f"{file} has no {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f"{file} has a field of another type: {error}") from error


def describe(model: ViT) -> dict[str, Any]:
    """The content of a config.json by which `load` makes a model again.

    timm makes its dense part of it, where it has an architecture that is not OURS.
    """
    prepared = dataclasses.asdict(model.preprocessing)
    size, crop = prepared.pop("image_size"), prepared["crop"]
    own = {
        "version": __version__,
        "model": {
            "name": model.public_name,
            "arch": dataclasses.asdict(model.arch),
            "num_heads": model.num_heads,
            "image_size": size,
            "mean": model.mean,
            "std": model.std,
        },
        "preprocessing": {} if crop is None else prepared,
        "reduction": {**model.reduction, "prop_attn": model.prop_attn},
        "dtype": model.dtype.name,
    }
    return {"architecture": OURS} | timm_config.describe(model) | {OURS: own}


def _own(config):
    """Of what `describe` wrote, the part that is of our own."""
    own, classes = config[OURS], config["num_classes"]
    if not isinstance(own["model"]["arch"], Mapping):
        raise TypeError(f"arch is {own['model']['arch']!r}")
    return {
        "given": {k: _plain(v) for k, v in own["model"].items()},
        "told": {"num_classes": classes},
        "preprocessing": own["preprocessing"],
        "reduction": {k: _plain(v) for k, v in own["reduction"].items()},
        "dtype": own["dtype"],
        "class_names": timm_config.labels(config, classes),
    }


def _plain(value):
    return tuple(_plain(v) for v in value) if isinstance(value, list) else value
