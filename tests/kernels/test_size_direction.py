import numpy as np
import pytest

from imagepiece_jax.kernels import size_direction


def test_no_direction_is_used_less():
    """All angles in two dimensions."""
    query_factor = np.diag([1.0, 4.0])
    key_factor = np.array([[9.0, 2.0], [2.0, 1.0]])

    def logit_share(u):
        return (u @ query_factor @ u) * (u @ key_factor @ u)

    angles = np.linspace(0, np.pi, 100_001)
    least_share = min(map(logit_share, np.stack([np.cos(angles), np.sin(angles)], -1)))
    direction = size_direction.least_used_direction(query_factor, key_factor)
    assert np.linalg.norm(direction) == pytest.approx(1)
    assert logit_share(direction) == pytest.approx(least_share, rel=1e-6)
