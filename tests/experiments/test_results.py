"""The pages have what docs/results/results.json says, and its rows what is right."""

import pytest

from experiments import results
from imagepiece_jax.models.create import create_model, with_plan
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers import markdown


@pytest.fixture(scope="module")
def stored():
    return results.read_results()


def test_tables_of_the_pages_are_made_from_the_file(stored):
    tables = results.page_tables(stored)
    used = []
    for name in results.PAGES:
        text = (results.ROOT / name).read_text("utf-8")
        assert results.fill_tables(text, tables) == text, name
        used += results.MARKED.findall(text)
    assert {name for _, name, _ in used} == set(tables)


def test_readme_has_a_row_for_each_of_the_file(stored):
    (rows, *_) = markdown.tables(markdown.section("README.md"))
    assert len(rows) == len(stored.readme)
    for row, found in zip(rows, stored.readme, strict=True):
        assert row["typed"] == f"`{found['typed']}`"
        assert float(row["multiply-adds"]) == round(found["multiply_adds"], 2)
        for column, name in (("lost", "lost"), ("lost, recovered", "recovered")):
            shown = row[f"points {column}"]
            if name not in found:  # `recover` trains no smaller images
                assert shown == ""
                continue
            assert markdown.interval(shown) == pytest.approx(found[name], abs=0.051)


def test_what_readme_types_is_what_was_measured(stored):
    """Each share makes the tokens and reducers whose figures stand in its row."""
    dense = create_model("deit_tiny_patch16_224.fb_in1k")
    for row in stored.readme:
        argument, _, value = row["typed"].partition("=")
        assert (argument == "reduction") == ("reduction" in row)
        if argument == "image_size":
            continue
        made = with_plan(dense, Reduction.read(float(value)))
        shown = with_plan(dense, Reduction.read(row["reduction"]))
        for ours, theirs in zip(made.plan, shown.plan, strict=True):
            assert ours.counts == theirs.counts
            reducers = [
                layer.step and type(layer.step.reducer) for layer in (ours, theirs)
            ]
            assert reducers[0] == reducers[1]


def test_rows_name_their_sources_and_have_the_accuracy_of_their_bits(stored):
    settings = set()
    for row in stored.rows:
        assert 100 * stored.bits(row).mean() == pytest.approx(row.acc1[0])
        source = stored.sources[row.source]
        assert "--resize none" in source["command"]
        settings.add((source["study"], row.method, row.share, str(row.setting)))
    assert len(settings) == len(stored.rows)  # none stands there twice
    named = {row.source for row in stored.rows}
    for row in stored.readme:
        named |= {
            row[name]
            for name in ("source", "recovered_source", "h200_source")
            if name in row
        }
    assert named == set(stored.sources)


def test_the_page_of_comparison_has_figures_of_the_results():
    rows, *_ = markdown.tables(markdown.section("docs/comparison.md", "By time"))
    page = "docs/results/comparison.md"
    recovered, *_ = markdown.tables(markdown.section(page, "Recovered"))
    by_model = {row["model"]: row for row in recovered}
    page = "docs/results/performance.md"
    *_, timed, _ = markdown.tables(markdown.section(page, "How fast"))
    on_gpu = {row["setting"].replace(" in ", ", "): row for row in timed}
    for row in rows:
        measured = by_model[row["setting"]]
        for column, name in (("", "off the shelf"), (", recovered", "recovered")):
            lost, *_ = markdown.interval(measured[f"points, {name}"])
            assert float(row[f"points lost{column}"]) == -lost
        assert float(row["CPU"]) == markdown.interval(measured["times as fast"])[0]
        if row["H200, DeiT-S"]:
            setting = row["setting"].replace("blocks,", "blocks")
            setting = setting.replace("dense, ", "dense at ")
            assert on_gpu[setting]["times the dense"].split()[0] == row["H200, DeiT-S"]
