"""The config of a model: its fields, how they merge, and the model they make."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common import xla_options
from imagepiece_jax.common.fields import (
    CheckedFields,
    as_tuple,
    checked,
    choice,
    count,
    number,
    optional,
    rate,
    switch,
    text,
)
from imagepiece_jax.common.image_size import image_size_field, patch_grid, sides
from imagepiece_jax.data.normalize import channels
from imagepiece_jax.errors import InputError, check_names, inside, short_traceback
from imagepiece_jax.models import reduction_plan
from imagepiece_jax.models.architecture import DEIT, PARTS, Architecture
from imagepiece_jax.models.attention import BACKENDS, resolve_backend
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.registry import MODELS, fields_of
from imagepiece_jax.models.stems import STEMS, conv_stem_widths
from imagepiece_jax.models.vit import MEAN, STD, ViT
from imagepiece_jax.reduction.layer_plan import dense_plan
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

SIZE_FIELDS = ("mlp_ratio", "patch_size", "embed_dim", "depth", "num_heads")


def _known(name):
    """A model's name. Raises InputError for one of no model."""
    try:
        fields_of(name)
    except InputError as error:
        raise error.with_facts(field="") from error
    return name


def _parts(value):
    if isinstance(value, Architecture):
        return dict(vars(value))
    if not isinstance(value, Mapping):
        raise ValueError(value)
    return Architecture.some(value)


