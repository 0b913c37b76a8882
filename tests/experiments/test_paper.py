import pytest

from experiments import paper
from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME
from tests.helpers import tiny_paper
from tests.helpers.run_command import call


@pytest.mark.slow
def test_all_names_left_out_tables_and_measures_once(tmp_path, monkeypatch):
    """A model of four blocks lacks EViT's default blocks; overlap has no such row."""
    weights = tiny_paper.pretrained(tmp_path).origin.path
    words = ["--data", "digits", "--weights", weights, "--out", tmp_path]
    words += ["--limit", 20, "--eval-batch-size", 10, "--no-speed"]
    results = tmp_path / POINTS_FILE_NAME
    tables = {name: paper.TABLES[name] for name in ("overlap", "combos")}
    monkeypatch.setattr(paper, "TABLES", tables)
    first = call(paper.main, "all", *words)
    before = results.read_text()
    second = call(paper.main, *words, "all")
    assert first.status == second.status == 0, (first, second)
    assert "left out: combos\n" in first.out
    assert results.read_text() == before
    page = (tmp_path / "overlap.md").read_text()
    assert page in first.out and page in second.out
    assert "0.0 [0.0, 0.0] | 0.0 [0.0, 0.0]" in page  # ImagePiece's
