"""The config of a model: its fields, how they merge, and the model they make."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common.checks import as_tuple, check_choice, check_range
from imagepiece_jax.common.image_size import checked_size, patch_grid, sides
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.normalize import Normalization
from imagepiece_jax.errors import InputError
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


# Of fields that neither the caller nor the name decides.
DEFAULTS = {
    "image_size": 224,
    "mlp_ratio": 4.0,
    "stem": "patch",
    "num_classes": 1000,
    "dtype": "float32",
    "attention": "auto",
    "drop_path_rate": 0.0,
    "masked": False,
}
# Fields that trained weights decide, so that no other value fits them.
DECIDED = (*SIZE_FIELDS, "stem", "num_classes", "mean", "std")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What makes a model, but for its reduction and weights: `create` makes the ViT.

    A field that is None is decided by the name, else by DEFAULTS, or by nothing yet.
    """

    # in registry.MODELS, or timm's of a public model with or without its tag, such as
    # "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch` and the size are enough
    name: str | None = None
    image_size: int | tuple[int, int] | None = None  # pixels a side, or (height, width)
    embed_dim: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    stem: str | None = None
    num_classes: int | None = None  # 0: no head
    # parts by name that differ from those of the name, or without a name from DeiT's
    arch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mean: tuple[float, float, float] | None = None  # of the images' pixels in [0, 1]
    std: tuple[float, float, float] | None = None
    dtype: str | None = None
    attention: str | None = None
    drop_path_rate: float | None = None
    # None: the reduction's default, such as True for ToMe; False for MAE's weights
    prop_attn: bool | None = None
    # for training: methods that train with a mask keep all tokens there
    masked: bool | None = None
    axis_name: str | None = None  # as in ViT

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = as_tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        fields_of(self.name)  # raises for an unknown one
        changes = {}
        for name in ("embed_dim", "depth", "patch_size", "num_heads"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, whole=True)
        if self.image_size is not None:
            changes["image_size"] = checked_size(self.image_size)
        if self.mlp_ratio is not None:
            check_range("mlp_ratio", self.mlp_ratio, above=0)
        if self.num_classes is not None:
            check_range("num_classes", self.num_classes, 0, whole=True)
        if self.mean is not None:
            changes["mean"] = Normalization(self.mean, STD).mean
        if self.std is not None:
            changes["std"] = Normalization(MEAN, self.std).std
        if self.dtype is not None:
            changes["dtype"] = checked_dtype(self.dtype)
        if self.drop_path_rate is not None:
            check_range("drop_path_rate", self.drop_path_rate, 0, below=1)
        check_choice("stem", self.stem, (None, *STEMS))
        check_choice("attention", self.attention, (None, *BACKENDS))
        check_choice("prop_attn", self.prop_attn, (None, True, False))
        check_choice("masked", self.masked, (None, True, False))
        if isinstance(self.arch, Architecture):
            changes["arch"] = dict(vars(self.arch))
        else:
            changes["arch"] = Architecture.some(self.arch)
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "ModelSpec":
        """The config with these fields; parts of `arch` may stand beside it.

        Raises InputError for a value that is not allowed.
        """
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

        Raises InputError for a field that is not allowed.
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
        names = [field.name for field in dataclasses.fields(self)]
        return dict.fromkeys(names) | DEFAULTS | fields_of(self.name) | self.fields

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
            """Check that `value` is `trained`.

            of_name: whether `value` is that of the requested name
            """
            value = as_tuple(value)
            trained = as_tuple(trained)
            if value == trained:
                return
            whose = ""
            if requested.name and of_name:
                whose = f"of {requested.name!r} "
            raise InputError(
                f"{field} {whose}is {value!r}, but {source} has {trained!r}"
            )

        for field in dataclasses.fields(self):
            value = getattr(compared, field.name)
            trained = getattr(self, field.name)
            if field.name in DECIDED and None not in (value, trained):
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
        return self._with_plan(Reduction.read(reduction, self.prop_attn))

    def create_at_cost(self, value: ReductionLike) -> ViT:
        """`create`, and a line on stderr says what a cost stands for."""
        reduction = Reduction.read(value, self.prop_attn)
        model = self._with_plan(reduction)
        reduction_plan.print_reduction(reduction, model, self.grid)
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
        arch.check_parts()
        if arch.pool == "none" and fields["num_classes"]:
            raise InputError(
                f"pool is 'none' for {fields['num_classes']} classes; num_classes=0 "
                "leaves a head out"
            )
        if lacking := [field for field in SIZE_FIELDS if fields[field] is None]:
            raise InputError(
                f"name is {self.name!r} and {lacking[0]} is empty; a model needs a "
                f"name, or all of arch, {', '.join(SIZE_FIELDS)}"
            )
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

        A share of the MACs gets the recommended method (`reduction_plan.at_cost`).
        """
        dense = self.dense()
        reduction = Reduction.read(reduction)
        return reduction_plan.at_cost(reduction, dense, self.grid, self.name, tolerance)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the images, in patches."""
        fields = self._all_fields
        return patch_grid(fields["image_size"], fields["patch_size"], cut=True)


def create_model(
    name: str | None, reduction: ReductionLike = None, **changes: Any
) -> ViT:
    """A ViT by name, without weights.

    name: "deit_ti", "deit_s", "deit_b", or timm's name of a public model with or
        without its tag, such as "vit_small_patch14_reg4_dinov2.lvd142m"; None: `arch`
        and the size are enough
    reduction: a share of the MACs such as 0.5, or a text, "evit" or
        "evit:keep_rate=0.7", also with `prop_attn`; None: the dense model
    changes: fields of a ModelSpec, and parts of an Architecture, that differ from the
        name's, such as image_size=(224, 280), dtype="bfloat16" or gelu="tanh"
    Raises InputError for anything that does not fit.
    """
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
        raise InputError(f"mean is {mean} and std is {std}: both or neither")
    return mean, std


def _check_size(size, stem, arch):
    """Check that sizes and parts go together."""
    width = size["embed_dim"]
    heads = size["num_heads"]
    if width % heads:
        raise InputError(f"num_heads is {heads}; it must divide embed_dim, {width}")
    if width * size["mlp_ratio"] < 1:
        raise InputError(
            f"mlp_ratio is {size['mlp_ratio']}; it must be at least 1 / {width}, for "
            "an MLP of a width of 1 or more"
        )
    if stem == "conv":
        conv_stem_widths(width, size["patch_size"])
    if stem == "conv" and not arch.patch_bias:
        raise InputError(
            "stem is 'conv', whose projection has a bias, but patch_bias is False"
        )
    if arch.rotary is not None and width // heads % 4:
        raise InputError(
            f"num_heads is {heads}, which makes heads of a width of {width // heads}; "
            "rotary positions need a multiple of 4"
        )