def _open(check, default=None, decided=False):
    """A field that may be None: then the model's name decides it.

    check: a field that checks values other than None
    default: the value where the name does not decide it either
    decided: whether trained weights decide it, so that no other value fits them
    """
    field = optional(check)
    metadata = {**field.metadata, "default": default, "decided": decided}
    return dataclasses.field(default=None, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(CheckedFields):
    """What makes a model, but for its reduction and weights: `create` makes the ViT.

    A field that is None is decided by the name, else by `default` of `_open`, or by
    nothing yet.
    """

    # in registry.MODELS, or timm's of a public model with or without its tag, such as
    # "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch` and the size are enough
    name: str | None = checked(None, _known, "names of models")
    # pixels a side, or (height, width)
    image_size: int | tuple[int, int] | None = _open(image_size_field(), 224)
    embed_dim: int | None = _open(count(least=1), decided=True)
    depth: int | None = _open(count(least=1), decided=True)
    patch_size: int | None = _open(count(least=1), decided=True)
    num_heads: int | None = _open(count(least=1), decided=True)
    mlp_ratio: float | None = _open(number(above=0), 4.0, decided=True)
    stem: str | None = _open(choice(allowed=tuple(STEMS)), "patch", decided=True)
    num_classes: int | None = _open(count(), 1000, decided=True)  # 0: no head
    # parts by name that differ from those of the name, or without a name from DeiT's
    arch: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={"convert": _parts, "allowed": "fields of an Architecture"},
    )
    # of the images' pixels in [0, 1]
    mean: tuple[float, float, float] | None = _open(channels(rate()), decided=True)
    std: tuple[float, float, float] | None = _open(
        channels(number(above=0, most=1)), decided=True
    )
    dtype: str | None = _open(xla_options.layer_dtype(), "float32")
    attention: str | None = _open(choice(allowed=BACKENDS), "auto")
    drop_path_rate: float | None = _open(number(least=0, below=1), 0.0)
    # None: the reduction's default, such as True for ToMe; False for MAE's weights
    prop_attn: bool | None = _open(switch())
    # for training: methods that train with a mask keep all tokens there
    masked: bool | None = _open(switch(), False)
    axis_name: str | None = _open(text())  # as in ViT

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "ModelSpec":
        """The config with these fields; parts of `arch` may stand beside it.

        Raises InputError for an unknown field, and for a value that is not allowed.
        """
        check_names(fields, cls.names())
        arguments = {name: value for name, value in fields.items() if name not in PARTS}
        parts = {}
        for name, value in fields.items():
            if name in PARTS and value is not None:
                parts[name] = value
        if arguments.get("arch") is None:
            arguments.pop("arch", None)
        config = cls(**arguments)
        return dataclasses.replace(config, arch=config.arch | Architecture.some(parts))

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> "ModelSpec":
        """The model in the config of a run.

        Raises InputError for a field that is not allowed, by its path in the config.
        """
        fields = {k: as_tuple(v) for k, v in config["model"].items()}
        parts = fields.get("arch", {}).items()
        fields["arch"] = {part: value for part, value in parts if value is not None}
        spec = cls.from_fields(fields)
        sizes = {name: config[name] for name in ("image_size", "num_classes")}
        return dataclasses.replace(spec, **sizes)

    @classmethod
    def names(cls) -> list[str]:
        """The names of all fields, parts of `arch` included."""
        return [*(field.name for field in dataclasses.fields(cls)), *PARTS]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are set."""
        return {k: value for k, value in vars(self).items() if value not in (None, {})}

    @property
    def _all_fields(self):
        """`fields`, else those of the name, else the defaults."""
        every = dataclasses.fields(self)
        defaults = {field.name: field.metadata.get("default") for field in every}
        return defaults | fields_of(self.name) | self.fields

    @property
    def as_dict(self) -> dict[str, Any]:
        """`fields` for a file: `arch` as the parts that differ from the name's."""
        fields = self.fields
        fields["arch"] = self.architecture.difference(_named_parts(self.name))
        if not fields["arch"]:
            del fields["arch"]
        return fields

    def completed_by(self, *others: "ModelSpec") -> "ModelSpec":
        """Each field and part from the first that has it: this, then the others."""
        fields = {}
        arch = {}
        for config in (*reversed(others), self):
            fields |= config.fields
            arch |= config.arch
        return ModelSpec(**fields | {"arch": arch})

    @property
    def architecture(self) -> Architecture:
        """The Architecture of the name with the parts of `arch`."""
        return _named_parts(self.name).with_parts(self.arch)

    def with_all_parts(self) -> "ModelSpec":
        """The same with all parts in `arch`: what it does not say is the name's."""
        return dataclasses.replace(self, arch=self.architecture)

    def with_requested(
        self, requested: "ModelSpec", source: str, sizes: bool
    ) -> "ModelSpec":
        """This config of trained weights with requested fields.

        source: the weights, in words
        sizes: whether the sizes of a requested name must be those of the weights, too
        Raises InputError for a field that weights decide: with another value they do
            not fit, or lose meaning.
        """
        named = named_fields(requested.name)
        compared = requested  # its fields must be those of the weights
        trained_arch = self.architecture
        wanted_arch = trained_arch
        if sizes and requested.name not in (None, self.name):
            compared = requested.completed_by(named)
            wanted_arch = _named_parts(requested.name)
        wanted_arch = wanted_arch.with_parts(requested.arch)

        def compare(field, value, trained, of_name):
            """InputError unless `value` is `trained`.

            of_name: whether `value` is that of the requested name
            """
            value = as_tuple(value)
            trained = as_tuple(trained)
            if value == trained:
                return
            whose = ""
            if requested.name and of_name:
                whose = f"of {requested.name!r} "
            problem = f"{whose}is {value!r}, but {source} has {trained!r}"
            raise InputError(field, value, repr(trained), problem=problem)

        for field in dataclasses.fields(self):
            value = getattr(compared, field.name)
            trained = getattr(self, field.name)
            if field.metadata.get("decided") and None not in (value, trained):
                of_name = value == getattr(named, field.name)
                compare(field.name, value, trained, of_name)
        # GELU may be another, and so may the pool of a model that has none.
        free = {"gelu"}
        if trained_arch.pool == "none":
            free |= {"pool", "pool_include_prefix"}
        for part in PARTS:
            of_name = part not in requested.arch
            if of_name or part not in free:
                wanted = getattr(wanted_arch, part)
                trained = getattr(trained_arch, part)
                compare(part, wanted, trained, of_name)
        size = requested.image_size or self.image_size
        # Images that weights were trained on may end in a part of a patch, others not.
        if sides(size) != sides(self.image_size):
            patch_grid(size, self.patch_size)
        return dataclasses.replace(self, **requested.fields | {"arch": wanted_arch})

    def create(self, reduction: ReductionLike = None) -> ViT:
        """The ViT of this config, with the plan of a reduction.

        Raises InputError for fields that do not fit.
        """
        dense = self.dense()
        reduction = Reduction.read(reduction, self.prop_attn)
        masked = bool(self.masked)
        return reduction_plan.with_plan(dense, reduction, self.grid, self.name, masked)

    def create_at_cost(self, value: ReductionLike) -> ViT:
        """`create`, and a line on stderr says what a number or a text stands for."""
        reduction = Reduction.read(value, self.prop_attn)
        model = self._with_plan(reduction)
        typed = isinstance(value, str)
        reduction_plan.print_reduction(reduction, model, self.grid, typed)
        return model

    def _with_plan(self, reduction):
        """The ViT with the plan of a Reduction."""
        dense = self.dense()
        masked = bool(self.masked)
        return reduction_plan.with_plan(dense, reduction, self.grid, self.name, masked)

    def dense(self) -> ViT:
        """The ViT of this config without a reduction.

        Fields that are None are those of the name, else the defaults. Attention is
        chosen for this process's first device.

        Raises InputError for fields that do not fit.
        """
        named = fields_of(self.name)
        arch = self.architecture
        fields = self._all_fields
        with inside("arch"):
            arch.check_parts()
            if arch.pool == "none" and fields["num_classes"]:
                problem = f"is 'none' for {fields['num_classes']} classes"
                hint = "num_classes=0 leaves a head out"
                arch.refuse("pool", "'token', 'mean', 'map'", problem, hint)
        if lacking := [field for field in SIZE_FIELDS if fields[field] is None]:
            allowed = f"a name, or all of arch, {', '.join(SIZE_FIELDS)}"
            self.refuse("name", allowed, f"is {self.name!r} and {lacking[0]} is empty")
        mean = self.mean
        std = self.std
        if mean is None and std is None:
            mean = named.get("mean")
            std = named.get("std")
        mean, std = normalization(mean, std)
        sizes = {field: fields[field] for field in SIZE_FIELDS if field != "depth"}
        image_size = fields["image_size"]
        depth = fields["depth"]
        # Some models were published for images that end in a part of a patch.
        cut = self.name is None or image_size == named.get("image_size")
        patches = patch_grid(image_size, fields["patch_size"], cut)
        _check_size(sizes, fields["stem"], arch)
        head_width = fields["embed_dim"] // fields["num_heads"]
        tokens = arch.prefix + math.prod(patches)
        return ViT(
            plan=dense_plan(depth, tokens),
            num_classes=fields["num_classes"],
            stem=fields["stem"],
            arch=arch,
            mean=mean,
            std=std,
            dtype=jnp.dtype(fields["dtype"]),
            backend=resolve_backend(fields["attention"], fields["dtype"], head_width),
            drop_path_rate=fields["drop_path_rate"],
            axis_name=self.axis_name,
            **sizes,
        )

    def gmacs(self, reduction: ReductionLike = None) -> float:
        """GMACs of one image through `create(reduction)`."""
        size = self._all_fields["image_size"]
        return model_macs(self.create(reduction), size) / 1e9

    def reduction_at_cost(
        self, reduction: ReductionLike, tolerance: float = reduction_plan.TOLERANCE
    ) -> Reduction:
        """A reduction for this model, with counts of tokens in place of its cost.

        In place of "auto", which a number such as 0.5 stands for, it has the
        recommended method (`reduction_plan.at_cost`).
        """
        dense = self.dense()
        reduction = Reduction.read(reduction)
        return reduction_plan.at_cost(reduction, dense, self.grid, self.name, tolerance)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the images, in patches."""
        fields = self._all_fields
        return patch_grid(fields["image_size"], fields["patch_size"], cut=True)


@short_traceback
def create_model(
    name: str | None, reduction: ReductionLike = None, **changes: Any
) -> ViT:
    """A ViT by name, without weights.

    name: "deit_ti", "deit_s", "deit_b", or timm's name of a public model with or
        without its tag, such as "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch`
        and the size are enough
    reduction: a share of the MACs such as 0.5, a method's name, or a dict such as
        {"name": "evit", "keep_rate": 0.7}, also with `prop_attn`, or as a text,
        "evit:keep_rate=0.7"; None: the dense model
    changes: fields of a ModelSpec, and parts of an Architecture, that differ from the
        name's, such as image_size=(224, 280), dtype="bfloat16" or gelu="tanh"
    Raises InputError for anything that does not fit.
    """
    check_names(changes, ["reduction", *ModelSpec.names()])
    config = ModelSpec.from_fields({"name": name, **changes})
    return config.create_at_cost(reduction)


def _named_parts(name):
    """The Architecture that a name stands for, DeiT's without one."""
    return fields_of(name).get("arch", DEIT)


