from imagepiece_jax.common.tables import markdown_table, rows_table


def test_cells_escape_their_names():
    rows = [["a|b", None], ["<b>", "two\nlines"]]
    assert markdown_table(["name", "note"], rows).splitlines() == [
        "| name | note |",
        "| --- | --- |",
        r"| a\|b |  |",
        "| <b> | two lines |",
    ]


def test_rows_may_lack_cells():
    dense = {"row": "dense", "GMACs": 2}
    half = {"row": "half", "kept": 9, "GMACs": 1}
    assert rows_table([dense, half]).splitlines() == [
        "| row | kept | GMACs |",
        "| --- | --- | --- |",
        "| dense |  | 2 |",
        "| half | 9 | 1 |",
    ]
