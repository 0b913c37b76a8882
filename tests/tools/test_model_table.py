"""The page of measured models is what was measured, and nothing else."""

import json

from tests.runs import ROOT
from tools import model_table


def test_the_page_is_that_of_the_stored_measurements():
    lines = model_table.MEASURED.read_text("utf-8").splitlines()
    rows, largest = [*map(json.loads, lines)], json.loads(model_table.WHOLE.read_text())
    page = ROOT / "docs" / "tables" / "parity.md"
    assert page.read_text("utf-8") == model_table.page(rows, largest)
    assert len(model_table.last(rows, "family")) > 15
    assert len(model_table.last(rows, "layout")) > 20
    # What README says of them.
    assert max(row[k] for row in rows for k in ("logits", "tokens") if k in row) < 1e-5


def test_a_later_measurement_replaces_an_earlier_one():
    old = {"family": "DeiT", "name": "deit_ti", "fields": {}, "parameters": 5000}
    old |= {"logits": 3e-4, "tokens": 1e-4, "jax": "1", "timm": "2"}
    new = old | {"fields": {"depth": 2}, "logits": 1.24e-6, "timm": "3"}
    other = {"layout": "names", "logits": 2e-7, "jax": "1"}
    newer = {"layout": "sizes", "logits": 2e-7, "jax": "2"}
    largest = {"a": {"parameters": 6_716_035_072, "published": 6.716e9, "source": "S"}}
    text = model_table.page([old, other, new, newer], largest)
    start = "| DeiT | `deit_ti`, depth 2 | class, received, energy, shift | "
    assert start + "5,000 | 1.2e-06 | 1.0e-04 |" in text
    assert "3.0e-04" not in text and "Versions: jax 1, timm 3." in text
    assert "| `names` | 2.0e-07 |" in text and "Versions: jax 1 and 2." in text
    assert "| `a` | 6,716,035,072 | 6.716 billion | S |" in text
