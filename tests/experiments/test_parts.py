"""The crossed parts: cells that resolve, shares and tests against other code."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments import parts
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.reduction import methods, settings
from tests.experiments import tiny_context


def test_every_cell_is_a_method_with_counts():
    found = [*parts.cells()]
    assert len(found) == len(set(found)) == 6 * 9 * 2 + 7 * 9
    for cell in found:
        fields, of_model = settings.split(cell.reduction)
        method = methods.create(**fields)
        assert (method.macs, method.counts) == (0.5, cell.schedule)
        assert of_model == {"prop_attn": cell.prop_attn}


def test_shares_by_hand():
    """Means 0, 3 and 1, 2: squares 2 * 2.25 * 2, 2 * .25 * 2, and 1 of what is left."""
    table = np.array([[0.0, 2.0], [2.0, 2.0]]) + np.array([[-0.5, -0.5], [0.5, 0.5]])
    # Rows .5 and 2.5, columns 1 and 2: 2 * (1 + 1) of selectors, 2 * .5 of schedules.
    np.testing.assert_allclose(parts.shares(table), [1 / 6, 4 / 6, 1 / 6])
    additive = np.add.outer([0.0, 1.0, 5.0], [2.0, 2.0, 3.0, 4.0])
    assert parts.shares(additive)[2] == pytest.approx(0, abs=1e-12)


def test_shares_are_those_of_an_analysis_of_variance():
    table = np.random.default_rng(0).normal(size=(5, 7))
    slow = np.zeros(3)
    for i in range(5):
        for j in range(7):
            row, column = table[i].mean(), table[:, j].mean()
            slow[0] += (column - table.mean()) ** 2
            slow[1] += (row - table.mean()) ** 2
            slow[2] += (table[i, j] - row - column + table.mean()) ** 2
    np.testing.assert_allclose(parts.shares(table), slow / slow.sum())


def test_paired_is_scipys_test():
    ours, theirs = np.random.default_rng(1).normal(size=(2, 40))
    want = scipy.stats.ttest_rel(ours, theirs)
    found = parts.paired("", ours, theirs)
    assert found.p == pytest.approx(want.pvalue)
    low, high = want.confidence_interval()
    assert found.estimate == pytest.approx(((ours - theirs).mean(), low, high))
    assert parts.paired("", ours, ours).p == 1


def made_up():
    """Cells whose log KL is that of method and schedule, and noise by image."""
    rng = np.random.default_rng(2)
    found = {}
    for cell in parts.cells():
        level = len(cell.method) + parts.SCHEDULES.index(cell.schedule)
        kl = np.exp(level + 2 * (cell.fate == "dropped") + rng.normal(0, 0.1, 60))
        found[cell] = parts.Measured(kl, rng.random(60) < 0.8, 0.5)
    return found


def test_contrasts_find_what_was_put_in():
    found = made_up()
    first, second, third = parts.contrasts(found)
    assert first.estimate.value == pytest.approx(1, abs=0.1)
    assert second.estimate.value == pytest.approx(len("pitome") - len("tome"), abs=0.1)
    assert third.estimate.value == pytest.approx(2, abs=0.1)
    # A schedule that one of them lacks counts for neither.
    lacks = {
        cell: each
        for cell, each in found.items()
        if (cell.method, cell.schedule) != ("pitome", "curve")
    }
    assert parts.contrasts(lacks)[1].estimate.value == pytest.approx(2, abs=0.1)
    schedules, values = parts.balanced(lacks, "merged", [*parts.MERGING])
    assert "curve" not in schedules and values.shape == (6, 8, 30)


def test_tests_of_chosen_sets_are_of_odd_rows():
    rng = np.random.default_rng(3)
    kl, right = rng.random((2, 60)), rng.random((2, 60)) < 0.7
    one, other = (parts.Measured(k, r, 0.5) for k, r in zip(kl, right, strict=True))
    beside = {"chosen": one, "published": other, "ToMe": other, "MCTF": one}
    (test,) = parts.primary(beside)
    want = scipy.stats.ttest_rel(kl[0, 1::2], kl[1, 1::2])
    assert test.p == pytest.approx(want.pvalue)
    tests = parts.secondary(one, other, beside)
    assert len(tests) == 9
    assert tests[4].p == statistics.mcnemar(right[0, 1::2], right[1, 1::2])
    table = parts.tests_table(tests)
    assert len(table.splitlines()) == 11


def test_pages_of_cells_leave_out_what_was_not_reached():
    found = made_up()
    gone = parts.Cell("tome", "merged", "curve", True, parts.COST)
    del found[gone]
    (line,) = [
        x
        for x in parts.grid(found, "merged", True).splitlines()
        if x.startswith("| similar keys |")
    ]
    assert line.endswith("|  |") or line.endswith("| |")
    chosen = [next(iter(found))]
    assert parts.costs(found, chosen).splitlines()[-1].count("/") == 1


def test_divergence_is_scipys(tmp_path):
    """Of every image; a cost out of reach is an empty cell, a resumed one is read."""
    weights = tiny_context.pretrained(tmp_path)
    context = tiny_context.context(tmp_path / "out", weights)
    found = parts.Divergence(context)
    reduction = {"name": "tome", "macs": 0.7, "counts": "proportional"}
    measured = found.of(reduction)
    chances = []
    for each in (settings.DENSE, reduction):
        _, logits, _ = found._logits(each)
        chances.append(scipy.special.softmax(logits.astype(float), axis=1))
    want = scipy.stats.entropy(*chances, axis=1)
    np.testing.assert_allclose(measured.kl, want, rtol=1e-5, atol=1e-12)
    assert measured.share == pytest.approx(0.7, abs=0.02) and want.max() > 1e-6
    assert found.of({"name": "tome", "macs": 0.01}) is None
    again = parts.Divergence(context).of(reduction)
    np.testing.assert_array_equal(again.right, measured.right)
    assert len((tmp_path / "out" / "points.jsonl").read_text().splitlines()) == 1
    context.cache.close()
