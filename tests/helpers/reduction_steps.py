"""Compiled reduction steps, and plane vectors for hand-computed examples."""

import functools

import jax
import numpy as np

from imagepiece_jax.reduction import moves
from tests.helpers import tiny_vit

apply = tiny_vit.compiled(moves.apply_result)
decide = tiny_vit.compiled(
    lambda reducer, inputs, counts: reducer(inputs, counts), static_argnums=(0, 2)
)


def plan_reducers(plan):
    return [layer.step.reducer for layer in plan if layer.counts]


def shortest_plan(plan):
    """A plan's first blocks, with two steps and every reducer."""
    all_reducers = plan_reducers(plan)
    for end in range(1, len(plan)):
        first_reducers = plan_reducers(plan[:end])
        has_two = len(first_reducers) >= min(2, len(all_reducers))
        if has_two and all(reducer in first_reducers for reducer in all_reducers):
            return plan[:end]
    return plan


def random_variables(reducer, inputs, counts):
    init = functools.partial(reducer.init, counts=counts)
    return tiny_vit.fill(jax.eval_shape(init, jax.random.key(0), inputs))


def apply_learned(reducer, variables, inputs, counts):
    run = functools.partial(reducer.apply, counts=counts)
    return tiny_vit.compiled(run)(variables, inputs)


def vectors(degrees, lengths=1.0):
    """Vectors at these angles, [1, n, 2] float32."""
    radians = np.deg2rad(np.asarray(degrees, float))
    pairs = np.stack([np.cos(radians), np.sin(radians)], axis=-1)
    return np.float32(np.asarray(lengths, float).reshape(-1, 1) * pairs)[None]
