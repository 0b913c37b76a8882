"""The page of the comparison and README's table are those of the stored JSON."""

import json
import shutil

from imagepiece_jax.experiments import compare_page
from tests.experiments.test_compare import MADE_UP
from tools import comparison


def test_the_page_and_readme_are_those_of_the_stored_json():
    """Before there is one, README refers to no page of a comparison."""
    whole = comparison.README.read_text("utf-8")
    _, between, _ = comparison.parts(whole)
    if not comparison.KEPT.exists():
        assert comparison.PAGE.name not in whole and not comparison.PAGE.exists()
        return
    report = json.loads(comparison.KEPT.read_text("utf-8"))
    assert comparison.PAGE.read_text("utf-8") == comparison.page(report)
    assert between == comparison.readme(report)
    assert comparison.PLOT.is_file()


def test_the_tool_changes_what_is_between_the_marks_alone(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    kept = tmp_path / "docs" / "comparison.json"
    places = {"KEPT": kept, "PAGE": kept.with_suffix(".md")}
    places |= {"PLOT": kept.with_suffix(".png"), "README": tmp_path / "README.md"}
    shutil.copy(comparison.README, tmp_path / "README.md")
    for name, path in places.items():
        monkeypatch.setattr(comparison, name, path)
    new = tmp_path / "compare.json"
    new.write_text(compare_page.dumps(MADE_UP), "utf-8")
    before = comparison.parts(comparison.README.read_text("utf-8"))
    comparison.main([str(new)])
    comparison.main([])
    after = comparison.parts(comparison.README.read_text("utf-8"))
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] == comparison.readme(MADE_UP) and "↑ |" in after[1]
    assert max(map(len, after[1].splitlines())) <= comparison.WIDTH
    assert kept.read_bytes() == new.read_bytes()
    assert "(comparison.png)" in places["PAGE"].read_text("utf-8")
    assert places["PLOT"].is_file()
