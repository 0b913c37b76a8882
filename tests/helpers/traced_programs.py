"""Traced programs of tiny models, forward and backward, and what is found in them.

Only shapes are needed: nothing is compiled or computed.
"""

import re

import jax
import numpy as np

from imagepiece_jax.reduction.methods import METHODS
from tests.helpers import tiny_vit

BATCH = 2
REDUCED = {
    "imagepiece": tiny_vit.IMAGEPIECE,
    "fused": tiny_vit.FUSED,
    "token": tiny_vit.changed(
        tiny_vit.IMAGEPIECE, metric="token", size_weighting=False
    ),
    "tome": "tome:counts=(23,21,17)",
    "random": "random:keep_rate=0.7:blocks=(1,2)",
}

# Every method with the fields for a model of three blocks.
SMALL = {name: tiny_vit.small(name) for name in METHODS} | REDUCED
# Of an option whose score needs no map of the attention, where there is one.
SMALL["token_pooling"] = tiny_vit.changed(SMALL["token_pooling"], score="class")


def program(model, train=True, backward=True):
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


def found_in_64_bits(jaxpr):
    """Operations on float64, and draws of 64 bits, as a list of sentences."""
    found = []
    for equation in equations(jaxpr):
        draws = equation.params.get("bit_width") == 64
        for array in equation.outvars:
            if draws or getattr(array.aval, "dtype", None) == np.float64:
                found.append(f"{equation.primitive} of {array.aval}")
    return found


def replace_core(monkeypatch):
    """Fused attention becomes a sum that has no array of N x N weights."""

    def stand_in(query, key, value, **options):
        return query + key + value

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def token_counts(model):
    """Numbers of tokens that an array of tokens can have, with and without prefix."""
    totals = {layer.attn_tokens for layer in model.plan}
    totals |= {layer.mlp_tokens for layer in model.plan}
    counts = totals | {total - 1 for total in totals}
    other = {
        BATCH,
        tiny_vit.HEADS,
        tiny_vit.WIDTH,
        4 * tiny_vit.WIDTH,
        tiny_vit.WIDTH // 2,
    }
    other |= {tiny_vit.SIDE, tiny_vit.SIDE // 2, tiny_vit.SIDE // 4}
    both = sorted(counts & other)
    assert not both, f"{both}: name fields in `small` that leave other counts"
    return counts


def traced(model, train=True, backward=None):
    """Name, and shapes of operands and results, of all that the program does.

    That of training goes backward too, unless `backward` is false.
    """
    backward = train if backward is None else backward
    for equation in equations(program(model, train, backward)):
        arrays = (*equation.invars, *equation.outvars)
        yield equation.primitive.name, [v.aval.shape for v in arrays]


def unwanted(model, **options):
    """Sentences about contents that a fused program must not have."""
    counts = token_counts(model)
    found = []
    for name, shapes in traced(model, **options):
        if re.search("sort|top_k|scatter|cumsum", name):
            found.append(f"{name} of {shapes}")
        if name == "dot_general" and moves_tokens(*shapes[:2], counts):
            found.append(f"product that moves tokens {shapes[:2]}")
        found += [
            f"attention weights {shape} in {name}"
            for shape in shapes
            if len(shape) >= 4
            and tiny_vit.HEADS in shape
            and len([n for n in shape if n in counts]) > 1
        ]
    return found


def moves_tokens(left, right, counts):
    """Whether one operand holds all tokens of an image and the other a map of them."""

    def tokens(shape):
        whole = len(shape) == 3 and shape[0] == BATCH and tiny_vit.WIDTH in shape
        return whole and bool(counts & set(shape))

    def slots(shape):
        return len(shape) == 3 and shape[0] == BATCH and set(shape[1:]) <= counts

    return tokens(left) and slots(right) or tokens(right) and slots(left)
