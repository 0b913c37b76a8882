"""What is XLA given to compile? Properties of the traced program, forward and backward.

A stand-in takes the place of the fused attention, so that whatever else builds an
N x N array of weights is seen.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import ops
from imagepiece_jax.reduction.methods import METHODS
from tests.models import tiny

BATCH = 2
REDUCED = {
    "imagepiece": tiny.IMAGEPIECE,
    "fused": tiny.FUSED,
    "token": tiny.IMAGEPIECE | {"metric": "token", "size_weighting": False},
    "tome": {"name": "tome", "r_list": (2, 2, 4)},
    "random": {"name": "random", "keep_rate": 0.7, "blocks": (1, 2)},
}


def program(model, train=True):
    """Jaxpr of outputs, new statistics and the gradient of all logits."""
    images = tiny.images(BATCH)

    def loss(params, rest):
        out, changed = model.apply(
            {"params": params, **rest}, images, train, mutable=["batch_stats"]
        )
        return out.logits.sum(), (out, changed)

    rest = dict(tiny.shapes(model))
    params = rest.pop("params")
    return jax.make_jaxpr(jax.grad(loss, has_aux=True))(params, rest)


# Nothing to reduce


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize(
    "reduction",
    [
        tiny.IMAGEPIECE | {"keep_rate": 1.0, "merge_ratio": 0.0},
        tiny.EVIT | {"keep_rate": 1.0},
        tiny.FUSED | {"keep_rate": 1.0},
        {"name": "tome", "r": 0},
        {"name": "random", "keep_rate": 1.0, "blocks": (1, 2)},
    ],
    ids=["imagepiece", "dropped", "fused", "tome", "random"],
)
def test_a_method_that_reduces_nothing_is_the_dense_program(reduction, stem, dtype):
    """One program has one result, bit for bit; outputs and gradients alike."""
    reduced = text(program(tiny.model(reduction, stem=stem, dtype=dtype)))
    assert reduced == dense_text(stem, dtype)


def test_programs_that_differ_are_told_apart():
    assert text(program(tiny.model(tiny.EVIT))) != dense_text("patch", "float32")


def test_training_alone_changes_the_conv_stem_alone():
    """Batch norm; drop path, where there is any, is tested with the model's values."""
    for stem in ("patch", "conv"):
        model = tiny.model(tiny.EVIT, stem=stem)
        same = text(program(model, train=True)) == text(program(model, train=False))
        assert same == (stem == "patch")


def text(jaxpr):
    """The jaxpr in words, without the addresses of functions."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


@functools.cache
def dense_text(stem, dtype):
    return text(program(tiny.model(stem=stem, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_numbers_are_those_of_the_dense_model_too(dtype):
    nothing = tiny.IMAGEPIECE | {"keep_rate": 1.0, "merge_ratio": 0.0}
    dense = tiny.model(dtype=dtype)
    model = tiny.model(nothing, dtype=dtype)
    variables, images = tiny.variables(dense), tiny.images()
    want, got = (jax.jit(m.apply)(variables, images) for m in (dense, model))
    assert want.logits.dtype == jnp.float32
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# What it is made of


def equations(jaxpr):
    """All equations, those of inner jaxprs too."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        inner = jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
        )
        for value in inner:
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value)


@pytest.fixture
def without_core(monkeypatch):
    """Fused attention replaced by a sum that has no array of N x N weights."""

    def stand_in(query, key, value, **options):
        return query + key + value

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)


