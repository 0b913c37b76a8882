"""Fidelity to the dense model against loops over images."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.inference.compare_outputs import Annotations, measure_fidelity
from tests.helpers.refused_calls import refused


def slow_neighbors(rows, index=None):
    """The ten nearest other images by cosine, the nearest first."""
    index = rows if index is None else index
    neighbors = []
    for i, row in enumerate(rows):
        cosines = []
        for j, other in enumerate(index):
            if i != j:
                length = np.sqrt((row @ row) * (other @ other))
                cosines.append((-(row @ other) / length, j))
        neighbors.append([j for _, j in sorted(cosines)[:10]])
    return neighbors


@pytest.mark.parametrize("has_classes", [True, False])
def test_fidelity_equals_slow_counts(has_classes):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(30, 8))
    outputs = dense + 0.3 * rng.normal(size=dense.shape)
    fidelity = measure_fidelity(outputs, dense, has_classes)
    pairs = list(zip(slow_neighbors(outputs), slow_neighbors(dense), strict=True))
    kept = [10 * len({*near} & {*dense_near}) for near, dense_near in pairs]
    assert fidelity["neighbors_kept"].value == pytest.approx(np.mean(kept))
    assert 0 < fidelity["neighbors_kept"].value < 100
    if has_classes:
        agreement = [
            near.argmax() == dense_near.argmax()
            for near, dense_near in zip(outputs, dense, strict=True)
        ]
        assert fidelity["first_class"].value == pytest.approx(100 * np.mean(agreement))
    else:
        lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(dense, axis=1)
        cosines = np.sum(outputs * dense, axis=1) / lengths
        assert fidelity["cosine_mean"] == pytest.approx(cosines.mean())
        assert fidelity["cosine_worst"] == pytest.approx(cosines.min())


@pytest.mark.parametrize("block", [7, 1000])
def test_new_queries_in_an_old_index(monkeypatch, block):
    """A query finds its neighbors in the index, without its own image."""
    monkeypatch.setattr(compare_outputs, "IMAGES_PER_BLOCK", block)
    rng = np.random.default_rng(0)
    index = rng.normal(size=(30, 8))
    queries = index + 0.3 * rng.normal(size=index.shape)
    near_queries, near_index = slow_neighbors(queries, index), slow_neighbors(index)
    unit = compare_outputs.unit_rows
    found = compare_outputs.nearest_images(unit(queries), unit(index))
    np.testing.assert_array_equal(found, near_queries)
    counts = [
        len({*row} & {*index_row})
        for row, index_row in zip(near_queries, near_index, strict=True)
    ]
    shared = compare_outputs.count_shared(np.array(near_queries), np.array(near_index))
    np.testing.assert_array_equal(shared, counts)


def test_equal_outputs_agree_and_nan_does_not():
    dense = np.random.default_rng(0).normal(size=(12, 4))
    assert measure_fidelity(dense, dense, True)["first_class"].value == 100
    assert measure_fidelity(dense, dense, False)["cosine_worst"] == pytest.approx(1)
    broken = np.full_like(dense, np.nan)
    assert measure_fidelity(broken, dense, True)["first_class"].value == 0
    fidelity = measure_fidelity(broken, dense, False)
    assert (fidelity["cosine_mean"], fidelity["neighbors_kept"].value) == (0, 0)


def test_controls_mirror_and_compress_images():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    flipped = compare_outputs.IMAGE_CONTROLS["mirrored"](pixels)
    np.testing.assert_array_equal(flipped[1, 2, 0], pixels[1, 2, 15])
    changed = compare_outputs.compress_images(pixels)
    assert changed.shape == pixels.shape
    assert 1 < np.abs(changed.astype(int) - pixels).mean() < 60


def test_single_numbers_are_compared_by_spread_or_side():
    """A cosine says nothing: unrelated numbers of one sign have 1."""
    dense = np.tile([[1.0], [3.0]], (10, 1))  # mean 2, deviation 1
    outputs = dense + np.tile([[0.5], [-0.1]], (10, 1))
    for kind in (None, False):
        fidelity = measure_fidelity(outputs, dense, kind)
        assert fidelity.keys() == {"difference"}
        assert fidelity["difference"].value == pytest.approx(30)
    outputs[:5] = -0.2
    fidelity = measure_fidelity(outputs, dense, True)
    assert fidelity.keys() == {"first_class"}
    assert fidelity["first_class"].value == pytest.approx(75)


def test_every_number_has_its_own_spread():
    dense = np.tile([[1.0, 300.0], [3.0, 100.0]], (10, 1))  # deviations 1 and 100
    outputs = dense + [0.3, 40]
    fidelity = measure_fidelity(outputs, dense, None)
    assert fidelity["difference"].value == pytest.approx(100 * np.sqrt(0.125))
    assert measure_fidelity(dense, dense, None)["difference"].value == 0


@pytest.mark.parametrize("has_classes", [True, False, None])
def test_an_infinite_dense_model_is_not_compared(has_classes):
    dense = np.random.default_rng(0).normal(size=(12, 2))
    infinite = np.full_like(dense, np.inf)
    with pytest.raises(InputError, match="not finite"):
        measure_fidelity(dense, infinite, has_classes)


def test_infinite_numbers_have_no_difference():
    dense = np.random.default_rng(0).normal(size=(12, 2))
    with pytest.raises(InputError, match="not finite"):
        measure_fidelity(np.full_like(dense, np.nan), dense, None)


def votes(rows, classes):
    """The ten nearest images' voted classes, by scikit-learn."""
    neighbors = KNeighborsClassifier(
        n_neighbors=10, metric="cosine", weights=lambda distances: 1 - distances
    )
    return neighbors.fit(rows, classes).predict(None)  # without the image itself


