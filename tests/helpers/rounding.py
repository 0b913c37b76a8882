"""Tolerances that follow from the arithmetic, on any processor."""

import chex
import jax
import numpy as np

UNIT = 2.0**-23  # between 1 and the next float32


def assert_close(actual, desired, units=32, scale=0.0):
    """Arrays or trees of arrays are equal up to float32 rounding.

    Sums in another order differ by units in the last place of their largest number,
    also where terms cancel.
    units: how many
    scale: the largest added number, if it is above all of `desired`
    desired: may be a list beside an array
    """
    if hasattr(actual, "shape"):
        desired = np.asarray(desired)
    chex.assert_trees_all_equal_structs(actual, desired)
    for value, expected in zip(*map(jax.tree.leaves, (actual, desired)), strict=True):
        largest = max(scale, np.abs(np.asarray(expected, np.float64)).max(initial=0))
        np.testing.assert_allclose(value, expected, rtol=0, atol=units * UNIT * largest)
