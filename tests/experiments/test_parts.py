"""The crossed parts: cells that resolve, shares and tests against other code."""

import numpy as np
import pytest
import scipy.stats

from experiments import controls, dropping, parts, study
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import decode_bits, read_lines
from imagepiece_jax.models import registry
from imagepiece_jax.reduction.reduction import DENSE, Reduction
from tests import markdown


@controls.registered()
def test_every_cell_is_a_method_with_counts():
    """But for those of the curve, which is no schedule of the package any more."""
    found = [*parts.cells()]
    assert len(found) == len(set(found)) == 6 * 9 * 2 + 7 * 9
    for cell in found:
        if cell.schedule == "curve":
            continue
        reduction = Reduction.read(dropping.as_method(cell.reduction))
        assert reduction.method.macs == 0.5
        assert reduction.method.counts == cell.schedule
        assert reduction.prop_attn == cell.prop_attn


def test_shares_are_those_of_an_analysis_of_variance():
    table = np.random.default_rng(0).normal(size=(5, 7))
    slow = np.zeros(3)
    for i in range(5):
        for j in range(7):
            row = table[i].mean()
            column = table[:, j].mean()
            slow[0] += (column - table.mean()) ** 2
            slow[1] += (row - table.mean()) ** 2
            slow[2] += (table[i, j] - row - column + table.mean()) ** 2
    np.testing.assert_allclose(parts.shares(table), slow / slow.sum())


# The committed points and pages

FOLDER = parts.FOLDER


@pytest.fixture(scope="module")
def points():
    return parts.read_points()


def test_the_page_has_the_tables_of_the_points(points):
    page = (FOLDER / "parts.md").read_text("utf-8")
    found = parts.measured_cells(points)
    grids = [parts.grid(found, "merged", sized) for sized in (True, False)]
    grids += [parts.grid(found, "dropped", False)]
    grids += [parts.costs(found, parts.by_choice(found)[:35])]
    families = [parts.contrasts(found), [parts.primary(points)]]
    for table in (*grids, *map(parts.tests_table, families)):
        assert table in page


@pytest.mark.parametrize(
    "place, ours, theirs, schedules",
    [
        (0, ("tome", "merged"), ("tome", "merged"), ("proportional", "constant")),
        (1, ("pitome", "merged"), ("tome", "merged"), parts.SCHEDULES),
        (2, ("tome", "dropped"), ("tome", "merged"), parts.SCHEDULES),
    ],
)
def test_contrasts_are_scipys_tests(points, place, ours, theirs, schedules):
    found = parts.measured_cells(points)

    def log_kl(part, schedule):
        cell = found.get(parts.Cell(*part, schedule, part[1] == "merged"))
        return None if cell is None else np.log(np.maximum(cell.kl[1::2], 1e-8))

    if place == 0:
        changes = [log_kl(ours, schedules[0]) - log_kl(theirs, schedules[1])]
    else:
        pairs = [[log_kl(part, s) for part in (ours, theirs)] for s in schedules]
        changes = [a - b for a, b in pairs if a is not None and b is not None]
    test = parts.contrasts(found)[place]
    change = np.mean(changes, axis=0)
    assert test.change.value == pytest.approx(change.mean())
    assert test.p == pytest.approx(scipy.stats.ttest_1samp(change, 0).pvalue)


def test_the_primary_test_is_of_odd_rows(points):
    cell = parts.Cell("mctf", "merged", "diffrate", True, parts.PUBLISHED_COST)
    ours = points[parts.reduction_key(cell.reduction)]
    theirs = points[parts.reduction_key(parts.PUBLISHED)]
    want = scipy.stats.ttest_rel(ours.kl[1::2], theirs.kl[1::2])
    assert parts.primary(points).p == pytest.approx(want.pvalue)


SETS = {
    "fusion": {"name": "mctf", "counts": "diffrate", "prop_attn": True},
    "most attended": {"name": "diffrate", "counts": "diffrate", "prop_attn": True},
    "ToMe": {"name": "tome"},
}
SETS["fusion by class attention"] = SETS["fusion"] | {"score": "class"}
STAGES = "most attended, stages-3-6-9"
SETS[STAGES] = SETS["most attended"] | {"counts": "stages-3-6-9"}