def test_votes_equal_scikit_learns():
    rng = np.random.default_rng(0)
    classes = np.array(["fish", "dog", "church"])[rng.integers(0, 3, 60)]
    centers = dict(zip(("fish", "dog", "church"), rng.normal(size=(3, 8)), strict=True))
    dense = rng.normal(size=(60, 8)) + [centers[name] for name in classes]
    outputs = dense + 0.7 * rng.normal(size=dense.shape)
    is_right = [votes(rows, classes) == classes for rows in (outputs, dense)]
    fidelity = measure_fidelity(outputs, dense, False, Annotations(classes))
    assert fidelity["voted_right"].value == pytest.approx(100 * is_right[0].mean())
    points = 100 * (is_right[0].mean() - is_right[1].mean())
    assert fidelity["voted_points"].value == pytest.approx(points) != 0
    assert fidelity["voted_points"].low < points < fidelity["voted_points"].high
    assert 40 < fidelity["voted_right"].value < 95


def test_votes_by_hand():
    """Eleven images share a direction, one of them of the other class.

    Two more share another direction; their other neighbors have the cosine 0.
    """
    outputs = np.array([[1.0, 0.0]] * 11 + [[0.0, 1.0]] * 2)
    classes = np.array([0] * 10 + [1] + [1] * 2)
    fidelity = measure_fidelity(outputs, outputs, False, Annotations(classes))
    assert fidelity["voted_right"].value == pytest.approx(100 * 12 / 13)
    assert "voted_points" not in fidelity  # only for a reduced model
    changed = outputs.copy()
    changed[11] = [1, 0.1]  # now near the other class
    fidelity = measure_fidelity(changed, outputs, False, Annotations(classes))
    assert fidelity["voted_points"].value == pytest.approx(-100 / 13)


def slow_recall(rows, texts, image_of_text):
    """The mean of recall at 1, 5 and 10 over texts."""
    hits = []
    for text, image in zip(texts, image_of_text, strict=True):
        cosines = [row @ text / np.linalg.norm(row) for row in rows]
        rank = np.argsort(cosines)[::-1].tolist().index(image)
        hits += [rank < 1, rank < 5, rank < 10]
    return 100 * np.mean(hits)


