"""From a config to a model, with the plan of a reduction."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagepiece_jax.common.checks import as_tuple, check_choice
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.preprocessing import Preprocessing, read_fields
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import reduction_plan, registry
from imagepiece_jax.models.architecture import DEIT
from imagepiece_jax.models.attention import BACKENDS, resolve_backend
from imagepiece_jax.models.config import FLOAT32, MEAN, STD, Execution, ViTConfig
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.block_plan import dense_plan
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

# Sizes that a run's config may have in place of its name's.
SIZES = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio")


def create_model(
    config: ViTConfig | str,
    reduction: ReductionLike = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    dtype: str = "float32",
    attention: str = "auto",
) -> ViT:
    """A ViT without weights.

    config: a ViTConfig, or the name of a model: "deit_ti", "deit_s", "deit_b", or
        timm's of a public one, such as "vit_small_patch14_reg4_dinov2.lvd142m"
    reduction: a share of the MACs such as 0.5, or a text, "evit" or
        "evit:keep_rate=0.7"; None: the dense model. The log says what a share stands
        for
    image_size: pixels a side, or (height, width); None: the config's
    dtype: in which the layers compute
    attention: what computes it, "xla", "cudnn" or "auto", which chooses for this
        process's first device
    Raises InputError for anything that does not fit.
    """
    if isinstance(config, str):
        config = registry.config(config)
    if image_size is not None:
        config = config.at_size(image_size)
    model = build_model(config, reduction, execution_of(config, dtype, attention))
    reduction_plan.print_reduction(Reduction.read(reduction), model)
    return model


def execution_of(
    config: ViTConfig, dtype: str = "float32", attention: str = "auto"
) -> Execution:
    """The Execution of a model in a dtype, with the attention of this device."""
    dtype = checked_dtype(dtype)
    check_choice("attention", attention, BACKENDS)
    backend = resolve_backend(attention, dtype, config.head_dim)
    return Execution(dtype=dtype, attention_impl=backend, attention=attention)


def build_model(
    config: ViTConfig,
    reduction: ReductionLike = None,
    execution: Execution = FLOAT32,
    masked: bool = False,
) -> ViT:
    """The ViT of a config, with the plan of a reduction.

    masked: for training: methods that train with a mask keep all tokens there
    Raises InputError for a reduction that does not fit.
    """
    dense = ViT(config, dense_plan(config.depth, config.tokens), execution)
    return reduction_plan.with_plan(dense, Reduction.read(reduction), masked)


def config_of_run(run: Mapping[str, Any]) -> ViTConfig:
    """The model in the config of a run (configs/base.py).

    What config.model leaves empty is as its name has it. Images are ImageNet's without
    a name, and are cropped as config.data says.

    Raises InputError for fields that do not fit.
    """
    model = dict(run["model"])
    # The crop is not that of the name: other weights have it.
    preprocessing = Preprocessing(run["image_size"], **read_fields(run["data"]))
    fields = {"preprocessing": preprocessing, "num_classes": run["num_classes"]}
    for field in (*SIZES, "stem", "mean", "std"):
        if model.get(field) is not None:
            fields[field] = model[field]
    if ("mean" in fields) != ("std" in fields):
        raise InputError(
            f"model.mean is {model['mean']} and model.std is {model['std']}: both or "
            "neither"
        )
    parts = {}
    for part, value in model["arch"].items():
        if value is not None:
            parts[part] = as_tuple(value)
    if model["name"]:
        base = registry.config(model["name"])
        config = dataclasses.replace(base, arch=base.arch.with_parts(parts), **fields)
        published = base.image_size, base.patch_size
        if (config.image_size, config.patch_size) != published:
            patch_grid(config.image_size, config.patch_size)
        return config
    if lacking := [field for field in SIZES[:-1] if field not in fields]:
        raise InputError(
            f"model.name is empty, and so is model.{lacking[0]}; a model needs a name, "
            f"or {', '.join(SIZES[:-1])}"
        )
    images = {"mean": MEAN, "std": STD}
    config = ViTConfig(**images | fields, arch=DEIT.with_parts(parts))
    patch_grid(config.image_size, config.patch_size)
    return config
