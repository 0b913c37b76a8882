"""The section of the page is what was measured, and nothing else."""

from tools import placement_table
from tools.runtime_operators import coreml_operators


def test_the_section_is_that_of_the_stored_measurements():
    rows = placement_table.stored_rows()
    page = placement_table.PAGE.read_text("utf-8")
    assert page.endswith("\n" + placement_table.section(rows))
    revisions = [*dict.fromkeys(row["revision"] for row in rows)]
    names = {placement_table.DENSE, *placement_table.METHOD_NAMES}
    for revision in (revisions[0], revisions[-1]):
        found = {row["method"] for row in rows if row["revision"] == revision}
        assert found == names
    # What docs/export.md says of them.
    for row in rows:
        if row["revision"] == revisions[-1]:
            assert (row["counts"]["CPU"], row["counts"]["copies"]) == (0, 0), row


def test_coreml_publishes_its_operators_in_the_package():
    for form in ("mlprogram", "neuralnetwork"):
        operators = coreml_operators(form)
        assert operators["add"] == [""]
        assert len(operators) > 30
        assert operators["conv"][0] == "Only 1D/2D Conv is supported."
