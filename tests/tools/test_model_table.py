import json

from tests.helpers.small_runs import ROOT
from tools import model_table


def test_the_page_equals_the_stored_figures():
    rows = [*map(json.loads, model_table.MEASURED.read_text("utf-8").splitlines())]
    largest = json.loads(model_table.WHOLE.read_text())
    page = ROOT / "docs" / "results" / "parity.md"
    assert page.read_text("utf-8") == model_table.parity_page(rows, largest)
    assert len(model_table.newest_rows(rows, "family")) > 15
    assert len(model_table.newest_rows(rows, "original")) > 20
    # README promises this bound.
    differences = [row.get(name, 0) for row in rows for name in ("logits", "tokens")]
    assert max(differences) < 1e-5
