"""Tables as text: columns that line up, and Markdown."""


def text_table(rows):
    """Aligned columns, the first row a heading; all but the last right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row):
        cells = [c.rjust(w) for c, w in zip(row[:-1], widths, strict=False)]
        return "  ".join([*cells, row[-1]]).rstrip()

    return "\n".join(line(row) for row in rows)


def markdown_table(head, rows) -> str:
    """A Markdown table, without a newline at its end; None stands for a blank cell."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_markdown_cell, line))} |" for line in lines)


def _markdown_cell(value):
    """Text that neither ends its cell nor is read as HTML: it may be a file's name."""
    text = "" if value is None else str(value)
    return " ".join(text.replace("|", "\\|").replace("<", "\\<").splitlines())
