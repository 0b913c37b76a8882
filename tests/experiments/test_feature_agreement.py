"""Figures of agreement against small maps worked out by hand."""

import numpy as np
import pytest

from experiments import patch_features as agreement


def test_cosines_of_all_pairs():
    """At 0, 45, 90 degrees, and nothing at all; lengths do not count."""
    features = np.array([[[1, 0], [3, 3], [0, 2], [0, 0]]])
    half = 0.5**0.5
    expected = [[half, 0, 0, half, 0, 0]]  # pairs 01 02 03 12 13 23
    np.testing.assert_allclose(agreement.self_similarity(features), expected, atol=1e-6)


def test_correlation_is_that_of_numpy_whatever_the_scale():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 20))
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    np.testing.assert_allclose(agreement.correlation(ours, theirs), expected)
    np.testing.assert_allclose(agreement.correlation(ours, 2 * ours + 1), 1)
    assert agreement.correlation(ours, np.ones_like(ours)).tolist() == [0, 0, 0]


def test_other_images_are_all_but_this_one():
    pairs = np.array([[1.0, 0], [2, 6], [6, 3]])
    assert agreement.of_other_images(pairs).tolist() == [[4, 4.5], [3.5, 1.5], [1.5, 3]]


@pytest.fixture(scope="module")
def two_kinds():
    """Patches that point up or right: (map, labels, memory) of three images."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (3, 40))
    features = np.eye(2)[labels] + rng.normal(0, 0.05, (3, 40, 2))
    return features, labels, np.array([True, False, True])


def test_probe_reads_labels_from_features(two_kinds):
    features, labels, memory = two_kinds
    assert agreement.probe(features, labels, memory).tolist() == [1.0]
    turned = features.copy()
    turned[1, :10] = turned[1, :10, ::-1]  # a quarter of the patches are wrong
    assert agreement.probe(turned, labels, memory).tolist() == [0.75]
    turned[1] = features[1, :, ::-1]  # all are, and what is tested is not the memory
    assert agreement.probe(turned, labels, memory).tolist() == [0.0]


def test_probe_of_position_takes_the_most_frequent_label():
    labels = np.array([[0, 1, 2], [0, 1, 1], [0, 2, 1], [1, 2, 1]])
    memory = np.array([True, True, True, False])
    # 0 is most frequent at the first place, 1 at the other two.
    assert agreement.probe_position(labels, memory).tolist() == [1 / 3]


def test_clusters_are_of_the_images_in_memory(two_kinds, monkeypatch):
    """The two kinds of patches of the other image are both nearer to one of theirs."""
    features, labels, memory = two_kinds
    monkeypatch.setattr(agreement, "CLUSTERS", 2)
    features = features.copy()
    features[1] = np.where(labels[1, :, None], (0.1, 1), (0.7, 1))
    found = agreement.cluster_labels(features, memory)
    expected = np.where(memory[:, None], labels, 1)
    same = found == expected
    assert same.all() or not same.any()  # clusters have no names


def test_cosine_of_two_maps():
    ours = np.array([[[2, 0], [1, 1], [0, 0]]])
    theirs = np.array([[[5, 0], [0, 1], [1, 0]]])
    np.testing.assert_allclose(
        agreement.cosine(ours, theirs), [[1, 0.5**0.5, 0]], rtol=1e-6
    )
