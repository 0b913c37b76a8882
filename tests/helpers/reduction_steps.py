"""Compiled steps of reductions, and tokens in the plane for examples by hand."""

import functools

import jax
import numpy as np

from imagepiece_jax.kernels.merging import SlotIndex
from imagepiece_jax.reduction import moves
from tests.helpers import tiny_vit

FORMS = ("gather", "one_hot")


def move(state, result, form=None):
    """`apply_result`, by indices ("gather") or a product ("one_hot"), its oracle."""
    if form == "one_hot":
        result = result.replace(index=None)
    return moves.apply_result(state, result)


def index_of(dest, n_out):
    """The SlotIndex of a slot map, whose slots keep the first of their tokens.

    All images drop the same number of tokens.
    """
    rows = []
    for slots in np.asarray(dest):
        keep = [np.flatnonzero(slots == slot)[0] for slot in range(n_out)]
        others = [token for token in np.flatnonzero(slots >= 0) if token not in keep]
        target = slots[others]
        rows.append((keep, others, target, np.asarray(keep)[target]))
    arrays = map(np.int32, zip(*rows, strict=True))
    return SlotIndex(*arrays)


_apply = tiny_vit.compiled(move, static_argnames="form")


def apply(state, result, form=None):
    """Compiled `move` of any result, by an index that it need not have."""
    if form == "gather" and result.index is None:
        result = result.replace(index=index_of(result.slot_of_token, result.n_out))
    return _apply(state, result, form=form)


decide = tiny_vit.compiled(
    lambda reducer, inputs, counts: reducer(inputs, counts), static_argnums=(0, 2)
)


def reducers(plan):
    return [layer.step.reducer for layer in plan if layer.counts]


def shortest(plan):
    """The first blocks of a plan: two steps, and one at least with each reducer."""
    every = reducers(plan)
    for end in range(1, len(plan)):
        some = reducers(plan[:end])
        if len(some) >= min(2, len(every)) and all(each in some for each in every):
            return plan[:end]
    return plan


def random_variables(reducer, inputs, counts, seed=0):
    init = functools.partial(reducer.init, counts=counts)
    return tiny_vit.fill(jax.eval_shape(init, jax.random.key(0), inputs), seed)


def apply_learned(reducer, variables, inputs, counts):
    run = functools.partial(reducer.apply, counts=counts)
    return tiny_vit.compiled(run)(variables, inputs)


def vectors(degrees, lengths=1.0):
    """[1, n, 2] float32."""
    turned = np.deg2rad(np.asarray(degrees, float))
    pairs = np.stack([np.cos(turned), np.sin(turned)], axis=-1)
    return np.float32(np.asarray(lengths, float).reshape(-1, 1) * pairs)[None]
