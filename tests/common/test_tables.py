from imagepiece_jax.common.tables import rows_table


def test_rows_may_lack_cells_and_escape_their_text():
    rows = [{"row": "a|b"}, {"row": "two\nlines", "<b>": None, "GMACs": 1}]
    assert rows_table(rows).splitlines() == [
        "| row | <b> | GMACs |",
        "| --- | --- | --- |",
        r"| a\|b |  |  |",
        "| two lines |  | 1 |",
    ]