@pytest.mark.parametrize("block", [7, 1000])
@pytest.mark.parametrize("repeats", [1, 2])
def test_recall_equals_a_slow_count(monkeypatch, block, repeats):
    """Images have equally many texts, in any order; some images have no text."""
    monkeypatch.setattr(compare_outputs, "IMAGES_PER_BLOCK", block)
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(50, 6))
    outputs = dense + 0.3 * rng.normal(size=dense.shape)
    image_of_text = np.tile(rng.permutation(50)[:40], repeats)
    texts = dense[image_of_text] + 0.8 * rng.normal(size=(40 * repeats, 6))
    annotations = Annotations(None, texts.astype(np.float16), image_of_text)
    fidelity = measure_fidelity(outputs, dense, False, annotations)
    recall = slow_recall(outputs, annotations.text_vectors.astype(float), image_of_text)
    dense_recall = slow_recall(
        dense, annotations.text_vectors.astype(float), image_of_text
    )
    assert fidelity["recall"].value == pytest.approx(recall)
    assert fidelity["recall_points"].value == pytest.approx(recall - dense_recall)
    assert 30 < recall < dense_recall < 90
    assert fidelity["recall"].low < recall < fidelity["recall"].high


def test_recall_by_hand():
    """Images on an arc: those between are nearer to the text than its own image."""
    angles = np.arange(20) / 40
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for ahead, share in {0: 1, 1: 2 / 3, 4: 2 / 3, 5: 1 / 3, 9: 1 / 3, 10: 0}.items():
        recall = compare_outputs.text_recall(rows, rows[:1], np.array([ahead]))
        np.testing.assert_allclose(recall, [100 * share], atol=1e-9)
    same = np.ones((20, 2)) / np.sqrt(2)  # equal vectors find nothing
    recall = compare_outputs.text_recall(same, rows[:1], np.array([3]))
    np.testing.assert_array_equal(recall, [0])


def test_shuffled_outputs_are_chance():
    rng = np.random.default_rng(0)
    classes = np.arange(600) % 4
    dense = rng.normal(size=(600, 16)) + 8 * np.eye(16)[classes]
    annotations = Annotations(classes, dense, np.arange(600))
    rows = compare_outputs.measure_fidelities({"dense": dense}, False, annotations)
    assert rows.keys() == {"dense", "shuffled"}
    assert rows["dense"]["recall"].value == 100
    assert rows["dense"]["voted_right"].value == 100
    chance = rows["shuffled"]
    assert abs(chance["neighbors_kept"].value - 100 * 10 / 599) < 2
    assert abs(chance["recall"].value - 100 * np.mean([1, 5, 10]) / 600) < 1
    assert abs(chance["voted_right"].value - 25) < 5
    assert chance["voted_points"].high < -60


def test_outputs_of_nan_find_nothing():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(30, 4))
    annotations = Annotations(np.arange(30) % 2, -dense, np.arange(30))
    fidelity = measure_fidelity(np.full_like(dense, np.nan), dense, False, annotations)
    assert (fidelity["recall"].value, fidelity["voted_right"].value) == (0, 0)


def test_a_part_of_annotations_keeps_texts_with_their_images(capsys):
    """Classes need two images each."""
    classes = np.array([*"aabbab" * 5])
    texts = np.arange(60).reshape(30, 2)
    annotations = Annotations(classes, texts, np.arange(30)[::-1])
    part = annotations.select_images([*range(4, 30)])
    assert [*part.classes] == [*classes[4:]]
    np.testing.assert_array_equal(part.text_vectors, texts[:26])
    np.testing.assert_array_equal(part.image_of_text, np.arange(26)[::-1])
    assert Annotations(classes).select_images([0, 1, 2]).classes is None
    assert Annotations(classes).select_images([0, 1]).classes is None
    assert annotations.digest_record != part.digest_record != {}
    assert Annotations().digest_record == {}
    with refused("texts describe 11 of the 11 compared images", "12"):
        annotations.select_images(range(11))


def test_a_class_without_a_neighbor_does_not_win():
    """Negative cosines' votes add up to less than an absent class's 0."""
    rows = np.eye(12) - 1 / 12  # every cosine of two rows is -1 / 11
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = np.array([np.flatnonzero(np.arange(12) != i)[:10] for i in range(12)])
    classes = np.array([0] * 10 + [1, 2])
    for image, winner in enumerate(compare_outputs.voted_classes(rows, near, classes)):
        assert winner in classes[near[image]]