@pytest.mark.parametrize("experiment, images", [("level", 13394), ("level-crop", 3925)])
def test_level_is_that_of_the_images(experiment, images):
    """Every row of elsewhere.md: accuracy, and the paired difference to dense."""
    found = {}
    for point in read_lines(FOLDER / "elsewhere.jsonl"):
        if point["experiment"] == experiment:
            side, *_ = point["setting"].get("resized", [parts.SIDE])
            key = parts.reduction_key(point["setting"]["reduction"], side)
            found[key] = decode_bits(point["result"]["right"], images)
    dense = parts.reduction_key(DENSE)
    table, (faster,) = markdown.tables(
        markdown.section("docs/tables/parts/elsewhere.md", f"`{experiment}`")
    )
    assert len(table) == len(found) == 19
    assert len(found[dense]) == images

    def right_of(name, share):
        if name in SETS:
            macs = round(float(share), 3)
            return found[parts.reduction_key({**SETS[name], "macs": macs})]
        side = int((name + ", 224").split(", ")[1].split()[0])
        return found[parts.reduction_key(DENSE, side)]

    for row in table:
        right = right_of(row["set"], row["share of the MACs"])
        accuracy = statistics.format_estimate(statistics.accuracy(right))
        assert row["acc1, %"] == accuracy, row
        if row["points to dense"]:
            change = statistics.paired_difference(right, found[dense])
            assert row["points to dense"] == statistics.format_difference(change), row
        if row["level"]:
            assert (row["level"] == "yes") == (change.low > -1.5), row
    pair = right_of(STAGES, 0.6), right_of("most attended", 0.5)
    change = statistics.paired_difference(*pair)
    assert faster["difference"] == statistics.format_difference(change)
    decided = statistics.mcnemar(*pair) < study.LEVEL
    assert (faster["verdict"] == "decided") == decided


def test_pages_say_by_which_crop_the_points_were_measured():
    """That of each point's own setting."""
    ways = {}
    for file in ("points.jsonl", "elsewhere.jsonl"):
        for point in read_lines(FOLDER / file):
            text = Preprocessing.from_json(point["setting"]).text
            ways.setdefault(point["experiment"], set()).add(text)
    assert ways["level"] == {study.enlarged(parts.SIDE).text}
    weights = Preprocessing(parts.SIDE, **registry.published_crop("deit_ti"))
    assert ways["level-crop"] == {weights.text}
    assert ways["parts"] == ways["carried"] == {study.as_it_is(parts.SIDE).text}
    for experiment, texts in ways.items():
        place = ("docs/tables/parts/elsewhere.md", f"`{experiment}`")
        if experiment == "parts":
            place = ("docs/tables/parts/parts.md",)
        section = markdown.section(*place)
        for text in texts:
            assert text in section.replace("\n", " "), experiment


def test_figures_of_pages_are_those_of_the_points(points):
    found = parts.measured_cells(points)

    def kl(*cell):
        return f"{found[parts.Cell(*cell)].kl[parts.ODD].mean():.3f}"

    cells = [
        ("evit", "dropped", schedule, False)
        for schedule in ("imagepiece", "stages-3-6-9", "proportional")
    ]
    cells += [("tome", "merged", s, True) for s in ("imagepiece", "diffrate")]
    assert not markdown.lacking({c: kl(*c) for c in cells}, "docs/imagepiece.md")
    times = {"B3": f"{np.exp(parts.contrasts(found)[2][2].value):.1f}"}
    page = markdown.section("docs/tables/parts/elsewhere.md", "`decisions`")
    shares = {}
    for row in markdown.tables(page)[0]:
        if row["other class than float32"]:
            value = markdown.interval(row["other class than float32"])[0]
            shares.setdefault(row["decisions in bfloat16"], []).append(value)
    dense, *shares["bfloat16"] = shares["bfloat16"]
    shares["scores"] = [*shares.pop("unrounded"), *shares.pop("float32")]
    spans = {kind: f"{min(s)} to {max(s)}" for kind, s in shares.items()}
    figures = times | spans | {"dense": f"{dense} %"}
    page = "docs/tables/parts/parts.md", ""
    for fate, cells in (("merged", "6 x 9"), ("dropped", "7 x 9")):
        for part in ("schedule", "selector"):
            row = {"fate": fate, "cells": cells, "part": part}
            share = markdown.cell(*page, row, "share of log KL, %")
            figures[fate, part] = share.partition(" ")[0]
    assert not markdown.lacking(figures, "docs/comparison.md")
