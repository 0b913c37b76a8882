"""The declared contrasts, on made-up accuracies, against SciPy and by hand."""

import numpy as np
import pytest
import scipy.stats

from experiments import retokenization
from imagepiece_jax.evaluate import statistics

RATES = retokenization.RATES


def made_up(seed=0, **lifts):
    """Runs of six systems and seeds; `lifts` are points added to a system."""
    rng = np.random.default_rng(seed)
    found = []
    for name in retokenization.TITLES:
        for number in retokenization.SEEDS:
            acc1 = 60 + lifts.get(name, 0.0) + rng.normal(scale=0.3, size=3)
            harsher = {
                rate: {"acc1": a} for rate, a in zip(RATES[1:], acc1, strict=False)
            }
            run = {"system": name, "seed": number, "acc1": acc1[2]}
            found.append(run | {"settings": {"keep_rate": 0.8}, "harsher": harsher})
    return found


def points(runs, system, *rates):
    """Mean accuracy over rates [seeds]."""
    own = [run for run in runs if run["system"] == system]
    every = [{"0.8": run["acc1"]} for run in own]
    for by_rate, run in zip(every, own, strict=True):
        by_rate |= {rate: each["acc1"] for rate, each in run["harsher"].items()}
    return np.array([np.mean([by_rate[rate] for rate in rates]) for by_rate in every])


def contrasts(runs):
    return retokenization.contrasts(retokenization.Accuracies(runs))


def test_contrasts_are_those_of_the_declaration():
    found = made_up(imagepiece_conv=2.0, dense_patch=-3.0)
    p1, p2, p3 = contrasts(found)
    merging = [
        points(found, f"imagepiece_{stem}", *RATES)
        - points(found, f"dropping_{stem}", *RATES)
        for stem in ("conv", "patch")
    ]
    np.testing.assert_allclose(p1.points, np.mean(merging, axis=0))
    conv, patch = (
        points(found, f"imagepiece_{stem}", "0.8")
        - points(found, f"dense_{stem}", "0.8")
        for stem in ("conv", "patch")
    )
    np.testing.assert_allclose(p2.points, conv - patch)
    np.testing.assert_allclose(p3.points, conv)
    assert [each.bound for each in (p1, p2, p3)] == [0, 0, -1]


@pytest.mark.parametrize("seed", range(4))
def test_tests_and_intervals_are_scipys(seed):
    for each in contrasts(made_up(seed)):
        test = scipy.stats.ttest_1samp(
            each.points, popmean=each.bound, alternative="greater"
        )
        assert each.p == pytest.approx(test.pvalue, rel=1e-9)
        interval = scipy.stats.ttest_1samp(each.points, 0.0).confidence_interval(0.95)
        assert each.estimate == pytest.approx(
            (each.points.mean(), interval.low, interval.high), rel=1e-9
        )


def contrast(values, strictly=True):
    return retokenization.Contrast("P", "", np.array(values), 0.0, 1.0, strictly)


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


@pytest.mark.parametrize(
    "lifts, verdicts",
    [
        (
            {"imagepiece_patch": 3, "imagepiece_conv": 3},
            ["supported", None, "supported"],
        ),
        ({"imagepiece_conv": -3}, ["refuted"] * 3),
    ],
)
def test_the_rules_of_each_contrast(lifts, verdicts):
    found = contrasts(made_up(**lifts))
    holm = statistics.holm([each.p for each in found])
    for each, p, verdict in zip(found, holm, verdicts, strict=True):
        if verdict:
            assert each.verdict(p) == verdict
        else:
            assert each.verdict(p) != "supported"
