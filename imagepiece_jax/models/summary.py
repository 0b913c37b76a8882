"""What does a model cost, block by block? A table for people to read."""

import jax
import numpy as np

from imagepiece_jax.models.zoo import model_macs
from imagepiece_jax.reduction import flops


def parameters(model, image_size):
    """Parameters of `model`: (all of them, those of one block), without making any."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), "float32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

    def size(tree):
        return int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)))

    return size(shapes), size(shapes["blocks_0"])


def action(layer):
    """What a block's reduction does, in a few words; "" for none."""
    if layer.counts is None:
        return ""
    removed = layer.counts.n_in - layer.counts.n_out
    name = type(layer.step.reducer).__name__
    place = " before the block" if layer.step.site == "pre" else ""
    return f"{name}: {layer.counts.n_in} - {removed}{place}"


def block_table(model):
    """Rows (block, tokens into attention, into the MLP, MMACs, reduction) as text."""
    rows = [("block", "attention", "MLP", "MMACs", "reduction of image tokens")]
    for i, layer in enumerate(model.plan):
        cost = flops.block_macs(layer, model.embed_dim, model.mlp_ratio) / 1e6
        rows.append(
            (i, layer.attn_tokens, layer.mlp_tokens, f"{cost:.1f}", action(layer))
        )
    return format_table(rows)


def format_table(rows):
    """Aligned columns, the first row a heading; all but the last right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [c.rjust(w) for c, w in zip(row[:-1], widths, strict=False)]
        return "  ".join([*cells, row[-1]]).rstrip()

    return "\n".join(line(row) for row in rows)


def cost_lines(model, dense, image_size):
    """GMACs and parameters of `model` against the `dense` one, a sentence a line."""
    ours, theirs = model_macs(model, image_size), model_macs(dense, image_size)
    total, per_block = parameters(model, image_size)
    stem = flops.stem_macs(model.stem, model.embed_dim, image_size, model.patch_size)
    return [
        f"{ours / 1e9:.3f} GMACs an image, {theirs / ours:.2f} times fewer than the "
        f"dense model with a {dense.stem} stem ({theirs / 1e9:.3f})",
        f"of these {stem / 1e9:.3f} in the {model.stem} stem",
        f"{total:,} parameters, {per_block:,} in each block",
        f"{model.plan[0].attn_tokens} tokens at first, {model.plan[-1].mlp_tokens} at "
        "last, class token included",
    ]
