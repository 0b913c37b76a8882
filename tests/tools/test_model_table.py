"""The page of measured models is what was measured, and nothing else."""

import itertools
import json

from tests.runs import ROOT
from tools import model_table


def test_the_page_is_that_of_the_stored_measurements():
    lines = model_table.MEASURED.read_text("utf-8").splitlines()
    rows = [*map(json.loads, lines)]
    largest = json.loads(model_table.WHOLE.read_text())
    page = ROOT / "docs" / "results" / "parity.md"
    assert page.read_text("utf-8") == model_table.page(rows, largest)
    assert len(model_table.last(rows, "family")) > 15
    assert len(model_table.last(rows, "layout")) > 20
    # What README says of them.
    assert (
        max(
            row[k]
            for row, k in itertools.product(rows, ("logits", "tokens"))
            if k in row
        )
        < 1e-5
    )