def token_counts(model):
    """Numbers of tokens that an array of tokens can have, with and without prefix."""
    totals = {layer.attn_tokens for layer in model.plan}
    totals |= {layer.mlp_tokens for layer in model.plan}
    counts = totals | {total - 1 for total in totals}
    other = {BATCH, tiny.HEADS, tiny.WIDTH, 4 * tiny.WIDTH, tiny.WIDTH // 2}
    assert not counts & (other | {tiny.SIDE, tiny.SIDE // 2, tiny.SIDE // 4})
    return counts


def traced(model, **options):
    """Name, and shapes of operands and results, of all that the program does."""
    for equation in equations(program(model, **options)):
        arrays = (*equation.invars, *equation.outvars)
        yield equation.primitive.name, [v.aval.shape for v in arrays]


def attention_weights(model, **options):
    """Arrays of weights of one token for another by head, as a list of sentences."""
    counts, found = token_counts(model), []
    for name, shapes in traced(model, **options):
        for shape in shapes:
            lengths = [n for n in shape if n in counts]
            if len(shape) >= 4 and tiny.HEADS in shape and len(lengths) > 1:
                found.append(f"attention weights {shape} in {name}")
    return found


def unwanted(model):
    """What a fused program must not contain, as a list of sentences."""
    counts, found = token_counts(model), attention_weights(model)
    for name, shapes in traced(model):
        if re.search("sort|top_k|scatter|cumsum", name):
            found.append(f"{name} of {shapes}")
        if name == "dot_general" and moves_tokens(*shapes[:2], counts):
            found.append(f"tokens {shapes[:2]} moved by a product")
    return found


def moves_tokens(left, right, counts):
    """Whether one operand holds all tokens of an image and the other a map of them."""

    def tokens(shape):
        whole = len(shape) == 3 and shape[0] == BATCH and tiny.WIDTH in shape
        return whole and bool(counts & set(shape))

    def slots(shape):
        return len(shape) == 3 and shape[0] == BATCH and set(shape[1:]) <= counts

    return tokens(left) and slots(right) or tokens(right) and slots(left)


@pytest.mark.parametrize("name", REDUCED)
def test_no_sort_scatter_attention_matrix_or_one_hot_product(without_core, name):
    """Each is a chain of kernels, or an array far larger than what it decides."""
    assert unwanted(tiny.model(REDUCED[name], stem="conv")) == []


# Fields with which every method has a step in three blocks, on few tokens.
SMALL = REDUCED | {
    "none": {"name": "none"},
    "dynamicvit": {"name": "dynamicvit", "blocks": (1, 2)},
    "spvit": {"name": "spvit", "blocks": (1, 2), "keep_rates": (0.7, 0.4)},
    "token_learner": {"name": "token_learner", "num_tokens": 8, "block": 1},
    "token_pooling": {"name": "token_pooling", "blocks": (1, 2), "score": "cls"},
    "grid_pooling": {"name": "grid_pooling", "grid_size": 4, "block": 1},
    "imagepiece_tome": tiny.IMAGEPIECE | {"name": "imagepiece_tome"},
    "imagepiece_dynamicvit": tiny.IMAGEPIECE
    | {"name": "imagepiece_dynamicvit", "keep_rate": 0.7}
    | {"merge_blocks": (0,), "prune_blocks": (1,)},
    "evit": tiny.EVIT | {"keep_rate": 0.7},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("train", [False, True])
def test_weights_are_built_in_the_core_alone(without_core, name, train):
    """Where training does not mask, and no option asks for columns of the weights."""
    model = tiny.model(SMALL[name], stem="conv")
    assert name == "none" or any(layer.counts for layer in model.plan)
    assert attention_weights(model, train=train) == []


@pytest.mark.parametrize("name", ["dynamicvit", "spvit", "imagepiece_dynamicvit"])
def test_training_with_masks_builds_them(without_core, name):
    """Each image has its own mask, which the fused core does not take."""
    assert attention_weights(tiny.model(SMALL[name], masked=True)) != []


def test_columns_of_the_weights_need_them(without_core):
    columns = SMALL["token_pooling"] | {"score": "columns"}
    assert attention_weights(tiny.model(columns), train=False) != []


def test_the_search_finds_a_one_hot_product(without_core, monkeypatch):
    one_hot = functools.partial(ops.apply, form="one_hot")
    monkeypatch.setattr(ops, "apply", one_hot)
    assert any("product" in line for line in unwanted(tiny.model(tiny.IMAGEPIECE)))


def test_the_search_finds_an_attention_matrix():
    assert any("weights" in line for line in unwanted(tiny.model(tiny.FUSED)))


def test_the_search_finds_sorts_and_scatters(without_core, monkeypatch):
    monkeypatch.setattr(ops, "gather_rows", lambda x, index: jnp.sort(x)[:, index[0]])
    found = unwanted(tiny.model(tiny.IMAGEPIECE))
    assert any(line.startswith("sort") for line in found)
