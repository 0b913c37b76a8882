"""The config of a model: its fields, how they merge, and the model they make."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.fields import (
    CheckedFields,
    checked,
    choice,
    count,
    from_dict,
    number,
    optional,
    rate,
    switch,
    text,
)
from imagepiece_jax.common.image_size import image_size_field, patch_grid, sides
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError, check_names, short_traceback, within
from imagepiece_jax.models.architecture import (
    DEIT,
    GELUS,
    MLPS,
    POOLS,
    RESIZES,
    Architecture,
)
from imagepiece_jax.models.at_cost import MISS, reduced, resolved
from imagepiece_jax.models.attention import BACKENDS, resolve_backend
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.registry import MODELS, facts
from imagepiece_jax.models.rotary import Rotary
from imagepiece_jax.models.stems import STEMS, conv_stem_widths
from imagepiece_jax.models.vit import MEAN, STD, ViT
from imagepiece_jax.reduction import kernels as fused_kernels
from imagepiece_jax.reduction import layer_plan, settings
from imagepiece_jax.reduction.methods.method import Method
from imagepiece_jax.reduction.settings import Reduction, as_fields

# Fields of an Architecture that a ModelConfig has too. A run's config has them in
# `config.model`, those of OF_ARCH in `config.model.arch`.
OF_ARCH = ("pool", "pool_include_prefix", "pool_heads", "fc_norm", "prefix_positions")
OF_ARCH += ("rotary", "post_norm", "mlp")
ONE_BY_ONE = ("gelu", "norm_eps", "resize", "class_token", *OF_ARCH)
SIZE_FIELDS = ("mlp_ratio", "patch_size", "embed_dim", "depth", "num_heads")
# Fields that weights decide.
DECIDED = ("embed_dim", "depth", "patch_size", "num_heads", "mlp_ratio", "stem")
DECIDED += ("num_classes", "mean", "std")
# Defaults of a model, under its name's and its own fields.
USUAL = dict(image_size=224, num_classes=1000, mlp_ratio=4.0, stem="patch")
USUAL |= dict(dtype="float32", attention="auto", kernels="plain", drop_path_rate=0.0)
USUAL |= dict(masked=False)


def _rotary(value):
    return False if value is False else from_dict(Rotary, value)


def _arch(value):
    # {}: as the name has it
    return from_dict(Architecture, value) if value else None


class Contradiction(InputError):
    """A requested field with another value than the weights have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(CheckedFields):
    """Fields of a model; None: the name decides, or nothing does."""

    # in registry.MODELS, or timm's of a public model with or without its tag, such as
    # "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch` and the size are enough
    name: str | None = None
    # pixels a side, or (height, width)
    image_size: int | tuple[int, int] | None = optional(image_size_field())
    num_classes: int | None = optional(count())  # 0: no head
    patch_size: int | None = optional(count(least=1))
    embed_dim: int | None = optional(count(least=1))
    depth: int | None = optional(count(least=1))
    num_heads: int | None = optional(count(least=1))
    mlp_ratio: float | None = optional(number(above=0))
    stem: str | None = optional(choice(allowed=tuple(STEMS)))
    # or a dict
    arch: Architecture | None = optional(checked(None, _arch, "its fields"))
    # this and the next eleven: of arch
    gelu: str | None = optional(choice(allowed=GELUS))
    norm_eps: float | None = optional(number(above=0, below=1))
    resize: str | None = optional(choice(allowed=RESIZES))
    class_token: bool | None = optional(switch())  # False: the head reads a mean
    pool: str | None = optional(choice(allowed=POOLS))
    pool_include_prefix: bool | None = optional(switch())
    pool_heads: int | None = optional(count())
    fc_norm: bool | None = optional(switch())
    prefix_positions: bool | None = optional(switch())
    # or a dict; False: positions do not turn
    rotary: Rotary | bool | None = optional(
        checked(None, _rotary, "False, and fields of a Rotary")
    )
    post_norm: bool | None = optional(switch())
    mlp: str | None = optional(choice(allowed=MLPS))
    # of the images' pixels in [0, 1]
    mean: tuple[float, float, float] | None = optional(channels(rate()))
    std: tuple[float, float, float] | None = optional(channels(number(above=0, most=1)))
    dtype: str | None = optional(xla_options.layer_dtype())
    attention: str | None = optional(choice(allowed=BACKENDS))
    kernels: str | None = optional(choice(allowed=fused_kernels.CHOICES))
    drop_path_rate: float | None = optional(number(least=0, below=1))
    # None: the reduction's default, such as True for ToMe; False for MAE's weights
    prop_attn: bool | None = optional(switch())
    # for training: methods that train with a mask keep all tokens there
    masked: bool | None = optional(switch())
    axis_name: str | None = optional(text())  # as in ViT

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """The config with these fields. Raises InputError for an unknown one."""
        check_names(fields, cls.names())
        return cls(**fields)

    @classmethod
    def names(cls) -> list[str]:
        """The names of all fields."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def as_dict(self) -> dict[str, Any]:
        """`fields` for a file: `arch` as the fields that differ from the name's."""
        fields, usual = self.fields, facts(self.name).get("arch", DEIT)
        if self.arch is not None:
            fields["arch"] = self.arch.changed
        if self.arch == usual:
            del fields["arch"]
        elif self.arch == DEIT:
            fields.pop("name", None), fields.pop("arch")
        return fields

    def over(self, *others: "ModelConfig") -> "ModelConfig":
        """Each field from the first config that has it: this, then the others."""
        fields = {}
        for config in (*reversed(others), self):
            fields |= config.fields
        return ModelConfig(**fields)

    @property
    def architecture(self) -> Architecture:
        """The Architecture by `arch`, the name and the single fields."""
        arch = self.arch or facts(self.name).get("arch", DEIT)
        single = self.single_fields
        if single.get("class_token", arch.class_token) != arch.class_token:
            pool = "token" if single["class_token"] else "mean"
            single = {"pool": pool} | single
        return dataclasses.replace(arch, **single)

    @property
    def single_fields(self) -> dict[str, Any]:
        """The fields of an Architecture that are given one by one, by its types."""
        single = {k: v for k, v in self.fields.items() if k in ONE_BY_ONE}
        if single.get("rotary") is False:
            single["rotary"] = None
        return single

    def changed(
        self, requested: "ModelConfig", source: str, sizes: bool
    ) -> "ModelConfig":
        """This config of trained weights with requested fields.

        source: the weights, in words
        sizes: whether a requested name stands for its sizes, too
        Raises Contradiction for a field that weights decide: with another value they do
            not fit, or lose meaning.
        """
        single = {k: v for k, v in requested.fields.items() if k in ONE_BY_ONE}
        named, compared = named_fields(requested.name), requested
        # GELU may be another, and so may the pool of a model that has none.
        choices = ("gelu", "pool", "pool_include_prefix")
        choices = choices if self.arch.pool == "none" else ("gelu",)
        base = requested.arch or self.arch
        if sizes and requested.name not in (None, self.name):
            compared = requested.over(named)
            base = requested.arch or facts(requested.name).get("arch", DEIT)
        arch = ModelConfig(arch=base, **single).architecture

        def compare(field, value, ours, of_name):
            value, ours = settings.as_tuple(value), settings.as_tuple(ours)
            if value == ours:
                return
            whose = f"of {requested.name!r} " if requested.name and of_name else ""
            problem = f"{whose}is {value!r}, but {source} has {ours!r}"
            raise Contradiction(problem, field=field, value=value, allowed=repr(ours))

        for field in DECIDED:
            value = getattr(compared, field)
            ours, of_name = getattr(self, field), value == getattr(named, field)
            if None not in (value, ours):
                compare(field, value, ours, of_name)
        for field in (f.name for f in dataclasses.fields(arch)):
            path = f"arch.{field}" if requested.arch and field not in single else field
            of_name = requested.arch is None and field not in single
            if field not in choices or field not in single:
                compare(path, getattr(arch, field), getattr(self.arch, field), of_name)
        size = requested.image_size or self.image_size
        if sides(size) != sides(self.image_size):  # which need be no multiple
            patch_grid(size, self.patch_size)
        free = {k: v for k, v in requested.fields.items() if k not in ONE_BY_ONE}
        return dataclasses.replace(self, **free | {"arch": arch})

    def create(self, reduction: Reduction | Method = None) -> ViT:
        """The model, with a reduction. Raises InputError for fields that do not fit."""
        named, arch = facts(self.name), self.architecture
        fields = USUAL | named | self.fields
        with within("arch"):
            arch.check_parts()
            if arch.pool == "none" and fields["num_classes"]:
                problem = f"is 'none' for {fields['num_classes']} classes"
                hint = "num_classes=0 leaves a head out"
                arch.refuse("pool", "'token', 'mean', 'map'", problem, hint)
        if lacking := [field for field in SIZE_FIELDS if field not in fields]:
            allowed = f"a name, or all of arch, {', '.join(SIZE_FIELDS)}"
            self.refuse("name", allowed, f"is {self.name!r} and {lacking[0]} is empty")
        mean, std = self.mean, self.std
        if mean is None and std is None:
            mean, std = named.get("mean"), named.get("std")
        mean, std = normalization(mean, std)
        size = {field: fields[field] for field in SIZE_FIELDS if field != "depth"}
        image_size, depth = fields["image_size"], fields["depth"]
        cut = self.name is None or image_size == named.get("image_size")
        patches = patch_grid(image_size, fields["patch_size"], cut)
        _check_size(size, fields["stem"], arch)
        head_width = fields["embed_dim"] // fields["num_heads"]
        dense = ViT(
            plan=layer_plan.build(depth, math.prod(patches), (), arch.prefix),
            num_classes=fields["num_classes"],
            stem=fields["stem"],
            arch=arch,
            mean=mean,
            std=std,
            dtype=jnp.dtype(fields["dtype"]),
            backend=resolve_backend(fields["attention"], fields["dtype"], head_width),
            drop_path_rate=fields["drop_path_rate"],
            axis_name=self.axis_name,
            **size,
        )
        model = reduced(
            dense, reduction, patches, self.name, self.prop_attn, fields["masked"]
        )
        kernels = fused_kernels.resolve_kernels(fields["kernels"], model)
        return model.clone(kernels=kernels)

    def gmacs(self, reduction: Reduction = None) -> float:
        """GMACs of one image through `create(reduction)`."""
        return model_macs(self.create(reduction), self.image_size) / 1e9

    def resolved(
        self, reduction: Reduction, allowed: float = MISS
    ) -> Mapping[str, Any]:
        """As the function `resolved`."""
        reduction = as_fields(reduction)
        if reduction.get("macs") is None:
            return reduction
        model, fields = self.create(), USUAL | facts(self.name) | self.fields
        grid = patch_grid(fields["image_size"], model.patch_size, cut=True)
        return resolved(reduction, model, grid, self.name, allowed)


