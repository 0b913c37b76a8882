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
