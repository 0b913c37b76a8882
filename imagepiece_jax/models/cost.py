"""Cost of a model: its MACs, part by part, and the table that `describe` prints.

Most papers print a multiply-add (MAC) as one "FLOP". Norms, softmax, ranking and
gathers are not counted, as in the published figures.
"""

import math

import jax

from imagepiece_jax.common.tables import text_table
from imagepiece_jax.models.stems import stem_macs
from imagepiece_jax.models.variables import variable_shapes

TRAINING_MACS = 3  # of an image in training: forward, and twice as much backward


def describe(model, others, image_size):
    """The cost table of `model` against the first of `others`, and a line on all.

    `others` have no reduction; the model itself is left out of them.
    """
    table = cost_table(model, others[0], image_size)
    others = [other for other in dict.fromkeys(others) if other != model]
    ours = model_macs(model, image_size) / 1e9
    line = f"{ours:#.4g} GMACs an image"
    for other in others:
        macs = model_macs(other, image_size) / 1e9
        line += f"; dense {macs:#.4g} with a {other.stem} stem, "
        line += f"{macs / ours:.2f} times as many"
    lines = [table, line]
    if macs := dead_macs(model) / 1e9:
        lines.append(f"{macs:#.4g} GMACs of the last block are not computed for logits")
    if model.kernels:
        lines.append(f"reductions in fused kernels, for {model.kernels}")
    return "\n".join(lines)


def cost_table(model, dense, image_size):
    """Tokens, MMACs next to those of `dense`, and parameters of every part, as text.

    Prefix and positions count to the stem, last norm and pooling to the head.
    """

    def row(name, layer, ours, theirs, parameters):
        cost = (f"{ours / 1e6:.1f}", f"{theirs / 1e6:.1f}", f"{parameters:,}")
        if layer is None:
            return (name, "", "", *cost, "")
        return (name, layer.attn_tokens, layer.mlp_tokens, *cost, action(layer))

    blocks = [f"block {i}" for i in range(len(model.plan))]
    columns = (
        _part_macs(model, image_size),
        _part_macs(dense, image_size),
        _part_parameters(model, image_size),
    )
    rows = zip(
        ["stem", *blocks, "head", "total"],
        [None, *model.plan, None, None],
        *([*parts, sum(parts)] for parts in columns),
        strict=True,
    )
    heading = ("", "attention", "MLP", "MMACs", "dense", "parameters", "image tokens")
    return text_table([heading, *(row(*cells) for cells in rows)])


def action(layer):
    """A block's reduction in a few words; "" for none."""
    if layer.counts is None:
        return ""
    n_in = layer.counts.n_in
    name = type(layer.step.reducer).__name__
    places = {"pre": " before the block", "attention": " inside attention"}
    place = places.get(layer.step.site, "")
    return f"{name}: {n_in} - {n_in - layer.counts.n_out}{place}"


def model_macs(model, image_size):
    """MACs of one image through `model`, counted from its plan: an int."""
    return sum(_part_macs(model, image_size))


def dead_macs(model):
    """MACs of one image that `ViT.head_only` saves: an int.

    `model_macs` counts them, as published figures do.
    """
    layer = model.plan[-1]
    queries = model.arch.head_tokens
    if queries is None:
        return 0
    dead = block_macs(model, layer) - block_macs(model, layer, queries)
    if layer.counts and layer.step.site == "mid":
        dead += reducer_macs(model, layer)
    return dead


def _part_macs(model, image_size):
    """MACs of the stem, of each block and of the head."""
    width = model.embed_dim
    arch = model.arch
    stem = stem_macs(model.stem, width, image_size, model.patch_size)
    blocks = [block_macs(model, b) + reducer_macs(model, b) for b in model.plan]
    head = width * model.num_classes * (1 + arch.dist_token)
    if arch.pool == "map":  # keys, values, the probe's reading; projection and MLP
        read = model.plan[-1].mlp_tokens
        read -= 0 if arch.pool_include_prefix else arch.prefix
        head += read * (2 * width**2 + 2 * width)
        head += width**2 + 2 * width * round(width * model.mlp_ratio)
    return [stem, *blocks, head]


def block_macs(model, layer, queries=None):
    """MACs of one image in one block: projections and attention, then the MLP.

    layer: the block's LayerPlan
    queries: tokens that attend and leave the block; None: all
    """
    width = model.embed_dim
    keys = values = layer.attn_tokens
    scoring = queries or keys
    outgoing = queries or layer.mlp_tokens
    if layer.counts and layer.step.site == "attention":  # it is scored by all tokens
        scoring = keys
        values = layer.mlp_tokens
    reading = queries or values
    # Queries, keys and their products; then values, their products, and proj.
    attention = (scoring + keys + values + reading) * width**2
    attention += (scoring * keys + reading * values) * width
    layers = 3 if model.arch.mlp == "swiglu" else 2  # one of them is a gate
    return attention + outgoing * layers * width * round(model.mlp_ratio * width)


def reducer_macs(model, layer):
    """MACs of the reducer of a block itself (a learned selector)."""
    if layer.counts is None:
        return 0
    sizes = layer.counts.n_in, model.embed_dim, model.num_heads
    return layer.step.reducer.extra_macs(*sizes)


def _part_parameters(model, image_size):
    """Numbers of parameters of the stem, of each block and of the head."""
    params = variable_shapes(model, image_size)["params"]

    def size(*names):
        leaves = jax.tree.leaves([params.get(name, {}) for name in names])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    blocks = [size(f"blocks_{i}", f"reducer_{i}") for i in range(len(model.plan))]
    head = size("norm", "fc_norm", "attn_pool", "head", "head_dist")
    return [size(*params) - sum(blocks) - head, *blocks, head]
