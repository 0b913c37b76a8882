"""Fidelity to the dense model, against loops over images."""

import numpy as np
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare_outputs
from imagepiece_jax.evaluate.compare_outputs import fidelity


def slow_neighbors(rows, index=None):
    """The ten nearest others by cosine, the nearest first."""
    index = rows if index is None else index
    found = []
    for i, row in enumerate(rows):
        cosines = []
        for j, other in enumerate(index):
            if i != j:
                length = np.sqrt((row @ row) * (other @ other))
                cosines.append((-(row @ other) / length, j))
        found.append([j for _, j in sorted(cosines)[:10]])
    return found


@pytest.mark.parametrize("has_classes", [True, False])
def test_figures_are_those_of_a_slow_count(has_classes):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(30, 8))
    outputs = dense + 0.3 * rng.normal(size=dense.shape)
    found = fidelity(outputs, dense, has_classes)
    pairs = list(zip(slow_neighbors(outputs), slow_neighbors(dense), strict=True))
    kept = [10 * len({*own} & {*base}) for own, base in pairs]
    assert found["neighbors_kept"].value == pytest.approx(np.mean(kept))
    assert 0 < found["neighbors_kept"].value < 100
    if has_classes:
        same = [
            own.argmax() == base.argmax()
            for own, base in zip(outputs, dense, strict=True)
        ]
        assert found["first_class"].value == pytest.approx(100 * np.mean(same))
    else:
        lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(dense, axis=1)
        cosines = np.sum(outputs * dense, axis=1) / lengths
        assert found["cosine_mean"] == pytest.approx(cosines.mean())
        assert found["cosine_worst"] == pytest.approx(cosines.min())


@pytest.mark.parametrize("block", [7, 1000])
def test_new_queries_in_an_old_index(monkeypatch, block):
    """Each finds what is near in the index, and not the image itself."""
    monkeypatch.setattr(compare_outputs, "BLOCK", block)
    rng = np.random.default_rng(0)
    index = rng.normal(size=(30, 8))
    queries = index + 0.3 * rng.normal(size=index.shape)
    ours, theirs = slow_neighbors(queries, index), slow_neighbors(index)
    unit = compare_outputs.unit
    near = compare_outputs.nearest(unit(queries), unit(index))
    np.testing.assert_array_equal(near, ours)
    counts = [len({*own} & {*other}) for own, other in zip(ours, theirs, strict=True)]
    got = compare_outputs.shared(np.array(ours), np.array(theirs))
    np.testing.assert_array_equal(got, counts)


def test_equal_outputs_are_alike_and_nan_is_no_answer():
    dense = np.random.default_rng(0).normal(size=(12, 4))
    assert fidelity(dense, dense, True)["first_class"].value == 100
    assert fidelity(dense, dense, False)["cosine_worst"] == pytest.approx(1)
    broken = np.full_like(dense, np.nan)
    assert fidelity(broken, dense, True)["first_class"].value == 0
    found = fidelity(broken, dense, False)
    assert (found["cosine_mean"], found["neighbors_kept"].value) == (0, 0)


def test_controls_change_images_as_they_say():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    flipped = compare_outputs.CONTROLS["mirrored"](pixels)
    np.testing.assert_array_equal(flipped[1, 2, 0], pixels[1, 2, 15])
    changed = compare_outputs.compressed(pixels)
    assert changed.shape == pixels.shape
    assert 1 < np.abs(changed.astype(int) - pixels).mean() < 60


def test_single_numbers_have_sides_or_spreads():
    """By hand; unrelated numbers of one sign have the cosine 1."""
    dense = np.tile([[1.0], [3.0]], (10, 1))  # mean 2, deviation 1
    outputs = dense + np.tile([[0.5], [-0.1]], (10, 1))
    for kind in (None, False):
        found = fidelity(outputs, dense, kind)
        assert found.keys() == {"difference"}
        assert found["difference"].value == pytest.approx(30)
    outputs[:5] = -0.2
    found = fidelity(outputs, dense, True)
    assert found.keys() == {"first_class"}
    assert found["first_class"].value == pytest.approx(75)


def test_every_number_has_its_own_spread():
    dense = np.tile([[1.0, 300.0], [3.0, 100.0]], (10, 1))  # deviations 1 and 100
    outputs = dense + [0.3, 40]
    found = fidelity(outputs, dense, None)
    assert found["difference"].value == pytest.approx(100 * np.sqrt(0.125))
    assert fidelity(dense, dense, None)["difference"].value == 0


@pytest.mark.parametrize("has_classes", [True, False, None])
def test_an_infinite_dense_model_is_not_compared(has_classes):
    dense = np.random.default_rng(0).normal(size=(12, 2))
    infinite = np.full_like(dense, np.inf)
    with pytest.raises(InputError, match="not finite"):
        fidelity(dense, infinite, has_classes)


def test_infinite_numbers_have_no_difference():
    dense = np.random.default_rng(0).normal(size=(12, 2))
    with pytest.raises(InputError, match="not finite"):
        fidelity(np.full_like(dense, np.nan), dense, None)
