"""Properties of the traced program, forward and backward.

A stand-in takes the place of the fused attention, so that whatever else builds an
N x N array of weights is seen.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction import tokens
from imagepiece_jax.reduction.methods import METHODS
from tests.models import tiny
from tests.models.traced_programs import (
    REDUCED,
    SMALL,
    attention_weights,
    found_in_64_bits,
    program,
    replace_core,
    unwanted,
)


@pytest.fixture
def without_core(monkeypatch):
    replace_core(monkeypatch)


# Nothing to reduce


IDENTITY = tiny.IMAGEPIECE | {"keep_rate": 1.0, "merge_ratio": 0.0}


@pytest.mark.parametrize(
    "reduction, stem, dtype",
    [
        (IDENTITY, "patch", "float32"),
        (IDENTITY, "conv", "bfloat16"),
        (tiny.EVIT | {"keep_rate": 1.0}, "patch", "float32"),
        (tiny.FUSED | {"keep_rate": 1.0}, "patch", "float32"),
        ({"name": "tome", "r": 0}, "patch", "float32"),
        (SMALL["random"] | {"keep_rate": 1.0}, "patch", "float32"),
    ],
    ids=["imagepiece", "conv", "dropped", "fused", "tome", "random"],
)
def test_a_method_that_reduces_nothing_is_the_dense_program(reduction, stem, dtype):
    """One program has one result, bit for bit; outputs and gradients alike."""
    reduced = text(program(tiny.model(reduction, stem=stem, dtype=dtype)))
    assert reduced == dense_text(stem, dtype)


def test_programs_that_differ_are_distinguished():
    assert text(program(tiny.model(tiny.EVIT))) != dense_text("patch", "float32")


def test_training_alone_changes_the_conv_stem_alone():
    """Batch norm; drop path, where there is any, is tested with the model's values."""
    for stem in ("patch", "conv"):
        model = tiny.model(tiny.EVIT, stem=stem)
        both = (program(model, train, backward=False) for train in (True, False))
        assert (text(next(both)) == text(next(both))) == (stem == "patch")


def text(jaxpr):
    """The jaxpr in words, without the addresses of functions."""
    return re.sub(r"0x[0-9a-f]+", "", str(jaxpr))


@functools.cache
def dense_text(stem, dtype):
    return text(program(tiny.model(stem=stem, dtype=dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_numbers_are_those_of_the_dense_model_too(dtype):
    dense = tiny.model(dtype=dtype)
    model = tiny.model(IDENTITY, dtype=dtype)
    variables, images = tiny.variables(dense), tiny.images()
    want, got = (jax.jit(m.apply)(variables, images) for m in (dense, model))
    assert want.logits.dtype == jnp.float32
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


# What it is made of


# Mixtures of all tokens, and pools: no slot map whose merged slots are counted.
BY_PRODUCT = {"token_learner", "grid_pooling"}
# The map of the attention is what it merges.
BY_MAP = {"mctf"}


# In evaluation they have another program than in training.
BY_MODE = ("none", "dynamicvit", "spvit", "token_learner", "imagepiece_dynamicvit")


@pytest.mark.parametrize(
    "train, name",
    [
        *((True, name) for name in {**METHODS, **REDUCED}),
        *((False, name) for name in BY_MODE),
    ],
)
def test_no_sort_scatter_attention_matrix_or_one_hot_product(without_core, name, train):
    """Each is a chain of kernels, or an array far larger than what it decides.

    Where training does not mask, and no option asks for columns of the weights.

    Tokens move by a product with the map where the merged slots are not counted alone.
    """
    model = tiny.model(SMALL[name], stem="conv" if name == "none" else "patch")
    assert name == "none" or any(layer.counts for layer in model.plan)
    found = unwanted(model, train=train)
    if name in BY_PRODUCT:
        products = [line for line in found if line.startswith("product")]
        assert products
        found = [line for line in found if line not in products]
    if name in BY_MAP:
        maps = [line for line in found if line.startswith("attention weights")]
        assert maps
        found = [line for line in found if line not in maps]
    assert found == []


@pytest.mark.parametrize("name", ["dynamicvit", "spvit", "imagepiece_dynamicvit"])
def test_training_with_masks_builds_them(without_core, name):
    """Each image has its own mask, which the fused core does not take."""
    model = tiny.model(SMALL[name], masked=True)
    assert attention_weights(model, backward=False) != []


def test_columns_of_the_weights_need_them(without_core):
    columns = SMALL["token_pooling"] | {"score": "received"}
    assert attention_weights(tiny.model(columns), train=False) != []


@pytest.mark.parametrize("name", ["none", "fused", "dtem", "spvit", "token_learner"])
def test_64_bit_numbers_of_jax_change_no_type(name):
    """Under this flag of users: forward, backward and in masked training."""
    with jax.enable_x64(True):
        traced = program(tiny.model(SMALL[name], masked=True))
    assert found_in_64_bits(traced) == []


def test_the_search_finds_a_one_hot_product(without_core, monkeypatch):
    one_hot = functools.partial(tokens.apply, form="one_hot")
    monkeypatch.setattr(tokens, "apply", one_hot)
    found = unwanted(tiny.model(tiny.IMAGEPIECE), backward=False)
    assert any("product" in line for line in found)


def test_the_search_finds_an_attention_matrix():
    found = unwanted(tiny.model(tiny.FUSED), backward=False)
    assert any("weights" in line for line in found)


def test_the_search_finds_sorts_and_scatters(without_core, monkeypatch):
    def sorted_rows(x, index):
        return jnp.sort(x)[:, index[0]]

    monkeypatch.setattr(tokens, "gather_rows", sorted_rows)
    found = unwanted(tiny.model(tiny.IMAGEPIECE), backward=False)
    assert any(line.startswith("sort") for line in found)
