"""Traced programs of tiny models, forward and backward, and searches in them.

Only shapes are needed: nothing is compiled or computed.
"""

import re

import jax
from jax._src import core

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit

BATCH = 2
UNWEIGHTED = {"metric": "token", "size_weighting": False}
REDUCED = {
    "imagepiece": tiny_vit.IMAGEPIECE,
    "fused": tiny_vit.FUSED,
    "token": tiny_vit.with_fields(tiny_vit.IMAGEPIECE, **UNWEIGHTED),
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
        variables = {"params": params, **rest}
        out, changed = model.apply(variables, images, train, mutable=["batch_stats"])
        return out.logits.sum(), (out, changed)

    rest = dict(tiny_vit.shapes(model))
    params = rest.pop("params")
    traced = jax.grad(loss, has_aux=True) if backward else loss
    return jax.make_jaxpr(traced)(params, rest)


def equations(jaxpr):
    """All equations of a program, inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def replace_core(monkeypatch):
    """Replace fused attention by a sum without an array of N x N weights."""

    def stand_in(query, key, value, **options):
        return query + key + value

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def token_counts(model):
    """Possible token counts of arrays, with and without the prefix."""
    counts = set()
    for layer in model.plan:
        for total in (layer.attn_tokens, layer.mlp_tokens):
            counts |= {total, total - 1}
    widths = {tiny_vit.WIDTH // 2, tiny_vit.WIDTH, 4 * tiny_vit.WIDTH}
    sides = {tiny_vit.SIDE, tiny_vit.SIDE // 2, tiny_vit.SIDE // 4}
    common = sorted(counts & (widths | sides | {BATCH, tiny_vit.HEADS}))
    assert not common, f"{common}: name fields in `SMALL` that leave other counts"
    return counts


def unwanted_operations(model, train=True):
    """Sentences about operations that a fused program must not have.

    A training program has its gradient.
    """
    counts = token_counts(model)
    sentences = []
    for equation in equations(trace_model(model, train, backward=train)):
        name = equation.primitive.name
        if name == "scatter-add" and equation.params["unique_indices"]:
            name = "gradient of a gather"  # one kernel, and deterministic
        for array in (*equation.invars, *equation.outvars):
            shape = array.aval.shape
            if re.search("sort|top_k|scatter|cumsum", name):
                sentences.append(f"{name} of {shape}")
            of_tokens = [n for n in shape if n in counts]
            if len(shape) >= 4 and tiny_vit.HEADS in shape and len(of_tokens) > 1:
                sentences.append(f"attention weights {shape} in {name}")
    return sentences
