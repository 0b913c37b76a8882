"""The pages have the figures of docs/results/results.json."""

import pytest

from experiments import results
from imagepiece_jax.models.create import create_model, with_plan
from imagepiece_jax.reduction.reduction import Reduction


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


def test_pictures_show_the_stored_figures():
    """python -m experiments.figures draws the pictures again."""
    pytest.importorskip("matplotlib")
    from experiments import figures

    for name, drawing in figures.draw_all().items():
        picture = (figures.DOCS / f"{name}.svg").read_text("utf-8")
        assert len(picture) < 100_000
        assert f"]({name}.svg)" in (figures.DOCS / f"{name}.md").read_text("utf-8")
        assert figures.points_digest(drawing) in picture


def test_readmes_typed_shares_are_the_measured_reductions(stored):
    dense = create_model("deit_tiny_patch16_224.fb_in1k")
    for row in stored.readme:
        argument, _, value = row["typed"].partition("=")
        assert (argument == "reduction") == ("reduction" in row)
        if argument == "image_size":
            continue
        by_share = with_plan(dense, Reduction.read(float(value)))
        measured = with_plan(dense, Reduction.read(row["reduction"]))
        for typed, layer in zip(by_share.plan, measured.plan, strict=True):
            assert typed.counts == layer.counts
            if layer.step:
                assert type(typed.step.reducer) is type(layer.step.reducer)
