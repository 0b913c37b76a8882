import json

import pytest

from tests.helpers.small_runs import ROOT

pytest.importorskip("matplotlib")

from experiments import figures


def test_pictures_show_the_stored_figures():
    """python -m experiments.figures draws the pictures again."""
    for name, drawing in figures.draw_all().items():
        picture = (ROOT / f"docs/{name}.svg").read_text("utf-8")
        assert len(picture) < 100_000
        assert f"]({name}.svg)" in (ROOT / f"docs/{name}.md").read_text("utf-8")
        assert figures.points_digest(drawing) in picture


def test_a_changed_figure_changes_the_digest():
    rows = figures.results.read_results().readme
    before = figures.draw_comparison(rows)
    by_label = {line.get_label(): line.get_xydata() for line in before.axes[0].lines}
    speed, lost = by_label["reduction, recovered"][0]
    assert (speed, lost) == (rows[0]["cpu"][0], rows[0]["recovered"][0])
    changed = json.loads(json.dumps(rows))
    changed[2]["recovered"][0] += 0.001
    after = figures.draw_comparison(changed)
    assert figures.points_digest(after) != figures.points_digest(before)
