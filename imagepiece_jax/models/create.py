"""From a config and a reduction, maybe a cost, to a model with a plan."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from imagepiece_jax.common import parallel
from imagepiece_jax.common.checks import check_choice, replace_lists
from imagepiece_jax.common.image_size import ImageSize, patch_grid
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.xla_options import checked_dtype
from imagepiece_jax.data.preprocessing import Preprocessing, read_fields
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.kernels.attention import ATTENTION_BACKENDS, resolve_backend
from imagepiece_jax.models import registry
from imagepiece_jax.models.architecture import DEIT
from imagepiece_jax.models.config import FLOAT32, Execution, ViTConfig
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.fit_to_cost import fit_to_cost
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import plan_blocks
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike


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
    kernel = resolve_backend(attention, dtype, config.head_dim)
    return Execution(dtype=jnp.dtype(dtype), attention_impl=kernel, attention=attention)


def build_model(
    config: ViTConfig,
    reduction: ReductionLike = None,
    execution: Execution = FLOAT32,
    masked: bool = False,
) -> ViT:
    """Build a ViT with a reduction's plan.

    masked: plan for training, where methods with a mask keep all tokens
    """
    # Without a step, prefix tokens count like patches.
    dense_plan = plan_blocks(config.depth, config.num_tokens, (), num_prefix=0)
    dense_model = ViT(config, dense_plan, execution)
    return with_plan(dense_model, Reduction.read(reduction), masked)


def with_plan(model: ViT, reduction: Reduction, masked: bool = False) -> ViT:
    """Replace a model's plan by a reduction's plan.

    masked: plan for training, where methods with a mask keep all tokens
    """
    arch = model.config.arch
    with titled_errors(f"reduction {reduction.typed or reduction}"):
        fitted_reduction = fit_to_cost(reduction, model)
        model_facts = model.facts_for_methods()
        plan = fitted_reduction.method.plan(model_facts, arch.prefix, masked)
        contract.check_plan(plan, arch.class_token, arch.pool, model.config.grid)
    # The config's default comes first: MAE's weights, for example, work without
    # proportional attention.
    prop_attn = model.config.prop_attn
    if prop_attn is None:
        prop_attn = fitted_reduction.method.default_prop_attn
    if fitted_reduction.prop_attn in (None, prop_attn):
        # Explicit and implicit defaults give one Reduction.
        fitted_reduction = dataclasses.replace(fitted_reduction, prop_attn=None)
    else:
        prop_attn = fitted_reduction.prop_attn
    return model.clone(plan=plan, prop_attn=prop_attn, reduction=fitted_reduction)


def log_reduction(reduction: Reduction, model: ViT) -> None:
    """Log "attended in blocks 3, 6, 9; counts 99, 50, 26; 0.50 of the MACs"."""
    # `reduction` is the caller's request; `model.reduction` has the counts. A reduction
    # without a cost states its own counts, so nothing is logged.
    if reduction.method.macs is None or not parallel.is_main():
        return
    method_name = (model.reduction or reduction).name
    plan = enumerate(model.plan)
    counts_by_block = {i: block.counts.n_out for i, block in plan if block.counts}
    line = f"{method_name}: all tokens stay at this cost"
    if counts_by_block:
        line = f"{method_name} in blocks {', '.join(map(str, counts_by_block))}; "
        line += f"counts {', '.join(map(str, counts_by_block.values()))}; "
        line += f"{share_of_dense(model):.2f} of the MACs"
    log.info(line)


def read_run_config(run_config: Mapping[str, Any]) -> ViTConfig:
    """Read the model from a run's config (configs/base.py).

    The named model fills empty fields of config.model, also sizes. Without a name, mean
    and std are ImageNet's. The crop is always from config.data.
    """
    model_section = run_config["model"]
    # The named model's crop belongs to its published weights, not to this run.
    crop_fields = read_fields(run_config["data"])
    config_fields: dict[str, Any] = {
        "preprocessing": Preprocessing(run_config["image_size"], **crop_fields),
        "num_classes": run_config["num_classes"],
    }
    for field in (*registry.SIZE_FIELDS, "stem", "mean", "std"):
        if model_section.get(field) is not None:
            config_fields[field] = model_section[field]
    if ("mean" in config_fields) != ("std" in config_fields):
        raise InputError("model.mean and model.std are given both, or neither")
    parts = {}
    for part_name, value in model_section["arch"].items():
        if value is not None:  # None: the named model's, or DeiT's
            parts[part_name] = replace_lists(value)
    if model_section["name"]:
        base_config = registry.model_config(model_section["name"])
        arch = base_config.arch.with_fields(parts)
        config = dataclasses.replace(base_config, arch=arch, **config_fields)
        # A published size need not be whole patches (`ViTConfig.at_size`).
        published_sizes = base_config.image_size, base_config.patch_size
        if (config.image_size, config.patch_size) == published_sizes:
            return config
    else:
        # A DeiT with changed parts, normalized like ImageNet
        config_fields = registry.IMAGENET_NORMALIZATION | config_fields
        config = ViTConfig(**config_fields, arch=DEIT.with_fields(parts))
    patch_grid(config.image_size, config.patch_size)  # raises for incomplete patches
    return config
