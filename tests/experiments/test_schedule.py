"""The evidence for schedule B: figures worked out by hand from the paper's tables."""

import itertools

import pytest

from experiments import schedule


def test_published_speeds_support_schedule_b():
    """From 2531.1, 3787.5, 3806.1, 3891.9, 4868.0 and 3876.5 img/s."""
    found = schedule.overhead()
    assert found.rate == pytest.approx(0.0859, abs=5e-5)
    assert found.stem == pytest.approx(0.0324, abs=5e-5)
    assert found.prune == pytest.approx(0.0022, abs=5e-5)
    assert found.merge == pytest.approx(0.0026, abs=6e-5)
    assert found.predicted == pytest.approx(0.0543, abs=5e-5)
    by_rate = {"B": (0.0503, 0.0513), "A": (0.0273, 0.0228)}
    for name, expected in by_rate.items():
        implied = [schedule.implied(name, rate) for rate in (0.8, 0.6)]
        assert implied == pytest.approx(expected, abs=5e-5)
    more = schedule.milliseconds("ImagePiece + ToMe")
    more -= schedule.milliseconds("ImagePiece")
    assert more == pytest.approx(0.0010, abs=5e-5)
    assert found.tome_instead == pytest.approx(0.0011, abs=5e-5)


def test_the_speed_of_spvit_contradicts_its_default_counts():
    """All others have .88 to .98 of the dense model's MACs a second."""
    found = {name: schedule.efficiency(row) for name, row in schedule.ROWS.items()}
    assert round(found.pop("SPViT"), 2) == 0.79
    assert found.pop("DeiT") == 1
    assert all(0.875 < efficiency < 0.985 for efficiency in found.values())
    without = {"DeiT", "SPViT", "ImagePiece, patch stem"}
    assert set(schedule.SPEEDS) - set(found) == without
    assert round(found["SPViT, keep .7, .49, .343"], 2) == 0.94
    # By schedule A ImagePiece would be more efficient than the dense model.
    assert all(schedule.efficiency(row) > 1 for row in schedule.OTHERS)


def test_counts_do_not_determine_the_rounding():
    """Ours is one of five; the only one with ceil for both, of all tokens."""
    roundings = schedule.ROUNDINGS
    every = itertools.product(roundings, schedule.BASES, roundings)
    left = [variant for variant in every if schedule.tokens_left(*variant) == 26]
    assert left == [
        ("round", "image tokens", "floor"),
        ("round", "all tokens", "floor"),
        ("ceil", "image tokens", "round"),
        ("ceil", "all tokens", "round"),
        ("ceil", "all tokens", "ceil"),
    ]
    for rate, count in ((0.8, 61), (0.6, 26)):  # as the package counts
        assert schedule.tokens_left("ceil", "all tokens", "ceil", rate) == count
