"""The direction that a head's logits use least, against all others."""

import numpy as np
import pytest

from imagepiece_jax.kernels import size_direction


def test_the_least_used_direction_is_the_best_of_all():
    """By angle in two dimensions; against many random ones in eight."""
    of_queries = np.diag([1.0, 4.0])
    of_keys = np.array([[9.0, 2.0], [2.0, 1.0]])

    def lost(u, of_queries, of_keys):
        return (u @ of_queries @ u) * (u @ of_keys @ u)

    angles = np.linspace(0, np.pi, 100_001)
    every = np.stack([np.cos(angles), np.sin(angles)], -1)
    least = min(lost(u, of_queries, of_keys) for u in every)
    found = size_direction.least_used_direction(of_queries, of_keys)
    assert lost(found, of_queries, of_keys) == pytest.approx(least, rel=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(3):
        factors = rng.normal(size=(2, 8, 8)) * np.geomspace(1, 0.05, 8)
        of_queries, of_keys = (factor.T @ factor for factor in factors)
        found = size_direction.least_used_direction(of_queries, of_keys)
        assert np.linalg.norm(found) == pytest.approx(1)
        others = rng.normal(size=(20_000, 8))
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        along = np.einsum("nd,de,ne->n", others, of_queries, others)
        along *= np.einsum("nd,de,ne->n", others, of_keys, others)
        assert lost(found, of_queries, of_keys) < along.min()
