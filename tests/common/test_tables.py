"""No name breaks a table."""

from imagepiece_jax.common import tables


def test_names_stay_in_their_cells():
    rows = [["a|b", None], ["<b>x</b>", "two\nlines"], [1.5, "p < .05"]]
    assert tables.markdown(["name", "note"], rows) == [
        "| name | note |",
        "| --- | --- |",
        r"| a\|b |  |",
        r"| \<b>x\</b> | two lines |",
        r"| 1.5 | p \< .05 |",
    ]
