"""Size of a reduction for the compiler, counted in the traced program by kind.

Nothing is compiled or timed, so a regression shows on any machine. A pass is an
operation that ends a fusion: on a GPU it is a kernel of its own, or nearly so.
"""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from imagepiece_jax.reduction import tokens
from tests.models import tiny, traced_programs

# kind -> (fields, passes, operations) of one step, class attention and move included.
# Passes are today's; of operations there may be a tenth more, since releases of JAX
# differ a little. Lower both where a step has become smaller.
LAST = tiny.DEPTH - 1  # after it no block is another for having fewer tokens
ALLOWED = {
    "prune": ({"name": "evit", "blocks": (LAST,)}, 10, 128),
    "fuse": ({"name": "evit", "blocks": (LAST,), "fuse_token": True}, 32, 363),
    "merge": (tiny.IMAGEPIECE | {"merge_blocks": (LAST,), "prune_blocks": ()}, 31, 364),
    "tome": ({"name": "tome", "r_list": (0,) * LAST + (4,)}, 28, 341),
}
PASS = re.compile(
    "reduce|arg|gather|dot|conv_|concatenate|stack|pad|sort|top_k|scatter|cum|while|scan"
)
NO_PASS = ("reduce_precision",)


@pytest.fixture(autouse=True)
def without_core(monkeypatch):
    traced_programs.replace_core(monkeypatch)


def counted(reduction):
    """(passes, operations) of the forward program, those inside of others too."""
    model = tiny.model(reduction, prop_attn=False)
    traced = jax.make_jaxpr(lambda v: model.apply(v, tiny.images(2)).logits)
    names = collections.Counter(
        equation.primitive.name
        for equation in traced_programs.equations(traced(tiny.shapes(model)))
    )
    passes = [n for n in names if PASS.search(n) and n not in NO_PASS]
    return sum(names[n] for n in passes), sum(names.values())


def step(kind):
    """(passes, operations) that one step adds to the dense program."""
    fields, *_ = ALLOWED[kind]
    return tuple(a - b for a, b in zip(counted(fields), dense(), strict=True))


@functools.cache
def dense():
    return counted(None)


@pytest.mark.parametrize("kind", ALLOWED)
def test_a_step_is_as_small_as_it_was(kind):
    passes, operations = step(kind)
    _, most_passes, most = ALLOWED[kind]
    assert passes <= most_passes, f"{kind}: {passes} passes, {most_passes} before"
    assert operations <= most, f"{kind}: {operations} operations, {most} allowed"


@pytest.mark.parametrize("kind", ALLOWED)
def test_one_needless_pass_is_noticed(kind, monkeypatch):
    """The bounds are not loose: one sum over the tokens is too much."""
    move = tokens.apply

    def wasteful(state, result):
        extra = jnp.sum(state.x, axis=1, keepdims=True)
        return move(state.replace(x=state.x + 0 * extra), result)

    monkeypatch.setattr(tokens, "apply", wasteful)
    assert step(kind)[0] > ALLOWED[kind][1]
