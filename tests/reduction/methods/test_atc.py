"""ATC: clusters against SciPy's hierarchical clustering."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from imagepiece_jax.reduction.methods.atc import LINKAGES, join_closest_clusters
from tests.helpers import tiny_vit


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("clusters", [1, 7, 20, 29, 30])
def test_clusters_are_scipys(linkage, clusters):
    x = np.random.default_rng(clusters).normal(size=(3, 30, 4))
    apart = np.stack([distance.cdist(image, image, "cosine") for image in x])
    run = tiny_vit.jit(join_closest_clusters, static_argnums=(1, 2))
    got = np.asarray(run(jnp.asarray(apart, jnp.float32), 30 - clusters, linkage))
    for first, dist in zip(got, apart, strict=True):
        tree = hierarchy.linkage(distance.squareform(dist, checks=False), linkage)
        want = hierarchy.fcluster(tree, clusters, "maxclust")
        np.testing.assert_array_equal(first[:, None] == first, want[:, None] == want)
        assert all(first[token] == token for token in set(first))
        assert (first <= np.arange(30)).all()


def test_equal_distances_merge_the_lower_tokens():
    apart = np.float32(1 - np.eye(4))[None]
    run = tiny_vit.jit(join_closest_clusters, static_argnums=(1, 2))
    assert run(apart, 2, "average").tolist() == [[0, 0, 0, 3]]
