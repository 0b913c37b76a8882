"""What studies share: results measured once; declared tests, by SciPy and by hand."""

import json

import numpy as np
import pytest
import scipy.stats

from experiments import study
from experiments.study import Test
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.statistics import Estimate
from tests import markdown

Test.__test__ = False  # no class of tests


SETTING = {"kind": "accuracy", "reduction": {"name": "tome", "blocks": (3, 6)}}


def test_a_result_is_measured_once_for_a_setting(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"acc1": 80.0, "counts": (1, 2)}

    folder = tmp_path / "new"
    first = study.Files(folder).result(SETTING, measure, "tome")
    assert first == {"acc1": 80.0, "counts": [1, 2]}
    assert SETTING in study.Files(folder)
    assert study.Files(folder).result(SETTING, measure, "tome") == first
    other = SETTING | {"images": 9}
    assert other not in study.Files(folder)
    study.Files(folder).result(other, measure, "tome")
    assert len(calls) == len(list(folder.glob("accuracy.tome.*.json"))) == 2
    path = study.Files(folder).path(SETTING)
    found = json.loads(path.read_text())
    assert found["setting"]["reduction"]["blocks"] == [3, 6]
    assert {"jax", "device", "commit"} <= set(found["versions"])
    path.write_text(json.dumps(found | {"setting": {}}))
    with pytest.raises(InputError, match="is of other weights or images"):
        study.Files(folder).result(SETTING, measure, "tome")


def test_what_fails_leaves_no_file(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.Files(tmp_path).result(SETTING, stopped, "tome")
    assert not list(tmp_path.iterdir())


def test_a_paired_test_is_students():
    draw = np.random.default_rng(0)
    theirs = draw.normal(size=40)
    ours = theirs + draw.normal(0.3, 1, 40)
    want = scipy.stats.ttest_rel(ours, theirs)
    test = study.paired_test("L1", "KL", ours, theirs)
    assert test.p == pytest.approx(want.pvalue)
    interval = want.confidence_interval(0.95)
    assert test.change[1:] == pytest.approx((interval.low, interval.high))
    assert study.paired_test("L1", "KL", ours, None) == Test("L1", "KL", None, 1.0)


def test_tests_are_corrected_together_with_those_that_are_missing():
    change = Estimate(0.12345, 0.1, 0.2)
    tests = [
        Test("A", "KL", change, 0.01, "holds"),
        Test("B", "points", change._replace(low=-0.1), 0.03),
        Test("C", "KL", None),
        Test("D", "KL", change, 0.015),
    ]
    table, note = study.tests_table(tests).split("\n\n")
    (rows,) = markdown.tables(table)
    assert [row["test"] for row in rows] == ["A", "B", "D"]
    # The smallest p counts four times, the next one three times, the third twice.
    assert [row["p, Holm"] for row in rows] == ["0.04", "0.06", "0.045"]
    assert [row["verdict"] for row in rows] == ["holds", "open", "decided"]
    assert rows[0]["difference"] == "+0.123 [+0.100, +0.200]"
    assert rows[1]["difference"] == "+0.12 [-0.10, +0.20], within noise"
    assert note.endswith(": C.")


def test_what_was_tested_is_said_where_tests_differ():
    """A loss that is below a margin is no difference, and has a p of its own."""
    change = Estimate(-4.02, -4.5, -3.54)
    level = study.Test("R3", "points", change, 1.0, "level", "above -1.5")
    usual = study.Test("R1", "points", change, 0.001)
    (rows,) = markdown.tables(study.tests_table([usual, level]))
    assert [row["tested: it is"] for row in rows] == ["not 0", "above -1.5"]
    assert [row["verdict"] for row in rows] == ["decided", "open"]
    (rows,) = markdown.tables(study.tests_table([usual, usual]))
    assert "tested: it is" not in rows[0]
