"""Cost of a model, part by part, as a table."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.rng import Purpose, batch_key
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.stems import stem_macs
from imagepiece_jax.reduction.layer_plan import LayerPlan, plan_macs

HEAD = ("norm", "fc_norm", "attn_pool", "head", "head_dist")


def describe(model, others, image_size):
    """The cost table of `model` beside the first of `others`, and a line on all.

    `others` are without reduction; the model itself is not compared with.
    """
    table = cost_table(model, others[0], image_size)
    others = [other for other in dict.fromkeys(others) if other != model]
    fused = (
        f"\nreductions in fused kernels, for {model.kernels}" if model.kernels else ""
    )
    return f"{table}\n{cost_line(model, others, image_size)}{fused}"


def cost_table(model, dense, image_size):
    """Tokens, MMACs beside those of `dense`, and parameters of every part, as text.

    Prefix tokens and positions count to the stem, the last norm and the pooling to the
    head, what a reduction learns to its block.
    """

    def row(name, layer, ours, theirs, parameters):
        cost = (f"{ours / 1e6:.1f}", f"{theirs / 1e6:.1f}", f"{parameters:,}")
        if layer is None:
            return (name, "", "", *cost, "")
        tokens = (layer.attn_tokens, layer.mlp_tokens)
        return (name, *tokens, *cost, action(layer))

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
    return format_table([heading, *(row(*cells) for cells in rows)])


def cost_line(model, others, image_size):
    """GMACs of `model`, and how many times as many the `others` without reduction."""
    ours, *theirs = (model_macs(m, image_size) / 1e9 for m in (model, *others))
    parts = [
        f"{macs:#.4g} with a {other.stem} stem, {macs / ours:.2f} times as many"
        for other, macs in zip(others, theirs, strict=True)
    ]
    return f"{ours:#.4g} GMACs an image" + "".join(f"; dense {part}" for part in parts)


def model_macs(model, image_size):
    """MACs of one image through `model`, counted from its plan: an int."""
    return sum(_part_macs(model, image_size))


def action(layer):
    """What a block's reduction does, in a few words; "" for none."""
    if layer.counts is None:
        return ""
    removed = layer.counts.n_in - layer.counts.n_out
    name = type(layer.step.reducer).__name__
    places = {"pre": " before the block", "attention": " inside attention"}
    place = places.get(layer.step.site, "")
    return f"{name}: {layer.counts.n_in} - {removed}{place}"


def format_table(rows):
    """Aligned columns, the first row a heading; all but the last right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [c.rjust(w) for c, w in zip(row[:-1], widths, strict=False)]
        return "  ".join([*cells, row[-1]]).rstrip()

    return "\n".join(line(row) for row in rows)


def shapes(model, image_size):
    """Variables of `model` as shapes and types, without computing anything."""
    model = model.clone(axis_name=None)
    steps = [layer.step for layer in model.plan if layer.step]
    if any(isinstance(step.reducer, nn.Module) for step in steps):
        return jax.tree.map(lambda x: x, _shapes(model, image_size))
    # Reductions have no variables, and all blocks have the same: one is traced.
    one = _shapes(model.clone(plan=(LayerPlan(0, 0),)), image_size)
    return {
        collection: {
            new: jax.tree.map(lambda x: x, values[name])
            for name in values
            for new in _names(name, len(model.plan))
        }
        for collection, values in one.items()
    }


def _names(name, depth):
    """Those of all blocks for that of the first, others as they are."""
    return [f"blocks_{i}" for i in range(depth)] if name == "blocks_0" else [name]


def check_variables(model, variables, image_size):
    """InputError for the first variable that `model` lacks, or has in another shape."""
    present, needed = _by_name(variables), _by_name(shapes(model, image_size))
    for name in sorted(present.keys() | needed.keys()):
        shape = present.get(name, "missing")
        expected = needed.get(name, "no such variable")
        if shape != expected:
            raise InputError(
                f"variables: {name} is {shape}, in the model it is {expected}; allowed "
                "are variables of this model"
            )


def _by_name(variables):
    leaves = traverse_util.flatten_dict(variables, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


@functools.lru_cache(maxsize=4)
def _shapes(model, image_size):
    images = jax.ShapeDtypeStruct((1, *sides(image_size), 3), jnp.float32)
    return _init(model).eval_shape(jax.random.key(0), images)


def fresh(model, image_size, seed, parts=None):
    """Variables of `model` drawn from `seed`.

    parts: names of those to return, alone, and no others are computed.
    """
    images = jnp.zeros((1, *sides(image_size), 3), jnp.float32)
    key = batch_key(seed, 0, Purpose.INIT)
    # The device axis exists only inside a step, and statistics do not depend on it.
    init = _init(model.clone(axis_name=None))
    if parts is None:
        return init(key, images)

    @jax.jit
    def draw(key, images):
        return {
            collection: {name: values[name] for name in parts if name in values}
            for collection, values in init(key, images).items()
        }

    return draw(key, images)


@functools.lru_cache(maxsize=4)
def _init(model):
    """`model.init`, traced once for the shapes and the values of its variables."""
    return jax.jit(model.init)


def _part_macs(model, image_size):
    """MACs of the stem, of each block and of the head."""
    width, arch = model.embed_dim, model.arch
    stem = stem_macs(model.stem, width, image_size, model.patch_size)
    layers = 3 if arch.mlp == "swiglu" else 2
    blocks = plan_macs(model.plan, width, model.num_heads, model.mlp_ratio, layers)
    head = width * model.num_classes * (1 + arch.dist_token)
    if arch.pool == "map":  # keys, values, the probe's reading; projection and MLP
        read = model.plan[-1].mlp_tokens
        read -= 0 if arch.pool_include_prefix else arch.prefix
        head += read * (2 * width**2 + 2 * width)
        head += width**2 + 2 * width * round(width * model.mlp_ratio)
    return [stem, *blocks, head]


def _part_parameters(model, image_size):
    """Parameters of the stem, of each block and of the head, without making any."""
    params = shapes(model, image_size)["params"]

    def size(*names):
        leaves = jax.tree.leaves([params.get(name, {}) for name in names])
        return sum(math.prod(leaf.shape) for leaf in leaves)

    blocks = [size(f"blocks_{i}", f"reducer_{i}") for i in range(len(model.plan))]
    head = size(*HEAD)
    return [size(*params) - sum(blocks) - head, *blocks, head]