@short_traceback
def create_model(name: str | None, reduction: Reduction = None, **changes: Any) -> ViT:
    """A ViT by name, without weights.

    name: "deit_ti", "deit_s", "deit_b", or timm's name of a public model with or
        without its tag, such as "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch`
        and the size are enough
    reduction: a share of the MACs such as 0.5, a method's name, or a dict such as
        {"name": "evit", "keep_rate": 0.7}, also with `prop_attn`; None: the dense model
    changes: fields of a ModelConfig that differ from the name's, such as
        image_size=(224, 280), num_classes=10 or dtype="bfloat16"
    Raises InputError for anything that does not fit.
    """
    check_names(changes, ["reduction", *ModelConfig.names()])
    config = ModelConfig(name=name, **changes)
    return config.create(config.resolved(reduction))


@contextlib.contextmanager
def in_config():
    """InputErrors raised inside name a model's fields by their path in a run's config.

    "reduction.r" is "config.reduction.r", "num_heads" is "config.model.num_heads".
    """
    try:
        yield
    except InputError as error:
        first = error.field.partition(".")[0]
        if first in ModelConfig.names() or first == "reduction":
            error.field = config_path(error.field)
        raise


def config_path(field: str) -> str:
    """The path of a ModelConfig's field, or of a reduction's, in a run's config."""
    first = field.partition(".")[0]
    if first in ("image_size", "num_classes", "reduction"):
        return f"config.{field}"
    return f"config.model.arch.{field}" if first in OF_ARCH else f"config.model.{field}"


