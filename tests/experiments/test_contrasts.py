"""The declared contrasts, on made-up accuracies, against SciPy and by hand."""

import numpy as np
import pytest
import scipy.stats

from experiments.scratch import contrasts
from imagepiece_jax.evaluate import statistics

SEEDS = 6


def made_up(seed=0, **lifts):
    """Accuracies of six systems and seeds; `lifts` are points added to a system."""
    rng, found = np.random.default_rng(seed), {}
    for name in contrasts.SYSTEMS:
        found[name] = {
            seed: {
                rate: 60 + lifts.get(name, 0.0) + rng.normal(scale=0.3)
                for rate in ("trained", *contrasts.RATES)
            }
            for seed in range(SEEDS)
        }
    return found


def points(accuracies, system, *rates):
    return np.array(
        [np.mean([accuracies[system][s][r] for r in rates]) for s in range(SEEDS)]
    )


def test_contrasts_are_those_of_the_declaration():
    found = made_up(imagepiece_conv=2.0, dense_patch=-3.0)
    p1, p2, p3 = contrasts.contrasts(found)
    rates = ("0.8", "0.6", "0.4")
    merging = [
        points(found, f"imagepiece_{stem}", *rates)
        - points(found, f"dropping_{stem}", *rates)
        for stem in ("conv", "patch")
    ]
    np.testing.assert_allclose(p1.points, np.mean(merging, axis=0))
    conv, patch = (
        points(found, f"imagepiece_{stem}", "trained")
        - points(found, f"dense_{stem}", "trained")
        for stem in ("conv", "patch")
    )
    np.testing.assert_allclose(p2.points, conv - patch)
    np.testing.assert_allclose(p3.points, conv)
    assert [each.bound for each in (p1, p2, p3)] == [0, 0, -1]


@pytest.mark.parametrize("seed", range(4))
def test_tests_and_intervals_are_scipys(seed):
    for each in contrasts.contrasts(made_up(seed)):
        test = scipy.stats.ttest_1samp(
            each.points, popmean=each.bound, alternative="greater"
        )
        assert each.p == pytest.approx(test.pvalue, rel=1e-9)
        both = scipy.stats.ttest_1samp(each.points, popmean=0.0)
        interval = both.confidence_interval(0.95)
        assert each.estimate == pytest.approx(
            (each.points.mean(), interval.low, interval.high), rel=1e-9
        )


def contrast(values, bound=0.0, refuted_at=1.0, strictly=True):
    return contrasts.Contrast("P", "", np.array(values), bound, refuted_at, strictly)


SPREAD = np.array([-0.1, 0.1, -0.1, 0.1, 0.0, 0.0])  # the interval: +- 0.094


@pytest.mark.parametrize(
    "mean, holm, verdict",
    [
        (0.5, 0.01, "supported"),  # more than 0, though less than 1
        (0.5, 0.06, "refuted"),  # not by Holm, and below the margin
        (0.05, 0.5, "refuted"),
        (0.95, 0.06, "open"),
        (2.0, 0.01, "supported"),
        (-2.0, 1.0, "refuted"),
    ],
)
def test_verdicts_follow_the_rules(mean, holm, verdict):
    assert contrast(mean + SPREAD).verdict(holm) == verdict


def test_an_interval_that_ends_at_its_margin():
    same = np.full(6, 1.0)
    assert contrast(same).verdict(0.06) == "open"
    assert contrast(same, strictly=False).verdict(0.06) == "refuted"


def test_the_rules_of_each_contrast():
    lifted = {"imagepiece_patch": 3.0, "imagepiece_conv": 3.0}
    found = contrasts.contrasts(made_up(**lifted))
    holm = statistics.holm([each.p for each in found])
    verdicts = [each.verdict(p) for each, p in zip(found, holm, strict=True)]
    assert verdicts[::2] == ["supported", "supported"] and verdicts[1] != "supported"
    found = contrasts.contrasts(made_up(imagepiece_conv=-3.0))
    holm = statistics.holm([each.p for each in found])
    verdicts = [each.verdict(p) for each, p in zip(found, holm, strict=True)]
    assert verdicts == ["refuted"] * 3


def results(accuracies):
    """JSONs of runs."""
    return [
        {
            "system": name,
            "seed": seed,
            "acc1": rates["trained"],
            "settings": {"keep_rate": 0.8},
            "harsher": {}
            if name.startswith("dense")
            else {rate: {"acc1": rates[rate]} for rate in ("0.6", "0.4")},
        }
        for name, seeds in accuracies.items()
        for seed, rates in seeds.items()
    ]


def test_runs_are_read_with_their_own_rate():
    found = made_up()
    for each in found.values():
        for rates in each.values():
            rates["0.8"] = rates["trained"]
    read = contrasts.read(results(found))
    for ours, theirs in zip(
        contrasts.contrasts(read), contrasts.contrasts(found), strict=True
    ):
        np.testing.assert_allclose(ours.points, theirs.points)


def test_the_page_has_a_section_where_all_six_systems_are_there():
    made = results(made_up(imagepiece_conv=3.0, imagepiece_patch=3.0))
    text = contrasts.section(made)
    assert "Over 6 seeds" in text and "| P1 | merging beats dropping |" in text
    assert "6 seeds show 0.84 points in four of five" in text
    assert "(1.2 of P2" in text
    assert "| supported |" in text
    assert "ImagePiece, conv stem - dense, patch stem (the paper's)" in text
    some = [one for one in made if one["system"] != "dropping_patch"]
    assert contrasts.section(some) == ""
    alone = [one for one in made if one["seed"] == 0]
    assert contrasts.section(alone) == ""
    other = [one | {"settings": {"keep_rate": 0.5}} for one in made]
    assert contrasts.section(other) == ""


def test_schedules_in_training_are_compared_two_sided():
    rng = np.random.default_rng(4)
    systems = [name for _, *pair in contrasts.TRAINED.values() for name in pair]
    acc1 = {name: rng.normal(60, 0.4, SEEDS) for name in systems}
    acc1["tome_proportional"] -= 2.0
    runs = [
        {"system": name, "seed": seed, "acc1": values[seed]}
        for name, values in acc1.items()
        for seed in range(SEEDS)
    ]
    text = contrasts.trained_schedules(runs)
    assert "Over 6 seeds" in text
    lines = [line for line in text.splitlines() if line.startswith("| T")]
    want = [
        scipy.stats.ttest_rel(acc1[ours], acc1[theirs]).pvalue
        for _, ours, theirs in contrasts.TRAINED.values()
    ]
    for line, p in zip(lines, want, strict=True):
        assert f"| {p:.3g} |" in line
    assert "| -" in lines[1] and lines[1].endswith("| decided |")
    assert contrasts.trained_schedules(runs[:1]) == ""
