import numpy as np
import pytest

from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.inference.compare_outputs import measure_fidelity
from tests.helpers.refused_calls import refused


def slow_neighbors(rows):
    """The ten nearest other images by cosine, the nearest first."""
    neighbors = []
    for index, row in enumerate(rows):
        angles = []
        for other_index, other in enumerate(rows):
            if other_index != index:
                cosine = (row @ other) / np.sqrt((row @ row) * (other @ other))
                angles.append((np.arccos(cosine), other_index))
        neighbors.append([other_index for _, other_index in sorted(angles)[:10]])
    return neighbors


@pytest.mark.parametrize("has_classes, block", [(True, 1000), (False, 7)])
def test_fidelity_equals_slow_counts(monkeypatch, has_classes, block):
    monkeypatch.setattr(compare_outputs, "IMAGES_PER_BLOCK", block)
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(30, 8))
    outputs = dense + 0.3 * rng.normal(size=dense.shape)
    fidelity = measure_fidelity(outputs, dense, has_classes)
    pairs = list(zip(slow_neighbors(outputs), slow_neighbors(dense), strict=True))
    kept = [10 * len({*near} & {*dense_near}) for near, dense_near in pairs]
    assert fidelity["neighbors_kept"].value == pytest.approx(np.mean(kept))
    assert 0 < fidelity["neighbors_kept"].value < 100
    if has_classes:
        agreement = [*map(np.argmax, outputs)] == np.argmax(dense, axis=1)
        assert fidelity["first_class"].value == pytest.approx(100 * np.mean(agreement))
    else:
        lengths = np.linalg.norm(outputs, axis=1) * np.linalg.norm(dense, axis=1)
        cosines = np.sum(outputs * dense, axis=1) / lengths
        assert fidelity["cosine_mean"] == pytest.approx(cosines.mean())
        assert fidelity["cosine_worst"] == pytest.approx(cosines.min())


def test_nan_agrees_with_nothing():
    dense = np.random.default_rng(0).normal(size=(12, 4))
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
        assert fidelity["difference"].value == pytest.approx(100 * np.sqrt(0.13))
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


def test_what_is_not_finite_is_not_compared():
    dense = np.random.default_rng(0).normal(size=(12, 2))
    infinite = np.full_like(dense, np.inf)
    cases = [(dense, infinite, True), (dense, infinite, False), (infinite, dense, None)]
    for outputs, dense_outputs, kind in cases:
        with refused("not finite"):
            measure_fidelity(outputs, dense_outputs, kind)


def test_shuffled_outputs_are_chance():
    dense = np.random.default_rng(0).normal(size=(600, 16))
    shuffled = compare_outputs.shuffle_outputs(dense)
    kept = measure_fidelity(shuffled, dense, False)["neighbors_kept"].value
    assert abs(kept - 100 * 10 / 599) < 2


def test_equal_outputs_agree_without_an_interval():
    """No chance is in a file compared with itself: all of its figures are certain."""
    dense = np.random.default_rng(0).normal(size=(60, 4))
    for outputs, has_interval in ((dense, False), (dense + [[0.2, 0, 0, 0]], True)):
        cells = compare_outputs.fidelity_cells(measure_fidelity(outputs, dense, True))
        assert len(cells) == 2
        assert all(("[" in cell) == has_interval for cell in cells.values())
        assert [*cells.values()] == ["100.0", "100.0"] or has_interval
