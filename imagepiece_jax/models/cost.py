"""A model's MACs by part, and the cost table of the `describe` command.

A multiply-add (MAC) is one "FLOP" in most papers. Norms, softmax, ranking and gathers
are not counted, as in published figures.
"""

import math
from collections.abc import Sequence

import jax

from imagepiece_jax.common.tables import text_table
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.layers import conv_stem_widths
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.block_plan import BlockPlan, plan_blocks

TRAINING_MAC_FACTOR = 3  # on inference MACs: a backward pass costs two forward passes


def cost_summary(model: ViT, dense_models: Sequence[ViT]) -> str:
    """Write a model's cost table and a line with its cost relative to other models.

    dense_models: the first is the table's reference
    """
    table = cost_table(model, dense_models[0])
    gmacs = model_macs(model) / 1e9
    line = f"{gmacs:#.4g} GMACs an image"
    for dense_model in dict.fromkeys(dense_models):  # one line for equal models
        if dense_model == model:
            continue
        dense_gmacs = model_macs(dense_model) / 1e9
        line += f"; dense {dense_gmacs:#.4g} with a {dense_model.config.stem} stem, "
        line += f"{dense_gmacs / gmacs:.2f} times as many"
    return f"{table}\n{line}"


def cost_table(model: ViT, dense_model: ViT) -> str:
    """Write a table of token counts, MMACs, dense MMACs and parameters by part.

    The stem includes prefix and positions; the head includes final norm and pooling.
    """
    block_names = [f"block {index}" for index in range(model.depth)]
    part_names = ["stem", *block_names, "head", "total"]
    block_plans = [None, *model.plan, None, None]  # only blocks have one
    columns = [_part_macs(model), _part_macs(dense_model), _part_parameters(model)]
    for column in columns:
        column.append(sum(column))  # the total
    rows: list[tuple[object, ...]] = [
        ("", "attention", "MLP", "MMACs", "dense", "parameters", "image tokens")
    ]
    parts = zip(part_names, block_plans, *columns, strict=True)
    for part_name, block_plan, macs, dense_macs, parameter_count in parts:
        mmacs = f"{macs / 1e6:.1f}"
        dense_mmacs = f"{dense_macs / 1e6:.1f}"
        cells = [mmacs, dense_mmacs, f"{parameter_count:,}"]
        if block_plan is None:
            rows.append((part_name, "", "", *cells, ""))
        else:
            token_counts = (block_plan.attn_tokens, block_plan.mlp_tokens)
            reduction_text = describe_reduction(block_plan)
            rows.append((part_name, *token_counts, *cells, reduction_text))
    return text_table(rows)


def describe_reduction(block_plan: BlockPlan) -> str:
    """Describe a block's reduction in a few words; "" for none."""
    if block_plan.counts is None:
        return ""
    n_in = block_plan.counts.n_in
    num_leaving = n_in - block_plan.counts.n_out
    site_texts = {"pre": " before the block", "attention": " inside attention"}
    site_text = site_texts.get(block_plan.site or "", "")
    return f"{type(block_plan.reducer).__name__}: {n_in} - {num_leaving}{site_text}"


def model_macs(model: ViT) -> float:
    """MACs per image, counted from the model's plan."""
    return sum(_part_macs(model))


def share_of_dense(model: ViT) -> float:
    """A model's MACs divided by the dense model's MACs."""
    # Without a step, prefix tokens count like patches.
    plan = plan_blocks(model.depth, model.config.num_tokens, (), num_prefix=0)
    return model_macs(model) / model_macs(model.clone(plan=plan))


def _part_macs(model):
    """MACs [stem, *blocks, head]."""
    config = model.config
    width = config.embed_dim
    arch = config.arch
    macs: list[float] = [stem_macs(config)]
    for block_plan in model.plan:
        macs.append(_block_macs(config, block_plan))
    num_classifiers = 2 if arch.dist_token else 1
    head_macs = num_classifiers * width * config.num_classes
    if arch.pool == "map":  # keys, values and the probe's reads; projection and MLP
        num_pooled = model.plan[-1].mlp_tokens
        if not arch.pool_include_prefix:
            num_pooled -= arch.prefix
        head_macs += num_pooled * (2 * width**2 + 2 * width)
        mlp_ratio = arch.pool_mlp_ratio or config.mlp_ratio
        head_macs += width**2 + 2 * width * round(width * mlp_ratio)
    return [*macs, head_macs]


def _block_macs(config, block_plan):
    """MACs per image in one block, with its reducer (a learned selector)."""
    width = config.embed_dim
    num_tokens = block_plan.attn_tokens
    num_values = num_tokens
    if block_plan.site == "attention":
        # All tokens have attention weights. Only the remaining tokens have values.
        num_values = block_plan.mlp_tokens
    query_and_key_macs = 2 * num_tokens * width**2
    value_and_proj_macs = 2 * num_values * width**2
    product_macs = (num_tokens**2 + num_values**2) * width  # logits, weighted values
    num_mlp_layers = 3 if config.arch.mlp == "swiglu" else 2  # SwiGLU has a gate
    hidden_dim = round(config.mlp_ratio * width)
    mlp_macs = block_plan.mlp_tokens * num_mlp_layers * width * hidden_dim
    macs = query_and_key_macs + value_and_proj_macs + product_macs + mlp_macs
    if block_plan.counts is None:  # no token leaves here, so the reducer does not run
        return macs
    n_in = block_plan.counts.n_in
    return macs + block_plan.reducer.extra_macs(n_in, width, config.num_heads)


def _part_parameters(model):
    """Parameter counts [stem, *blocks, head]."""
    params = variable_shapes(model)["params"]

    def count_parameters(*names):
        leaves = jax.tree.leaves([params.get(name, {}) for name in names])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    block_counts = []
    for index in range(model.depth):
        block_counts.append(count_parameters(f"blocks_{index}", f"reducer_{index}"))
    head_count = count_parameters("norm", "fc_norm", "attn_pool", "head", "head_dist")
    stem_count = count_parameters(*params) - sum(block_counts) - head_count
    return [stem_count, *block_counts, head_count]


def stem_macs(config: ViTConfig) -> int:
    """A stem's MACs for one RGB image, cut to whole patches."""
    num_patches = math.prod(config.grid)
    num_pixels = num_patches * config.patch_size**2
    input_width = 3  # RGB
    if config.stem == "patch":
        return num_pixels * input_width * config.embed_dim
    macs = num_patches * config.embed_dim**2  # the last, 1x1 convolution
    for width in conv_stem_widths(config.embed_dim, config.patch_size):
        num_pixels //= 4  # stride 2
        macs += num_pixels * 3 * 3 * input_width * width
        input_width = width
    return macs