def size_of(name: str | None, others: Sequence[str] = ()) -> ModelSpec:
    """The sizes that a name stands for, and `others` of the fields that it says."""
    fields = fields_of(name)
    return ModelSpec(**{k: fields[k] for k in (*SIZE_FIELDS, *others) if k in fields})


def named_fields(name: str | None) -> ModelSpec:
    """The sizes that a name stands for, of a public model mean and std too."""
    if name in MODELS:
        return size_of(name)
    return size_of(name, ("mean", "std"))


def normalization(mean, std):
    """(mean, std), ImageNet's for two Nones. Raises InputError for one None."""
    if mean is None and std is None:
        return MEAN, STD
    if mean is None or std is None:
        present = "mean" if std is None else "std"
        lacking = "std" if std is None else "mean"
        problem = f"is given, {lacking} is not"
        raise InputError(present, allowed="both or neither", problem=problem)
    return mean, std


def _check_size(size, stem, arch):
    """InputError for sizes and parts that do not go together."""
    width = size["embed_dim"]
    heads = size["num_heads"]
    if width % heads:
        raise InputError("num_heads", heads, f"divisors of embed_dim, which is {width}")
    if width * size["mlp_ratio"] < 1:
        allowed = f"at least 1 / {width}, for an MLP of a width of 1 or more"
        raise InputError("mlp_ratio", size["mlp_ratio"], allowed)
    if stem == "conv":
        conv_stem_widths(width, size["patch_size"])
    if stem == "conv" and not arch.patch_bias:
        problem = "is 'conv', whose projection has a bias, but arch.patch_bias is False"
        raise InputError("stem", stem, "'patch'", problem=problem)
    if arch.rotary is not None and width // heads % 4:
        allowed = "with rotary positions a width of multiples of 4"
        problem = f"is {heads}, which makes heads of a width of {width // heads}"
        raise InputError("num_heads", heads, allowed, problem=problem)
