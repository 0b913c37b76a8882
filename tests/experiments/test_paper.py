import pytest

import imagepiece_jax
from experiments import paper
from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME
from tests.helpers import tiny_paper
from tests.helpers.run_command import call


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    weights = tiny_paper.pretrained(tmp_path_factory.mktemp("weights"))
    folder = tmp_path_factory.mktemp("saved") / "weights"
    imagepiece_jax.save(weights, folder)
    few = ("--limit", 20, "--eval-batch-size", 10, "--no-speed")
    return ["--data", "digits", "--weights", folder, *few]


@pytest.mark.slow
def test_all_names_left_out_tables_and_measures_once(tmp_path, words):
    """A model of four blocks lacks EViT's default blocks; overlap has no such row."""
    names = ("overlap", "combos")
    results = tmp_path / POINTS_FILE_NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "TABLES", {name: paper.TABLES[name] for name in names})
        first = call(paper.main, "all", *words, "--out", tmp_path)
        before = results.read_text()
        second = call(paper.main, *words, "all", "--out", tmp_path)
    assert first.status == second.status == 0, (first, second)
    assert "left out: combos\n" in first.out
    assert results.read_text() == before
    page = (tmp_path / "overlap.md").read_text()
    assert page in first.out
    assert page in second.out
    assert "0.0 [0.0, 0.0] | 0.0 [0.0, 0.0]" in page  # ImagePiece's
