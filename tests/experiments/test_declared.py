"""The declared experiment: its page and tables, from the files of its runs alone."""

import itertools

import numpy as np
import pytest
import scipy.stats

from experiments import results, retokenization
from tests import markdown

SEEDS = 6
RATES = ("0.8", "0.6", "0.4")
BOUNDS = {"P1": 0, "P2": 0, "P3": -1}


@pytest.fixture(scope="module")
def runs():
    """The files of all runs, by system."""
    return retokenization.read_runs()


@pytest.fixture(scope="module")
def declared(runs):
    """accuracy(system, *rates) [seeds], the mean over the rates."""
    found = {}
    for run in itertools.chain(*runs.values()):
        by_rate = {rate: each["acc1"] for rate, each in run["harsher"].items()}
        by_rate |= {count: each["acc1"] for count, each in run["masked"].items()}
        by_rate["0.8"] = run["acc1"]
        found[run["system"], run["seed"]] = by_rate
    assert len(found) == 36

    def accuracy(system, *rates):
        by_seed = [found[system, seed] for seed in range(SEEDS)]
        return np.mean([[each[r] for each in by_seed] for r in rates or ("0.8",)], 0)

    return accuracy


@pytest.fixture(scope="module")
def to_dense(declared):
    """Points that ImagePiece and dropping have more than dense [seeds], by stem."""
    pairs = itertools.product(("imagepiece", "dropping"), ("patch", "conv"))
    return {
        (name, stem): declared(f"{name}_{stem}") - declared(f"dense_{stem}")
        for name, stem in pairs
    }


def student(points, digits=2, sign=""):
    """ "0.5 [-0.7, 1.7]", of SciPy's interval."""
    interval = scipy.stats.ttest_1samp(points, 0.0).confidence_interval(0.95)
    figures = (points.mean(), interval.low, interval.high)
    value, low, high = (f"{number:{sign}.{digits}f}" for number in figures)
    return f"{value} [{low}, {high}]"


@pytest.fixture(scope="module")
def contrasts(declared, to_dense):
    """Points of P1, P2 and P3 [seeds], as declared.md words them."""
    merging = [
        declared(f"imagepiece_{stem}", *RATES) - declared(f"dropping_{stem}", *RATES)
        for stem in ("conv", "patch")
    ]
    conv = to_dense["imagepiece", "conv"]
    patch = to_dense["imagepiece", "patch"]
    return {"P1": np.mean(merging, axis=0), "P2": conv - patch, "P3": conv}


def rows_of(name, label):
    """Cells of the rows of a page's tables that begin with `label`."""
    return [
        markdown.cells(row)
        for row in markdown.section(name).splitlines()
        if row.startswith(f"| {label} |")
    ]


def corrected(p):
    """Holm's, by hand."""
    order = np.argsort(p)
    found = np.empty(len(p))
    found[order] = np.maximum.accumulate(np.sort(p) * (3, 2, 1)).clip(max=1)
    return found


def test_verdicts_follow_from_the_runs(contrasts):
    """By the table of declared.md."""
    p = [
        scipy.stats.ttest_1samp(each, BOUNDS[name], alternative="greater").pvalue
        for name, each in contrasts.items()
    ]
    for (name, each), single, holm in zip(
        contrasts.items(), p, corrected(p), strict=True
    ):
        interval = scipy.stats.ttest_1samp(each, 0.0).confidence_interval(0.95)
        high = interval.high
        refuted = {"P1": high < 1, "P2": high <= 0, "P3": high <= -1}[name]
        verdict = "refuted" if refuted else "open"
        if interval.low > BOUNDS[name] and holm < 0.05:
            verdict = "supported"
        (cells,) = rows_of("docs/imagepiece.md", name)
        assert cells[2] == student(each)
        assert cells[3] == f"at most {BOUNDS[name]}"
        assert cells[4:] == [f"{single:.3g}", f"{holm:.3g}", verdict]


def test_figures_of_the_page_follow_from_the_runs(declared, contrasts, to_dense, runs):
    """docs/imagepiece.md."""
    lost = {f"dense - {', '.join(key)}": -points for key, points in to_dense.items()}
    by_stem = to_dense["dropping", "conv"] - to_dense["dropping", "patch"]
    paper = declared("imagepiece_conv") - declared("dense_patch")
    stem = declared("dense_conv") - declared("dense_patch")
    points = {"P1": contrasts["P1"], "P2 - that of dropping": contrasts["P2"] - by_stem}
    points |= lost | {"the paper's": paper, "stem": stem}
    figures = {name: student(each, 1) for name, each in points.items()}
    spread = [each.std(ddof=1) for each in contrasts.values()]
    errors = scipy.stats.t.ppf(0.975, SEEDS - 1) + scipy.stats.norm.ppf(0.8)
    reach = [errors * each / SEEDS**0.5 for each in spread]
    for name, values in (("deviation", spread), ("reach", reach)):
        figures |= {f"{name} {i}": f"{value:.1f}" for i, value in enumerate(values)}
    figures["expected reach"] = f"{errors * 0.6 / SEEDS**0.5:.2f}".lstrip("0")
    for name in ("conv", "patch"):
        own = runs[f"imagepiece_{name}"]
        alike = [run["merges"]["similarity"]["lowest first"][0] for run in own]
        figures[f"similarity, {name}"] = f"{np.mean(alike):.2f}"
    assert not markdown.lacking(figures, "docs/imagepiece.md")


def test_systems_are_in_the_file_of_results(declared):
    stored = results.read_results(results.FILE.read_text("utf-8"))
    rows = {row.method: row for row in stored.of("retokenization")}
    assert rows.keys() == set(retokenization.TITLES.values())
    for name, title in retokenization.TITLES.items():
        assert rows[title].parts == pytest.approx([*declared(name)])


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
