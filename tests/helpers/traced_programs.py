"""Traced programs of tiny models, forward and backward, and searches in them.

Only shapes are needed: nothing is compiled or computed.
"""

import re

import jax

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit

BATCH = 2
REDUCED = {
    "imagepiece": tiny_vit.IMAGEPIECE,
    "fused": tiny_vit.FUSED,
    "token": tiny_vit.with_fields(
        tiny_vit.IMAGEPIECE, metric="token", size_weighting=False
    ),
    "tome": "tome:counts=(23,21,17)",
    "random": "random:keep_rate=0.7:blocks=(1,2)",
}

# Every method with fields for a model of three blocks.
SMALL = {name: tiny_vit.small_reduction(name) for name in METHODS} | REDUCED
# This score needs no attention map.
SMALL["token_pooling"] = tiny_vit.with_fields(SMALL["token_pooling"], score="class")


def trace_model(model, train=True, backward=True):
    """Jaxpr of outputs, new statistics and, `backward`, the gradient of all logits."""
    images = tiny_vit.images(BATCH)

    def loss(params, rest):
        out, changed = model.apply(
            {"params": params, **rest}, images, train, mutable=["batch_stats"]
        )
        return out.logits.sum(), (out, changed)

    rest = dict(tiny_vit.shapes(model))
    params = rest.pop("params")
    return jax.make_jaxpr(jax.grad(loss, has_aux=True) if backward else loss)(
        params, rest
    )


def equations(jaxpr):
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        inner = jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
        )
        for value in inner:
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value)


def replace_core(monkeypatch):
    """Replace fused attention by a sum without an array of N x N weights."""

    def stand_in(query, key, value, **options):
        return query + key + value

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def token_counts(model):
    """Possible token counts of arrays, with and without the prefix."""
    totals = {layer.attn_tokens for layer in model.plan}
    totals |= {layer.mlp_tokens for layer in model.plan}
    counts = totals | {total - 1 for total in totals}
    other_sizes = {
        BATCH,
        tiny_vit.HEADS,
        tiny_vit.WIDTH,
        4 * tiny_vit.WIDTH,
        tiny_vit.WIDTH // 2,
    }
    other_sizes |= {tiny_vit.SIDE, tiny_vit.SIDE // 2, tiny_vit.SIDE // 4}
    common = sorted(counts & other_sizes)
    assert not common, f"{common}: name fields in `small` that leave other counts"
    return counts


def traced_shapes(model, train=True, backward=None):
    """Name and array shapes of every operation of a program.

    A training program has its gradient, unless `backward` is false.
    """
    backward = train if backward is None else backward
    for equation in equations(trace_model(model, train, backward)):
        arrays = (*equation.invars, *equation.outvars)
        name = equation.primitive.name
        if name == "scatter-add" and equation.params["unique_indices"]:
            name = "gradient of a gather"  # one kernel, and deterministic
        yield name, [v.aval.shape for v in arrays]


def unwanted_operations(model, **options):
    """Sentences about operations that a fused program must not have."""
    counts = token_counts(model)
    sentences = []
    for name, shapes in traced_shapes(model, **options):
        if re.search("sort|top_k|scatter|cumsum", name):
            sentences.append(f"{name} of {shapes}")
        sentences += [
            f"attention weights {shape} in {name}"
            for shape in shapes
            if len(shape) >= 4
            and tiny_vit.HEADS in shape
            and len([n for n in shape if n in counts]) > 1
        ]
    return sentences
