"""The order of sources; models made by it are in test_layouts and test_load."""

import pytest
from imagepiece_jax.models.spec import ModelSpec

from imagepiece_jax.weights import infer
from tests.runs import ROOT


def test_the_page_prints_the_table():
    assert infer.table() in (ROOT / "docs" / "models.md").read_text("utf-8")


@pytest.mark.parametrize("row", infer.ORDER)
def test_the_first_source_that_says_a_field_decides(row):
    """Whatever the order that they are given in."""
    sources = infer.ORDER[row]
    for first, source in enumerate(sources):
        said = {other: ModelSpec(depth=99) for other in sources[first + 1 :]}
        said[source] = ModelSpec(depth=1)
        for name in sources[:first]:
            said[name] = ModelSpec(num_heads=3)  # another field
        assert infer.merged(row, said).depth == 1
