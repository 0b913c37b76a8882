"""A model's MACs by part, and the cost table of the `describe` command.

A multiply-add (MAC) is one "FLOP" in most papers. Norms, softmax, ranking and gathers
are not counted, as in published figures.
"""

import math
from collections.abc import Sequence

import jax

from imagepiece_jax.common.image_size import ImageSize, image_sides
from imagepiece_jax.common.tables import text_table
from imagepiece_jax.models.stems import conv_stem_widths
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.block_plan import BlockPlan, plan_dense_blocks

TRAINING_MACS = 3  # times inference MACs: a backward pass costs two forward passes


def cost_summary(model: ViT, others: Sequence[ViT]) -> str:
    """Write a model's cost table and a line with its cost relative to other models.

    others: dense models; the first is the table's reference
    """
    table = cost_table(model, others[0])
    others = [dense for dense in dict.fromkeys(others) if dense != model]
    gmacs = model_macs(model) / 1e9
    line = f"{gmacs:#.4g} GMACs an image"
    for dense in others:
        dense_gmacs = model_macs(dense) / 1e9
        line += f"; dense {dense_gmacs:#.4g} with a {dense.config.stem} stem, "
        line += f"{dense_gmacs / gmacs:.2f} times as many"
    lines = [table, line]
    dead = dead_macs(model) / 1e9
    if dead:
        lines.append(f"{dead:#.4g} GMACs of the last block are not computed for logits")
    return "\n".join(lines)


def cost_table(model: ViT, dense: ViT) -> str:
    """Write a table of token counts, MMACs relative to `dense`, and parameters by part.

    The stem includes prefix and positions; the head includes final norm and pooling.
    """
    names = ["stem", *[f"block {i}" for i in range(model.depth)], "head", "total"]
    layers = [None, *model.plan, None, None]
    macs = _part_macs(model)
    dense_macs = _part_macs(dense)
    parameters = _part_parameters(model)
    rows: list[tuple[object, ...]] = [
        ("", "attention", "MLP", "MMACs", "dense", "parameters", "image tokens")
    ]
    for name, layer, part_macs, dense_part_macs, count in zip(
        names,
        layers,
        [*macs, sum(macs)],
        [*dense_macs, sum(dense_macs)],
        [*parameters, sum(parameters)],
        strict=True,
    ):
        cells = (f"{part_macs / 1e6:.1f}", f"{dense_part_macs / 1e6:.1f}", f"{count:,}")
        if layer is None:
            rows.append((name, "", "", *cells, ""))
        else:
            tokens = (layer.attn_tokens, layer.mlp_tokens)
            rows.append((name, *tokens, *cells, describe_reduction(layer)))
    return text_table(rows)


def describe_reduction(layer: BlockPlan) -> str:
    """Describe a block's reduction in a few words; "" for none."""
    if layer.counts is None:
        return ""
    n_in = layer.counts.n_in
    leaving = n_in - layer.counts.n_out
    sites = {"pre": " before the block", "attention": " inside attention"}
    place = sites.get(layer.site or "", "")
    return f"{type(layer.reducer).__name__}: {n_in} - {leaving}{place}"


def model_macs(model: ViT) -> float:
    """MACs per image, counted from the model's plan."""
    return sum(_part_macs(model))


def share_of_dense(model: ViT) -> float:
    """A model's MACs divided by the dense model's MACs."""
    plan = plan_dense_blocks(model.depth, model.config.tokens)
    return model_macs(model) / model_macs(model.clone(plan=plan))


def dead_macs(model: ViT) -> float:
    """MACs per image in the last block without effect on the logits.

    `Execution.head_only` saves them. `model_macs` counts them, as published figures do.
    """
    layer = model.plan[-1]
    num_queries = model.config.arch.head_tokens
    if num_queries is None:
        return 0
    dead = block_macs(model, layer) - block_macs(model, layer, num_queries)
    if layer.site == "mid":
        dead += reducer_macs(model, layer)
    return dead


def _part_macs(model: ViT) -> list[float]:
    """MACs [stem, *blocks, head]."""
    config = model.config
    width = config.embed_dim
    arch = config.arch
    stem = stem_macs(config.stem, width, config.image_size, config.patch_size)
    layers = model.plan
    blocks = [block_macs(model, layer) + reducer_macs(model, layer) for layer in layers]
    heads = 2 if arch.dist_token else 1
    head = heads * width * config.num_classes
    if arch.pool == "map":  # keys, values and the probe's reads; projection and MLP
        num_read = model.plan[-1].mlp_tokens
        if not arch.pool_include_prefix:
            num_read -= arch.prefix
        head += num_read * (2 * width**2 + 2 * width)
        ratio = arch.pool_mlp_ratio or config.mlp_ratio
        head += width**2 + 2 * width * round(width * ratio)
    return [stem, *blocks, head]


def block_macs(model: ViT, layer: BlockPlan, num_queries: int | None = None) -> float:
    """MACs per image in one block, without its reducer.

    num_queries: only the first tokens attend and are returned; None: all
    """
    config = model.config
    width = config.embed_dim
    num_keys = layer.attn_tokens
    num_values = layer.attn_tokens
    num_scoring = num_queries or num_keys
    num_returned = num_queries or layer.mlp_tokens
    if layer.site == "attention":
        # All tokens have attention weights. Only the remaining tokens have values.
        num_scoring = num_keys
        num_values = layer.mlp_tokens
    num_reading = num_queries or num_values
    # First the projections to queries, keys and values, and proj; then both products.
    attention = (num_scoring + num_keys + num_values + num_reading) * width**2
    attention += (num_scoring * num_keys + num_reading * num_values) * width
    num_layers = 3 if config.arch.mlp == "swiglu" else 2  # SwiGLU's MLP has a gate
    hidden_dim = round(config.mlp_ratio * width)
    return attention + num_returned * num_layers * width * hidden_dim


def reducer_macs(model: ViT, layer: BlockPlan) -> float:
    """MACs of a block's reducer itself (a learned selector)."""
    if layer.counts is None:
        return 0
    config = model.config
    n_in = layer.counts.n_in
    return layer.reducer.extra_macs(n_in, config.embed_dim, config.num_heads)


def _part_parameters(model: ViT) -> list[int]:
    """Parameter counts [stem, *blocks, head]."""
    params = variable_shapes(model)["params"]

    def count_parameters(*names: str) -> int:
        leaves = jax.tree.leaves([params.get(name, {}) for name in names])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    numbers = range(model.depth)
    blocks = [count_parameters(f"blocks_{i}", f"reducer_{i}") for i in numbers]
    head = count_parameters("norm", "fc_norm", "attn_pool", "head", "head_dist")
    stem = count_parameters(*params) - sum(blocks) - head
    return [stem, *blocks, head]


def stem_macs(
    stem: str, embed_dim: int, image_size: ImageSize = 224, patch_size: int = 16
) -> int:
    """A stem's MACs for one RGB image, cut to whole patches."""
    tokens = math.prod(side // patch_size for side in image_sides(image_size))
    if stem == "patch":
        return tokens * 3 * patch_size**2 * embed_dim
    total = tokens * embed_dim**2
    pixels = tokens * patch_size**2
    width_in = 3
    for width in conv_stem_widths(embed_dim, patch_size):
        pixels //= 4
        total += pixels * 9 * width_in * width
        width_in = width
    return total
