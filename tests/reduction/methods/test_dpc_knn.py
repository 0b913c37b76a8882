import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.reduction.methods.dpc_knn import cluster_by_density
from tests.helpers import tiny_vit


def cluster_slowly(x, neighbors, n_out):
    """Slot of each token by loops, in float64. [n, D] -> [n]."""
    n, dim = x.shape
    distances = np.array([[np.linalg.norm(a - b) for b in x] for a in x]) / np.sqrt(dim)
    density = [np.exp(-np.mean(sorted(row**2)[:neighbors])) for row in distances]
    score = []
    for i in range(n):
        denser = [distances[i, j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distances.max()))
    centers = sorted(np.argsort(-np.asarray(score), kind="stable")[:n_out])
    return [
        centers.index(i) if i in centers else int(np.argmin(distances[i, centers]))
        for i in range(n)
    ]


@pytest.mark.parametrize(
    "neighbors, n_out, scale",
    # At scale 15 float32 could not tell densities from 0.
    [(5, 12, 1), (1, 3, 1), (30, 1, 1), (4, 29, 1), (5, 12, 15)],
)
def test_slots_equal_slow_loops(neighbors, n_out, scale):
    noise = np.random.default_rng(n_out).normal(size=(3, 30, 6))
    x = (scale * noise).astype(np.float32)
    run = tiny_vit.jit(cluster_by_density, static_argnums=(1, 2))
    slots = run(jnp.asarray(x), neighbors, n_out)
    slow_slots = [cluster_slowly(image.astype(float), neighbors, n_out) for image in x]
    np.testing.assert_array_equal(slots, slow_slots)
