"""ATC: clusters against SciPy's hierarchical clustering."""

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from imagepiece_jax.reduction.methods.atc import LINKAGES, join_closest_clusters
from tests.helpers import tiny_vit


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("num_clusters", [1, 7, 20, 29, 30])
def test_clusters_equal_scipys(linkage, num_clusters):
    x = np.random.default_rng(num_clusters).normal(size=(3, 30, 4))
    distances = np.stack([distance.cdist(image, image, "cosine") for image in x])
    run = tiny_vit.jit(join_closest_clusters, static_argnums=(1, 2))
    slots = np.asarray(run(np.float32(distances), 30 - num_clusters, linkage))
    for slot, apart in zip(slots, distances, strict=True):
        tree = hierarchy.linkage(distance.squareform(apart, checks=False), linkage)
        clusters = hierarchy.fcluster(tree, num_clusters, "maxclust")
        np.testing.assert_array_equal(
            slot[:, None] == slot, clusters[:, None] == clusters
        )
        assert all(slot[token] == token for token in set(slot))
        assert (slot <= np.arange(30)).all()


def test_equal_distances_merge_the_lower_tokens():
    distances = np.float32(1 - np.eye(4))[None]
    run = tiny_vit.jit(join_closest_clusters, static_argnums=(1, 2))
    assert run(distances, 2, "average").tolist() == [[0, 0, 0, 3]]
