"""The pages have the figures of docs/results/results.json."""

import pytest

from experiments import results
from imagepiece_jax.models.create import create_model, with_plan
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers import markdown


@pytest.fixture(scope="module")
def stored():
    return results.read_results()


def test_pages_have_the_files_tables(stored):
    tables = results.page_tables(stored)
    used = []
    for name in results.PAGES:
        text = (results.ROOT / name).read_text("utf-8")
        assert results.fill_tables(text, tables) == text, name
        used += results.MARKED.findall(text)
    assert {name for _, name, _ in used} == set(tables)


def test_readme_has_the_files_rows(stored):
    (rows, *_) = markdown.tables(markdown.section("README.md"))
    assert len(rows) == len(stored.readme)
    for row, stored_row in zip(rows, stored.readme, strict=True):
        assert row["typed"] == f"`{stored_row['typed']}`"
        assert float(row["multiply-adds"]) == round(stored_row["multiply_adds"], 2)
        for column, name in (("lost", "lost"), ("lost, recovered", "recovered")):
            shown = row[f"points {column}"]
            if name not in stored_row:  # `recover` trains no smaller images
                assert shown == "not recovered"
                continue
            interval = markdown.read_interval(shown)
            assert interval == pytest.approx(stored_row[name], abs=0.051)


def test_readmes_typed_shares_are_the_measured_reductions(stored):
    """A share gives the tokens and reducers of its row's reduction."""
    dense = create_model("deit_tiny_patch16_224.fb_in1k")
    for row in stored.readme:
        argument, _, value = row["typed"].partition("=")
        assert (argument == "reduction") == ("reduction" in row)
        if argument == "image_size":
            continue
        by_share = with_plan(dense, Reduction.read(float(value)))
        measured = with_plan(dense, Reduction.read(row["reduction"]))
        for typed_layer, layer in zip(by_share.plan, measured.plan, strict=True):
            assert typed_layer.counts == layer.counts
            reducers = [
                part.step and type(part.step.reducer) for part in (typed_layer, layer)
            ]
            assert reducers[0] == reducers[1]


def test_rows_name_all_sources(stored):
    named = set()
    for row in stored.readme:
        names = ("source", "recovered_source", "h200_source")
        named |= {row[name] for name in names if name in row}
    assert named == set(stored.sources)