def size_of(name: str | None, others: Sequence[str] = ()) -> ModelConfig:
    """The sizes that a name stands for, and `others` of the fields that it says."""
    fields = facts(name)
    return ModelConfig(**{k: fields[k] for k in (*SIZE_FIELDS, *others) if k in fields})


def named_fields(name: str | None) -> ModelConfig:
    """The sizes that a name stands for, of a public model mean and std too."""
    return size_of(name, () if name in MODELS else ("mean", "std"))


def normalization(mean, std):
    """(mean, std), ImageNet's for two Nones. Raises InputError for one None."""
    if (mean is None) != (std is None):
        present, lacking = ("mean", "std") if std is None else ("std", "mean")
        problem = f"is given, {lacking} is not"
        raise InputError(problem, field=present, allowed="both or neither")
    return (MEAN, STD) if mean is None else (mean, std)


def _check_size(size, stem, arch):
    """InputError for sizes and parts that do not go together."""
    width, heads = size["embed_dim"], size["num_heads"]
    if width % heads:
        allowed = f"divisors of embed_dim, which is {width}"
        raise InputError(field="num_heads", value=heads, allowed=allowed)
    if width * size["mlp_ratio"] < 1:
        allowed = f"at least 1 / {width}, for an MLP of a width of 1 or more"
        raise InputError(field="mlp_ratio", value=size["mlp_ratio"], allowed=allowed)
    if stem == "conv":
        conv_stem_widths(width, size["patch_size"])
    if stem == "conv" and not arch.patch_bias:
        problem = "is 'conv', whose projection has a bias, but arch.patch_bias is False"
        raise InputError(problem, field="stem", value=stem, allowed="'patch'")
    if arch.rotary is not None and width // heads % 4:
        problem = f"is {heads}, which makes heads of a width of {width // heads}"
        allowed = "with rotary positions a width of multiples of 4"
        raise InputError(problem, field="num_heads", value=heads, allowed=allowed)
