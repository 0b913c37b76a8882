"""From a config to a model with a reduction's plan."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common.checks import check_choice, replace_lists
from imagepiece_jax.common.image_size import ImageSize, patch_grid
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.preprocessing import Preprocessing, read_fields
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.kernels.attention import ATTENTION_BACKENDS, resolve_backend
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT
from imagepiece_jax.models.config import (
    FLOAT32,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Execution,
    ViTConfig,
)
from imagepiece_jax.models.fit_to_cost import fit_to_cost, log_reduction
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import plan_dense_blocks
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

# Sizes in a run's config, which override the named model's sizes.
RUN_SIZE_FIELDS = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio")


def create_model(
    config: ViTConfig | str,
    reduction: ReductionLike = None,
    *,
    image_size: ImageSize | None = None,
    dtype: str = "float32",
    attention: str = "auto",
) -> ViT:
    """Create a ViT without weights.

    config: a ViTConfig or a model name: "deit_ti", "deit_s", "deit_b", or timm's name
        of a public model, such as "vit_small_patch14_reg4_dinov2.lvd142m"
    reduction: a share of the MACs such as 0.5 (the log names its method and counts); a
        text, "evit" or "evit:keep_rate=0.7"; None: the dense model
    image_size: pixels a side, or (height, width); None: the config's
    dtype: layer dtype
    attention: kernel, "xla", "cudnn", or "auto" for this process's first device
    Raises InputError for values that do not fit.
    """
    if isinstance(config, str):
        config = registry.model_config(config)
    if image_size is not None:
        config = config.at_size(image_size)
    model = build_model(config, reduction, make_execution(config, dtype, attention))
    log_reduction(Reduction.read(reduction), model)
    return model


def make_execution(
    config: ViTConfig, dtype: str = "float32", attention: str = "auto"
) -> Execution:
    """Make an Execution with the attention kernel for this process's first device."""
    dtype = checked_dtype(dtype)
    check_choice("attention", attention, ATTENTION_BACKENDS)
    backend = resolve_backend(attention, dtype, config.head_dim)
    return Execution(
        dtype=jnp.dtype(dtype), attention_impl=backend, attention=attention
    )


def build_model(
    config: ViTConfig,
    reduction: ReductionLike = None,
    execution: Execution = FLOAT32,
    masked: bool = False,
) -> ViT:
    """Build a ViT with a reduction's plan.

    masked: plan for training, where methods with a mask keep all tokens
    Raises InputError for a reduction that does not fit.
    """
    dense_plan = plan_dense_blocks(config.depth, config.num_tokens)
    dense_model = ViT(config, dense_plan, execution)
    return with_plan(dense_model, Reduction.read(reduction), masked)


def with_plan(model: ViT, reduction: Reduction, masked: bool = False) -> ViT:
    """Replace a model's plan by a reduction's plan.

    masked: plan for training, where methods with a mask keep all tokens
    Raises InputError for a reduction that does not fit the model.
    """
    config = model.config
    with titled_errors(f"reduction {reduction.typed or reduction}"):
        fitted_reduction = fit_to_cost(reduction, model)
        facts = model.facts_for_methods()
        plan = fitted_reduction.method.plan(facts, config.arch.prefix, masked)
        contract.check_plan(plan, facts.class_token, facts.pool, config.grid)
    # The config's default comes first: MAE's weights, for example, work without
    # proportional attention.
    default_prop_attn = config.prop_attn
    if default_prop_attn is None:
        default_prop_attn = fitted_reduction.method.default_prop_attn
    prop_attn = fitted_reduction.prop_attn
    if prop_attn in (None, default_prop_attn):
        prop_attn = default_prop_attn
        # Explicit and implicit defaults give one Reduction.
        fitted_reduction = dataclasses.replace(fitted_reduction, prop_attn=None)
    return model.clone(plan=plan, prop_attn=prop_attn, reduction=fitted_reduction)


def read_run_config(run_config: Mapping[str, Any]) -> ViTConfig:
    """Read the model from a run's config (configs/base.py).

    The named model fills empty fields of config.model. Without a name, mean and std are
    ImageNet's. The crop is always from config.data.
    Raises InputError for fields that do not fit.
    """
    model_fields = run_config["model"]
    config_fields = _read_model_fields(run_config)
    arch_fields = {}
    for field, value in model_fields["arch"].items():
        if value is not None:
            arch_fields[field] = replace_lists(value)
    if model_fields["name"]:
        base_config = registry.model_config(model_fields["name"])
        arch = base_config.arch.with_fields(arch_fields)
        config = dataclasses.replace(base_config, arch=arch, **config_fields)
        published_sizes = base_config.image_size, base_config.patch_size
        if (config.image_size, config.patch_size) == published_sizes:
            return config
    else:
        config = _build_unnamed_config(config_fields, arch_fields)
    patch_grid(config.image_size, config.patch_size)  # raises for incomplete patches
    return config


def _read_model_fields(run_config):
    """Read the ViTConfig fields that a run's config sets."""
    model_fields = run_config["model"]
    # The named model's crop belongs to its published weights, not to this run.
    preprocessing = Preprocessing(
        run_config["image_size"], **read_fields(run_config["data"])
    )
    fields = {"preprocessing": preprocessing, "num_classes": run_config["num_classes"]}
    for field in (*RUN_SIZE_FIELDS, "stem", "mean", "std"):
        if model_fields.get(field) is not None:
            fields[field] = model_fields[field]
    if ("mean" in fields) != ("std" in fields):
        raise InputError("model.mean and model.std are given both, or neither")
    return fields


def _build_unnamed_config(fields, arch_fields):
    """Make the config of a DeiT with changed parts, normalized like ImageNet."""
    normalization: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return ViTConfig(**normalization | fields, arch=DEIT.with_fields(arch_fields))
