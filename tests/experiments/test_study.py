"""What studies share: results measured once; declared tests, by SciPy and by hand."""

from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from experiments import study
from experiments.study import Test
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.statistics import Estimate
from tests import markdown
from tests.experiments import lines

Test.__test__ = False  # no class of tests


class Cell(NamedTuple):
    name: str


FIRST = Cell("first")
SECOND = Cell("second")
DIGESTS = {"weights": "w", "images": "i"}


def test_a_cell_is_measured_once_into_a_line(tmp_path):
    measured = []

    def measure(cell):
        measured.append(cell)
        return {"kl": (0.5, len(measured))}

    folder = tmp_path / "new"
    study.run([FIRST], folder, DIGESTS, measure)
    study.run([FIRST, SECOND], folder, DIGESTS, measure)
    study.run([SECOND, FIRST], folder, DIGESTS, measure)
    assert measured == [FIRST, SECOND]
    found = study.read([SECOND, FIRST, Cell("third")], folder)
    assert [*found] == [SECOND, FIRST]
    assert found[FIRST] == lines.read(folder)["first"]
    assert {**DIGESTS, "kl": [0.5, 1]}.items() <= found[FIRST].items()
    assert {"jax", "device", "commit"} <= set(found[FIRST]["versions"])
    others = DIGESTS | {"images": "others"}
    with pytest.raises(InputError, match="first is of other weights or images"):
        study.run([Cell("third"), FIRST], folder, others, measure)
    assert len(measured) == 2


def test_what_fails_leaves_no_line(tmp_path):
    def stopped(cell):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run([FIRST], tmp_path, DIGESTS, stopped)
    assert not study.read_runs(tmp_path)


def test_lines_of_another_folder_are_appended_once(tmp_path):
    (tmp_path / "there").mkdir()
    lines.write(tmp_path / "there", {"second": {"kl": 2}})
    lines.write(tmp_path, {"first": {"kl": 1}})
    file = tmp_path / study.FILE
    joined = file.read_text() + (tmp_path / "there" / study.FILE).read_text()
    file.write_text(joined)
    assert [*study.read_runs(tmp_path)] == ["first", "second"]
    file.write_text(joined + joined)
    with pytest.raises(InputError, match="runs.jsonl: first has two lines; remove"):
        study.read_runs(tmp_path)


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
