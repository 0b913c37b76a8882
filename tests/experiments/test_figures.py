import json

import numpy as np
import pytest

from tests.helpers import markdown

pytest.importorskip("matplotlib")

from experiments import figures

TABLES = markdown.ROOT / "docs/results"


def read_lines(name):
    text = (TABLES / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def recovery_points():
    points = {"before": [], "after": []}
    for line in read_lines("recovery.jsonl"):
        name = line["cell"]
        if "peaks" in name and line["measure"] == "KL":
            points[name] = line["curve"]
            points[f"_{name}, before"] = [[0, line["before"]]]
            points[f"_{name}, after"] = [[line["steps"], line["after"]]]
    return points


def comparison_points():
    points = {}
    for row in json.loads((TABLES / "results.json").read_text("utf-8"))["readme"]:
        name = "reduction"
        if row["typed"].startswith("image"):
            name = "smaller image, pixels"
        for field, text in (("lost", "off the shelf"), ("recovered", "recovered")):
            if field in row:
                curve = points.setdefault(f"{name}, {text}", [])
                curve.append([row["cpu"][0], row[field][0]])
    return points


STORED = {"recovery": recovery_points, "comparison": comparison_points}


@pytest.fixture(scope="module")
def drawings():
    return figures.draw_all()


@pytest.mark.parametrize("name", STORED)
def test_pictures_show_the_stored_figures(name, drawings):
    """python -m experiments.figures draws the picture again."""
    (axes,) = drawings[name].axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    stored = STORED[name]()
    assert drawn.keys() == stored.keys()
    for label, points in stored.items():
        points = np.reshape(points, (-1, 2))
        np.testing.assert_allclose(drawn[label], points, rtol=1e-9, atol=1e-9)
    path = markdown.ROOT / f"docs/{name}.svg"
    assert path.stat().st_size < 100_000
    assert f"]({name}.svg)" in markdown.section(f"docs/{name}.md")
    assert figures.points_digest(drawings[name]) in path.read_text("utf-8")


def test_a_changed_figure_changes_the_digest():
    stored = figures.results.read_results().readme
    before = figures.points_digest(figures.draw_comparison(stored))
    changed = json.loads(json.dumps(stored))
    changed[2]["recovered"][0] += 0.001
    assert figures.points_digest(figures.draw_comparison(changed)) != before
