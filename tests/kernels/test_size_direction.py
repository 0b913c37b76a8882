import numpy as np
import pytest

from imagepiece_jax.kernels import size_direction


def test_no_direction_is_used_less():
    """All angles in two dimensions; many random directions in eight."""
    query_factor = np.diag([1.0, 4.0])
    key_factor = np.array([[9.0, 2.0], [2.0, 1.0]])

    def logit_share(u, query_factor, key_factor):
        return (u @ query_factor @ u) * (u @ key_factor @ u)

    angles = np.linspace(0, np.pi, 100_001)
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    least_share = min(logit_share(u, query_factor, key_factor) for u in directions)
    direction = size_direction.least_used_direction(query_factor, key_factor)
    assert logit_share(direction, query_factor, key_factor) == pytest.approx(
        least_share, rel=1e-6
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        factors = rng.normal(size=(2, 8, 8)) * np.geomspace(1, 0.05, 8)
        query_factor, key_factor = (factor.T @ factor for factor in factors)
        direction = size_direction.least_used_direction(query_factor, key_factor)
        assert np.linalg.norm(direction) == pytest.approx(1)
        others = rng.normal(size=(20_000, 8))
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        shares = np.einsum("nd,de,ne->n", others, query_factor, others)
        shares *= np.einsum("nd,de,ne->n", others, key_factor, others)
        assert logit_share(direction, query_factor, key_factor) < shares.min()
